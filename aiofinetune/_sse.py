"""Decode and encode server-sent events, without I/O.

The fine-tunes API sends data-only events, so only the ``data`` lines matter, and the ``event`` line if a service names
its events. The grammar is that of the HTML standard, section 9.2.5
(https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiofinetune.errors import ProtocolViolation

MAX_EVENT_BYTES: Final = 4 << 20
"""The maximum length of an event in bytes, thousands of times the length of any known event. Comments do not count,
because they are not kept."""

_BOM: Final = b"\xef\xbb\xbf"
_CR: Final = 0x0D
_LF: Final = 0x0A


def encode(data: bytes) -> bytes:
    """Return `data`, which must not hold a line break (JSON on one line does not), as one event."""
    return b"data: %b\n\n" % data


class EventDecoder:
    """Decodes the bytes of an event stream, split anywhere, into the data of its events."""

    __slots__ = (
        "_after_cr",
        "_at_start",
        "_data",
        "_in_comment",
        "_line",
        "_name",
        "names",
    )

    def __init__(self) -> None:
        # Empty bytes take no memory, which matters for thousands of streams. What is added to becomes a bytearray.
        self._line: bytes | bytearray = b""
        """The beginning of a line that is not complete."""
        self._data: bytes | bytearray = b""
        """The data of the event that is not complete, with a line feed after each line."""
        self._name = b""
        """The name of that event."""
        self.names: Sequence[bytes] = ()
        """The names of the events that the last bytes completed, b"" for an event without a name; empty if none of them
        has a name."""
        self._at_start = True
        self._after_cr = False
        self._in_comment = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Decode the next bytes; return the data of each event that they complete, and set `names` to match.

        Comments, which proxies send to keep a connection open, and events without data are skipped.

        Raises:
            ProtocolViolation: An event is longer than `MAX_EVENT_BYTES`.
        """
        self.names = ()
        return self._split(chunk) or self._parse(chunk)

    def close(self) -> bytes:
        """Return the data of the event that the end of the stream cut off, and set `names`; b"" if there is none.

        The standard drops such an event. A caller must do the same unless it can tell that the event is complete.
        """
        self._take(bytes(self._line))
        self.names = (self._name,) if self._name else ()
        return bytes(self._data[:-1])

    def _split(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that a chunk completes, if each is a single plain ``data`` line.

        This is the common case. It takes a sixth less CPU time than `_parse`, which returns the same for these events.
        """
        whole, end, rest = chunk.rpartition(b"\n\n")
        if not end or self._data or self._name or self._in_comment or _CR in chunk:
            return []
        if self._line:
            whole = bytes(self._line) + whole
        if whole[:6] != b"data: " or len(whole) > MAX_EVENT_BYTES:
            return []
        events = whole[6:].split(b"\n\ndata: ")
        # They are plain if no line breaks are left.
        if _LF in b"".join(events) or b"" in events:
            return []
        self._line = b""
        self._at_start = self._after_cr = False
        return events + self._parse(rest) if rest else events

    def _parse(self, chunk: bytes) -> list[bytes]:
        events, names = [], []
        for line in self._whole_lines(chunk):
            if line.startswith(b":"):
                continue
            if line:
                self._take(line)
                self._check_size(max(len(line), len(self._name) + len(self._data)))
                continue
            # An event whose only data is an empty line has no content, unless it has a name.
            if len(self._data) > 1 or (self._data and self._name):
                events.append(bytes(self._data[:-1]))
                names.append(self._name)
            self._data = self._name = b""
        self._check_size(len(self._line) + len(self._name) + len(self._data))
        if any(names):
            self.names = names
        return events

    def _whole_lines(self, chunk: bytes) -> list[bytes]:
        """Return the complete lines (ended by CRLF, LF or CR); keep the unfinished last one unless it is a comment."""
        if self._at_start:
            # A byte order mark may be split across chunks.
            chunk = bytes(self._line) + chunk
            self._line = b""
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._line = chunk
                return []
            self._at_start = False
            chunk = chunk.removeprefix(_BOM)
        if self._after_cr and chunk:
            # The CR at the end of the last chunk already ended its line, and this LF belongs to it.
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if _CR in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._in_comment:
            # The start of the comment was dropped, so the rest of its line would look like a field.
            _, end, chunk = chunk.partition(b"\n")
            self._in_comment = not end
        first, *rest = chunk.split(b"\n")
        line = _longer(self._line, first)
        lines = [bytes(line), *rest[:-1]] if rest else []
        self._line = rest[-1] if rest else line
        if self._line.startswith(b":"):
            # A comment may be as long as the stream, so it is not kept in memory.
            self._line = b""
            self._in_comment = True
        return lines

    def _take(self, line: bytes) -> None:
        """Add one line to the current event."""
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data = _longer(self._data, value.removeprefix(b" ") + b"\n")
        elif field == b"event":
            name = value.removeprefix(b" ")
            # "message" is the standard's default for an event without a name.
            self._name = b"" if name == b"message" else name
        elif line.startswith(b"{") and line.endswith(b"}"):
            # This is not a field, but some services end a stream with an error as bare JSON.
            self._data = _longer(self._data, line + b"\n")

    def _check_size(self, size: int) -> None:
        if size > MAX_EVENT_BYTES:
            raise ProtocolViolation(f"an event of the stream is longer than {MAX_EVENT_BYTES} bytes")


def _longer(start: bytes | bytearray, more: bytes) -> bytes | bytearray:
    """Return `start` and `more`: without a copy of a `start` that is a bytearray, which may be long."""
    if not start:
        return more
    if not isinstance(start, bytearray):
        start = bytearray(start)
    start += more
    return start
