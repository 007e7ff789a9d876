"""Parse one line of JSON, and say what is wrong with it: duplicate keys, NaN and half surrogate pairs too.

orjson is used where it is installed. It takes duplicate keys without a word, so the quotation marks of a line are
counted: an object that was read has two for each of its keys and texts, and a line with another number is parsed again
with the standard library, which shows each key.
"""

from __future__ import annotations

import json
import math
from typing import Final

try:
    from orjson import dumps as _dumps
    from orjson import loads as _loads
except ImportError:
    from aiofinetune._json import dumps as _dumps  # type: ignore[assignment]  # narrower, and wide enough here
    from aiofinetune._json import loads as _loads  # type: ignore[assignment]  # likewise
from aiofinetune.data._report import Trouble

_MAX_DEPTH: Final = 100
"""How deep arrays and objects may be nested in a row; no service needs a fraction of it."""

_LARGE: Final = 2.0**63


def dumps(value: object) -> bytes:
    """Encode what `parse` returned as JSON. A lone surrogate raises a UnicodeEncodeError, which is a ValueError."""
    try:
        return _dumps(value)
    except (TypeError, ValueError):
        # orjson has no integers of more than 64 bits, and reports surrogates by a TypeError.
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def parse(line: bytes) -> tuple[object, tuple[Trouble, ...]]:
    """Parse a line.

    Returns:
        The value, and what is wrong; the value is None if it cannot be used. NaN and lone surrogates are kept in the
        value, and the one is named while the other is not: it is found when the text is encoded.
    """
    try:
        value: object = _loads(line)
        # Bytes are looked for by their numbers, which is several times faster.
        if type(value) is dict and (line.count(34) != _quotes(value) or (92 in line and b"\\u0022" in line)):
            return parse_carefully(line)
    except (ValueError, RecursionError):
        return parse_carefully(line)
    return value, ()


def _quotes(value: object, depth: int = 0) -> int:
    r"""Return the number of quotation marks that JSON needs for a value, if those in its texts are escaped by ``\``.

    Raises:
        RecursionError: The value is nested too deeply.
        ValueError: A number is so large that it may be an integer, which orjson does not keep as it is.
    """
    if type(value) is str:
        return 2 + value.count('"')
    if type(value) is float and abs(value) >= _LARGE:
        raise ValueError
    if depth > _MAX_DEPTH:
        raise RecursionError
    if type(value) is dict:
        count = 2 * len(value)
        for item in value.values():
            count += 2 + item.count('"') if type(item) is str else _quotes(item, depth + 1)
        return count
    return sum(_quotes(item, depth + 1) for item in value) if type(value) is list else 0


def parse_carefully(line: bytes) -> tuple[object, tuple[Trouble, ...]]:
    """Parse a line with the standard library, as `parse` does."""
    try:
        # Without the line end, so that a string that is not closed is called so.
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        return None, (undecodable(line, error),)
    notes = Notes()
    try:
        value = notes.decoder.decode(text)
        check_depth(value)
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at").removesuffix(" starting")
        near = text[max(0, error.pos - 20) : error.pos + 40]
        return None, (Trouble("not-json", None, f"{reason} at character {error.pos + 1}: {near}"),)
    except (ValueError, RecursionError):
        # A number of thousands of digits, or brackets nested without end.
        return None, (Trouble("not-json", None, f"too large or nested too deeply: {text[:40]}"),)
    return value, notes.troubles()


def check_depth(value: object, depth: int = 0) -> None:
    """Raise a RecursionError if a value is nested too deeply to be handled."""
    if depth > _MAX_DEPTH:
        raise RecursionError
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_depth(item, depth + 1)


class Notes:
    """A decoder of JSON, and what it meets that is not plain JSON."""

    def __init__(self) -> None:
        self.duplicates: list[str] = []
        self.not_numbers: list[str] = []
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )

    def troubles(self) -> tuple[Trouble, ...]:
        """Return what was met since the last call."""
        found = [Trouble("duplicate-key", name, name) for name in self.duplicates[:1]]
        found += [Trouble("not-a-number", None, text) for text in self.not_numbers[:1]]
        self.duplicates.clear()
        self.not_numbers.clear()
        return tuple(found)

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            self.duplicates += (name for name in value if names.count(name) > 1)
        return value

    def _constant(self, text: str) -> float:
        self.not_numbers.append(text)
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
