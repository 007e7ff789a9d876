"""Server-sent events, bytes to payloads and back, without I/O.

The fine-tunes API sends data-only events: of each event only the ``data`` lines matter. The grammar is the HTML
standard's, section 9.2.5 (https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream).
"""

from __future__ import annotations

from typing import Final

from aiofinetune.errors import ProtocolViolation

MOST_BYTES: Final = 1 << 20
"""The most that one event may take, in bytes: a thousand times the longest that was seen, and small enough to hold
for each of a thousand streams that misbehave."""

_BOM: Final = b"\xef\xbb\xbf"
_CR: Final = 0x0D


def encode(data: bytes) -> bytes:
    """Write `data`, which holds no line break (as JSON on one line does), as one event."""
    return b"data: %b\n\n" % data


class EventDecoder:
    """Turns the bytes of an event stream, however they are cut, into the events' data."""

    __slots__ = (
        "_after_cr",
        "_at_start",
        "_data",
        "_line",
    )

    def __init__(self) -> None:
        self._line = bytearray()
        """What came of a line that has not ended."""
        self._data = bytearray()
        """The data of the event that has not ended, with a line feed after each line of it."""
        self._at_start = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes; give the data of each event that they complete.

        Events without data, such as the comments by which a proxy keeps a connection open, give nothing.

        Raises:
            ProtocolViolation: One event is longer than `MOST_BYTES`.
        """
        return self._split(chunk) or self._parse(chunk)

    def close(self) -> bytes:
        """Give the data of the event that the stream's end cut off; empty if there is none.

        The standard drops such an event, and so must a reader that cannot tell that it is whole.
        """
        self._take(bytes(self._line))
        return bytes(self._data[:-1])

    def _split(self, chunk: bytes) -> list[bytes]:
        """Give the data of the events that a chunk completes, if all are of a plain line each, as services send them.

        A fast stream takes a sixth less of the CPU than by `_parse` alone, which gives the same.
        """
        whole, end, rest = chunk.rpartition(b"\n\n")
        if not end or self._data or _CR in chunk:
            return []
        text = bytes(self._line) + whole
        events = text.removeprefix(b"data: ").split(b"\n\ndata: ")
        is_plain = text.startswith(b"data: ") and text.count(b"\n") == 2 * len(events) - 2
        if not is_plain or b"" in events or len(text) > MOST_BYTES:
            return []
        self._line.clear()
        self._at_start = self._after_cr = False
        return events + self._parse(rest) if rest else events

    def _parse(self, chunk: bytes) -> list[bytes]:
        events = []
        for line in self._whole_lines(chunk):
            if line:
                self._take(line)
            elif self._data:
                if len(self._data) > 1:
                    events.append(bytes(self._data[:-1]))
                self._data.clear()
            self._check_size(max(len(line), len(self._data)))
        self._check_size(len(self._line) + len(self._data))
        return events

    def _whole_lines(self, chunk: bytes) -> list[bytes]:
        """Cut what came so far at CRLF, LF and CR; keep the last, unfinished line."""
        if self._at_start:
            chunk = bytes(self._line) + chunk
            self._line.clear()
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._line += chunk
                return []
            self._at_start = False
            chunk = chunk.removeprefix(_BOM)
        if self._after_cr and chunk:
            # The CR that ended the last chunk has ended its line already.
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if _CR in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        first, *rest = chunk.split(b"\n")
        self._line += first
        if not rest:
            return []
        lines = [bytes(self._line), *rest[:-1]]
        self._line[:] = rest[-1]
        return lines

    def _take(self, line: bytes) -> None:
        """Take one line of an event."""
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data += value.removeprefix(b" ") + b"\n"

    def _check_size(self, size: int) -> None:
        if size > MOST_BYTES:
            raise ProtocolViolation(f"an event of the stream is longer than {MOST_BYTES} bytes")
