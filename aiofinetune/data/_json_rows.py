"""Parse one line of JSON, and say what is wrong with it: duplicate keys, NaN and half surrogate pairs too.

This is the standard library's decoder, which shows each key. orjson is faster, but takes duplicate keys without a word;
to look for them in what it returns takes as long as is won.
"""

from __future__ import annotations

import json
import math
from typing import Final

from aiofinetune.data._report import Trouble

_MAX_DEPTH: Final = 100
"""How deep arrays and objects may be nested in a row; no service needs a fraction of it."""
_LINE_ENDS: Final = ("\n", "", "\r\n")


def dumps(value: object) -> bytes:
    """Encode what a `Decoder` returned as JSON. A lone surrogate raises a UnicodeEncodeError, which is a ValueError."""
    return _encode(value).encode()


# json.dumps() would make an encoder for each call.
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def check_depth(value: object, depth: int = 1) -> None:
    """Raise a RecursionError if a value is nested too deeply to be handled."""
    if depth > _MAX_DEPTH:
        raise RecursionError
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(item, dict | list):
            check_depth(item, depth + 1)


class Decoder:
    """A decoder of JSON, which notes what is not plain JSON."""

    def __init__(self) -> None:
        self._notes: list[Trouble] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )

    def parse(self, line: bytes) -> tuple[object, tuple[Trouble, ...]]:
        """Parse a line.

        Returns:
            The value, and what is wrong; the value is None if it cannot be used. NaN and lone surrogates are kept in
            the value, and the one is named while the other is not: it is found when the text is encoded.
        """
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            return None, (undecodable(line, error),)
        try:
            value, end = self.decode(text)
            if text[end:] in _LINE_ENDS:
                return value, self.troubles() if self._notes else ()
        except (ValueError, RecursionError):
            pass
        self.troubles()
        return self._parse_again(text)

    def decode(self, text: str) -> tuple[object, int]:
        """Return the value at the start of a text, and where it ends.

        Raises:
            ValueError: It is not JSON, or has a number of thousands of digits.
            RecursionError: It is nested too deeply.
        """
        value, end = self._decoder.raw_decode(text)
        for item in value.values() if type(value) is dict else (value,):
            if type(item) is not str:
                check_depth(value)
                break
        return value, end

    def _parse_again(self, text: str) -> tuple[object, tuple[Trouble, ...]]:
        """Parse a line with white space around the value, or find out why it cannot be parsed."""
        # Without the line end, so that a string that is not closed is called so.
        text = text.rstrip("\r\n")
        try:
            value = self._decoder.decode(text)
            check_depth(value)
        except json.JSONDecodeError as error:
            reason = error.msg.removesuffix(" at").removesuffix(" starting")
            near = text[max(0, error.pos - 20) : error.pos + 40]
            trouble = Trouble("not-json", None, f"{reason} at character {error.pos + 1}: {near}")
        except (ValueError, RecursionError):
            # A number of thousands of digits, or brackets nested without end.
            trouble = Trouble("not-json", None, f"too large or nested too deeply: {text[:40]}")
        else:
            return value, self.troubles()
        self.troubles()
        return None, (trouble,)

    def troubles(self) -> tuple[Trouble, ...]:
        """Return what was noted since the last call, each kind once."""
        first = {note.check: note for note in reversed(self._notes)}
        self._notes.clear()
        return tuple(first[check] for check in sorted(first))

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            self._notes += (Trouble("duplicate-key", name, name) for name in value if names.count(name) > 1)
        return value

    def _constant(self, text: str) -> float:
        self._notes.append(Trouble("not-a-number", None, text))
        return math.nan

    def _float(self, text: str) -> float:
        # JSON has no infinity, but float() returns one for a number such as 1e999.
        value = float(text)
        return value if math.isfinite(value) else self._constant(text)


def undecodable(line: bytes, error: UnicodeDecodeError) -> Trouble:
    """Say which byte of a line is not valid, with the text around it."""
    around = line[max(0, error.start - 20) : error.start + 20]
    text = around.decode("utf-8", "backslashreplace")
    return Trouble("undecodable", None, f"byte {error.start + 1} is 0x{line[error.start]:02x}: {text}", line)
