"""Read the rows of a list as its bytes arrive, so that neither its bytes nor all its rows are in memory. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiofinetune import structuring
from aiofinetune.errors import ProtocolViolation

Row = dict[str, Any]
"""A row as the service sends it. Any: a service's JSON."""

_START: Final = rb'[\s\xef\xbb\xbf]*\{[^\[]*"data"\s*:\s*\['
"""The start of a list, up to its first row."""
_BETWEEN: Final = rb"\}\s*,\s*\{"
"""What is between two rows, and between two objects in a row."""
_AT_ONCE: Final = 64 << 10
"""The number of bytes from which on rows are read."""
_SEARCHED: Final = 16 << 10
"""The number of bytes at the end in which the end of a row is searched for."""
_MAX_TRIES: Final = 4
_PAGE: Final = 20
"""The number of rows that a page of a list has where none is asked for, by the contract."""


def has_more(fields: Mapping[str, object], rows: int) -> bool:
    """Return whether a page of a list is not the last one.

    The contract requires the field. Without it, a page that is full by the contract's default may not be the last.

    Args:
        fields: The fields of the page.
        rows: The number of its rows.
    """
    said = fields.get("has_more")
    return said if isinstance(said, bool) else rows >= _PAGE


class LongList:
    """Reads one reply.

    JSON has one property that makes this safe: no text of whole values, cut anywhere else, is valid JSON. So a run of
    bytes that begins with a row, and is valid JSON in brackets, ends with a row.

    Args:
        clean: Takes keys out of the bytes of whole rows.
    """

    def __init__(self, clean: Callable[[bytes], bytes]) -> None:
        self._clean = clean
        self._waiting = bytearray()
        self._head: Row | None = None
        """The fields before the rows, once the first row has begun."""

    def feed(self, piece: bytes) -> list[Row]:
        """Take the next bytes of the reply; return the rows that are complete, if there are many."""
        self._waiting += piece
        if self._head is None:
            self._find_start()
        if self._head is None or len(self._waiting) < _AT_ONCE:
            return []
        start = max(0, len(self._waiting) - _SEARCHED)
        places = [found.start() + 1 for found in re.compile(_BETWEEN).finditer(self._waiting, start)]
        for place in places[: -_MAX_TRIES - 1 : -1]:
            rows = _loaded(b"[" + self._clean(bytes(self._waiting[:place])) + b"]")
            if rows is not None:
                del self._waiting[: self._waiting.index(b"{", place)]
                return _checked(rows)
        return []

    def close(self) -> tuple[list[Row], Row]:
        """Return the last rows, and the other fields of the list.

        Raises:
            ProtocolViolation: The reply is not JSON, or not an object.
        """
        body = self._clean(bytes(self._waiting)).removeprefix(b"\xef\xbb\xbf")
        if self._head is not None:
            body = b'{"data":[' + body
        value = structuring.read_json(body)
        if not isinstance(value, dict):
            raise ProtocolViolation(f"the reply does not match the API: $ expected an object, got {value!r:.60}")
        rows = value.pop("data", None)
        # A list without a list of rows is no proof of anything; see `aiofinetune.models.Rows`.
        return _checked(rows) if isinstance(rows, list) else [], {**(self._head or {}), **value}

    def _find_start(self) -> None:
        found = re.match(_START, self._waiting)
        if found is None:
            return
        # Valid only if the bracket belongs to `data` at the top.
        head = _loaded(bytes(self._waiting[: found.end()]).removeprefix(b"\xef\xbb\xbf") + b"]}")
        if isinstance(head, dict) and head.pop("data", None) == []:
            self._head = head
            del self._waiting[: found.end()]


def _loaded(data: bytes) -> Any:  # Any: a service's JSON
    try:
        return structuring.loads(data)
    except ValueError:
        return None


def _checked(rows: list[Any]) -> list[Row]:
    """Return the rows that are objects; others have no id, and are passed over."""
    return [row for row in rows if type(row) is dict]
