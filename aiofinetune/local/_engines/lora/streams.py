"""The text of tokens that arrive one by one, up to a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from aiofinetune.local._engines.written import FinishReason, Written

_UNKNOWN = "\ufffd"
"""What a decoder writes for bytes that are not a whole character."""

_BEFORE = 5
"""The number of tokens before a token that are decoded with it, because they can change how it looks."""


@attrs.frozen
class Scored:
    """A token; if asked for, its log probability, and the most likely tokens at its position with theirs."""

    shown: str
    chance: float | None = None
    likeliest: dict[str, float] | None = None


@attrs.define(eq=False)
class Text:
    """The text that a model writes after a prompt.

    Args:
        decode: Returns the text of tokens.
        prompt: The tokens of the prompt.
        stop: Texts that end the text, and are not part of it.
        has_scores: Whether the pieces have log probabilities.
        has_likeliest: Whether the pieces have the most likely tokens.
    """

    _decode: Callable[[Sequence[int]], str]
    _prompt: Sequence[int]
    _stop: Sequence[str] = ()
    _has_scores: bool = False
    _has_likeliest: bool = False
    _read: list[int] = attrs.field(init=False)
    """The last tokens, from which the text of the next one is found."""
    _known: str = attrs.field(init=False)
    """Their text as far as it is known."""
    _pending: list[tuple[Scored, str]] = attrs.field(factory=list, init=False)
    """The tokens that are not written yet, each with the text that it adds."""

    def __attrs_post_init__(self) -> None:
        """Begin after the prompt."""
        self._read = list(self._prompt[-_BEFORE:])
        self._known = self._decode(self._read)

    def add(self, token: int, scored: Scored) -> Written | None:
        """Add a token; return the piece that is final now, if there is one. It has a finish reason if a stop is met."""
        self._pending.append((scored, self._new_text(token)))
        text = "".join(added for _, added in self._pending)
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            return self._cut(min(found), "stop")
        return self._settled(len(text) - self._unsettled(text))

    def end(self, reason: FinishReason) -> Written:
        """Return the last piece."""
        rest = self._decode(self._read)[len(self._known) :]  # A character of which bytes are missing.
        if rest and self._pending:
            scored, added = self._pending[-1]
            self._pending[-1] = scored, added + rest
        return self._written(self._pending, reason)

    def _new_text(self, token: int) -> str:
        self._read.append(token)
        text = self._decode(self._read)
        if text.endswith(_UNKNOWN) or len(text) <= len(self._known):
            return ""  # More bytes of a character are expected, or the token is not shown.
        added = text[len(self._known) :]
        self._read = self._read[-_BEFORE:]
        self._known = self._decode(self._read)
        return added

    def _unsettled(self, text: str) -> int:
        """Return the length of the longest end of `text` that may be the start of a stop."""
        longest = max(map(len, self._stop), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stop)), 0)

    def _settled(self, size: int) -> Written | None:
        """Return the tokens that end within the first `size` characters of what is pending."""
        count = end = 0
        for _, added in self._pending:
            end += len(added)
            if end > size:
                break
            count += 1
        # The last token may become longer by a character of which it has the first bytes.
        while count and not self._pending[count - 1][1]:
            count -= 1
        settled, self._pending = self._pending[:count], self._pending[count:]
        return self._written(settled, None) if settled else None

    def _cut(self, size: int, reason: FinishReason) -> Written:
        kept, start = list[tuple[Scored, str]](), 0
        for scored, added in self._pending:
            if start < size:
                kept.append((scored, added[: size - start]))
            start += len(added)
        return self._written(kept, reason)

    def _written(self, tokens: Sequence[tuple[Scored, str]], reason: FinishReason | None) -> Written:
        return Written(
            text="".join(added for _, added in tokens),
            tokens=tuple(scored.shown for scored, _ in tokens),
            token_logprobs=tuple(scored.chance for scored, _ in tokens) if self._has_scores else None,
            top_logprobs=tuple(scored.likeliest for scored, _ in tokens) if self._has_likeliest else None,
            finish_reason=reason,
        )
