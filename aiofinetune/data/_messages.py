"""Check rows of chat messages, and recognise preference pairs.

Source for the rules of OpenAI: the guide to supervised fine-tuning, "Formatting your data".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final

from aiofinetune.data._chat import pairs, read_messages, wrong_row
from aiofinetune.data._duplicates import NO_DIGEST, DigestStore, Repeats, digest
from aiofinetune.data._json_rows import dumps
from aiofinetune.data._private import find_private, has_private
from aiofinetune.data._report import SHOWN_PLACES, Place, Task
from aiofinetune.data._rules import MESSAGES, Rules
from aiofinetune.data._tally import Tally
from aiofinetune.data._tokens import Counter as TokenCounter

_TOKENS_PER_MESSAGE: Final = 3


class ChatChecker:
    """Checks rows of chat messages or preference pairs, one at a time; the arguments are those of `PairChecker`."""

    def __init__(self, shape: str, rules: Rules, tally: Tally, count_tokens: TokenCounter, store: DigestStore) -> None:
        self._shape = shape
        self._rules = rules
        self._tally = tally
        self._count_tokens = count_tokens
        self._store = store
        self.rows = 0
        self.tokens = 0
        self.repeats: Repeats | None = None

    def look(self, number: int, line: int, fields: Mapping[str, object]) -> None:
        """Check a row.

        Raises:
            UnicodeEncodeError: A text holds half of a surrogate pair; nothing was counted.
        """
        texts = [(field, text, text.encode()) for field, text in texts_of(fields)]
        self.rows += 1
        if self._shape == MESSAGES:
            self._look_at_messages(line, fields)
        tokens = 0
        for field, text, content in texts:
            tokens += self._count_tokens(text, len(content))
            if has_private(content):
                self._tally.add_all(line, find_private(field, text))
        messages = fields.get("messages")
        tokens += _TOKENS_PER_MESSAGE * (len(messages) if isinstance(messages, list) else 0)
        self.tokens += tokens
        if tokens > self._rules.max_tokens:
            words = f"{tokens:,} tokens, at most {self._rules.max_tokens:,} are read"
            self._tally.add("too-many-tokens", line, None, words)
        self._store.add(digest(_content(fields)), NO_DIGEST, number, line)

    def _look_at_messages(self, line: int, fields: Mapping[str, object]) -> None:
        troubles = list(wrong_row(fields, only_text=self._rules.only_text))
        self._tally.add_all(line, troubles)
        most = self._rules.max_completion_bytes
        if most is None or troubles:
            return
        for _, completion in pairs(read_messages(fields["messages"])):
            if len(completion.encode()) > most:
                words = f"{len(completion.encode()):,} bytes, at most {most:,} are taken: {completion[:60]}"
                self._tally.add("completion-too-long", line, "messages", words)
                return

    @property
    def task(self) -> Task:
        """What the data is for."""
        return Task("chat" if self._shape == MESSAGES else "preference")

    def finish(self) -> None:
        """Check what is only known from all rows."""
        self.repeats = repeats = Repeats(self._store.groups(), SHOWN_PLACES)
        lines = repeats.duplicate_lines
        places = [Place(self._tally.file, line, None, f"equals line {earlier}") for line, earlier in lines]
        self._tally.add_places("duplicate", places, repeats.duplicates.count)


def _content(fields: Mapping[str, object]) -> bytes:
    """Return a row as JSON."""
    try:
        return dumps(fields)
    except UnicodeEncodeError:  # A key holds half of a surrogate pair; texts do not.
        return json.dumps(fields).encode()


def texts_of(value: object, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text in a value that a model may read, with its path."""
    stack: list[tuple[str, object]] = [(where, value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, str):
            yield path, item
        elif isinstance(item, dict):
            stack += ((f"{path}.{key}" if path else str(key), part) for key, part in item.items() if key != "role")
        elif isinstance(item, list):
            stack += ((f"{path}[{position}]", part) for position, part in enumerate(item))
