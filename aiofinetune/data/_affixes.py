"""Texts at the start or end of every prompt or completion: prefixes, separators and stop sequences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from os.path import commonprefix
from typing import Final

from aiofinetune.data._report import SHOWN_PLACES

SEPARATORS: Final = (
    " ->",
    "\n\n###\n\n",
    "\n\n===\n\n",
    "\n\n---\n\n",
    "\n\n===>\n\n",
    "\n\n--->\n\n",
    "\n\n<answer>\n\n",
)
"""What to put at the end of prompts: the first that is inside none (reference: "Prepare training data")."""
STOPS: Final = ("\n", " END", "###", "***", "+++", "&&&", "$$$", "@@@", "%%%", "\n\n<end>\n\n")
"""What to put at the end of completions: the first that is inside none."""

_HEAD: Final = 500
_HEAD_CHARACTERS: Final = 1 << 20
_MAX_LENGTH: Final = 40
_COMMON: Final = 0.8
"""The share of texts that a separator ends. Others lack it by mistake."""
_INSIDE: Final = 0.2
"""The share of texts that a separator may be inside. More, and it is punctuation."""


class CommonPrefix:
    """The longest text with which all texts start, one text after the other."""

    def __init__(self) -> None:
        self.prefix: str | None = None
        self.is_whole = False
        """Whether one of the texts is the prefix itself."""

    def add(self, texts: Iterable[str]) -> None:
        """Add texts."""
        if self.prefix != "":
            known = () if self.prefix is None else (self.prefix,)
            self.prefix = commonprefix((*known, *texts))  # noqa: RUF071  # these are no paths


class Ending:
    """The separator at the end of prompts, or the stop sequence at the end of completions.

    It is found in the first few hundred texts. What is not known before all are read is counted for both cases.

    Args:
        options: What may be added to the texts that have none.
    """

    def __init__(self, options: Sequence[str]) -> None:
        self.text: str | None = None
        """What ends nearly all texts; None if nothing does, or before `begin`."""
        self._usual = options
        self._options = list(options)
        self._head: list[tuple[str, int]] | None = []
        self._size = 0
        self.missing: list[tuple[int, str]] = []
        self.missing_count = 0
        self.inside: list[tuple[int, str]] = []
        self.inside_count = 0

    def add(self, texts: Iterable[tuple[str, int]]) -> None:
        """Add texts, each with its line."""
        rest = iter(texts)
        while self._head is not None and (item := next(rest, None)) is not None:
            self._head.append(item)
            self._size += len(item[0])
            if len(self._head) >= _HEAD or self._size > _HEAD_CHARACTERS:
                self.begin()
        self._look(rest)

    def _look(self, texts: Iterable[tuple[str, int]]) -> None:
        ending = self.text
        if ending is None:
            for text, _ in texts:
                self.missing_count += 1
                self._rule_out(text)
            return
        for text, line in texts:
            is_missing = not text.endswith(ending)
            if is_missing:
                _keep(self.missing, line, text)
                self.missing_count += 1
            # An ending that is inside is found before the end.
            if ending in text if is_missing else text.find(ending) < len(text) - len(ending):
                _keep(self.inside, line, text)
                self.inside_count += 1

    def begin(self) -> None:
        """Decide what the ending is, if this is not done yet."""
        if self._head is None:
            return
        head, self._head = self._head, None
        self.text = find_ending([text for text, _ in head], self._usual)
        self._look(head)

    def _rule_out(self, text: str) -> None:
        for option in self._options:
            if option in text and _is_inside(option, text):
                self._options = [other for other in self._options if other != option]

    @property
    def suggestion(self) -> str:
        """The ending; if there is none, one that is inside no text."""
        return self.text or next(iter(self._options), self._usual[-1])


def find_ending(texts: Sequence[str], options: Sequence[str] = ()) -> str | None:
    """Return the text that ends nearly all `texts` and is inside few; None if there is none.

    One of the usual `options` is preferred to a longer text that happens to be as common.
    """
    texts = [text for text in texts if text]
    enough = _COMMON * len(texts)
    common = [option for option in options if sum(text.endswith(option) for text in texts) >= max(1, enough)]
    ending = max(common, key=len, default="")
    if not ending and len(set(texts)) > 1:
        for length in range(1, _MAX_LENGTH + 1):
            found, count = Counter(text[-length:] for text in texts).most_common(1)[0]
            if count < enough or len(found) < length:
                break
            # A longer ending must be as common.
            ending, enough = found, count
    if not ending or ending.isalnum() or (not ending.strip() and "\n" not in ending):
        return None
    inside = sum(_is_inside(ending, text) for text in texts)
    return ending if inside <= _INSIDE * len(texts) else None


def _keep(places: list[tuple[int, str]], line: int, text: str) -> None:
    if len(places) < SHOWN_PLACES:
        places.append((line, text))


def _is_inside(ending: str, text: str) -> bool:
    """Whether a text holds an ending before its end."""
    return 0 <= text.find(ending) < len(text) - len(ending)
