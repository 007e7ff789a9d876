from __future__ import annotations

import tracemalloc
from collections import deque
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiofinetune import ProtocolViolation
from aiofinetune._sse import MAX_EVENT_BYTES, EventDecoder, encode

Events: TypeAlias = list[bytes | tuple[bytes, bytes]]

# Each case: a stream, the data of its events (with their names, where they have one), and that of the event which its
# end cuts off.
CASES: list[tuple[bytes, Events, bytes]] = [
    (b"", [], b""),
    (b"data: a\n\n", [b"a"], b""),
    (b"data: a\n\ndata: b\n\n", [b"a", b"b"], b""),
    (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"], b""),
    (b"data: a\r\rdata: b\r\r", [b"a", b"b"], b""),
    (b"data: a\r\n\ndata: b\n\r\ndata: c\r\r\n", [b"a", b"b", b"c"], b""),
    (b"data: a\r\n\rdata: b\n\rdata: c\r\n\n", [b"a", b"b", b"c"], b""),
    (b"\xef\xbb\xbfdata: a\n\n", [b"a"], b""),
    (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [b"b"], b""),
    (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"], b""),
    (b"\xef\xbb\xbf", [], b""),
    (b": comment\n\n", [], b""),
    (b":\n\n:\n\n", [], b""),
    (b"\n\n\n\n", [], b""),
    (b": keep-alive\n\ndata: a\n\n: keep-alive\n\n", [b"a"], b""),
    (b"data: a\n: in between\ndata: b\n\n", [b"a\nb"], b""),
    (b"data: a\ndata: b\ndata: c\n\n", [b"a\nb\nc"], b""),
    (b"data:a\n\n", [b"a"], b""),
    (b"data:  a \n\n", [b" a "], b""),
    (b"data: a: b\n\n", [b"a: b"], b""),
    (b"data\n\n", [], b""),
    (b"data:\n\n", [], b""),
    (b"data: \n\n", [], b""),
    (b"data\ndata\n\n", [b"\n"], b""),
    (b"data:\ndata: a\n\n", [b"\na"], b""),
    (b"id: 7\nevent: add\nretry: 10\ndata: a\n\n", [(b"add", b"a")], b""),
    (b"data: a\nevent:add\n\ndata: b\n\n", [(b"add", b"a"), b"b"], b""),
    (b"event: a\r\revent: b\revent: c\rdata: x\r\r", [(b"c", b"x")], b""),
    (b"event: message\ndata: a\n\nevent\ndata: b\n\n", [b"a", b"b"], b""),
    (b"event: a\ndata:\n\nevent: a\ndata\n\n", [(b"a", b""), (b"a", b"")], b""),
    (b"event: a\n\ndata: b\n\n", [b"b"], b""),
    (b"data: a\n: never\r\n:\n\n:ends", [b"a"], b""),
    (b'data: a\n\n{"error": 7}\n\n{"error":\n\n7}\n\n', [b"a", b'{"error": 7}'], b""),
    (b'data: a\n\n{"error": 7}', [b"a"], b'{"error": 7}'),
    (b"id: 7\nevent: add\nretry: 10\n\n", [], b""),
    (b" data: a\n\n", [], b""),
    (b"Data: a\n\ndatas: b\n\n", [], b""),
    (b"data: \xff\x00\n\n", [b"\xff\x00"], b""),
    (b"data: a", [], b"a"),
    (b"data: a\ndata: b", [], b"a\nb"),
    (b"data: a\n", [], b"a"),
    (b"data: a\r\n", [], b"a"),
    (b"data: a\r", [], b"a"),
    (b"data: a\n\ndata: b\ndat", [b"a"], b"b"),
    (b"data: a\n\n: bye", [b"a"], b""),
    (b"data: a\n\ndata: [DONE]\n", [b"a"], b"[DONE]"),
]


def decode(*chunks: bytes) -> tuple[Events, bytes]:
    decoder = EventDecoder()
    events: Events = []
    for chunk in chunks:
        data = decoder.feed(chunk)
        names = decoder.names or [b""] * len(data)
        events += [(name, each) if name else each for name, each in zip(names, data, strict=True)]
    return events, decoder.close()


def reference(stream: bytes) -> tuple[Events, bytes]:
    """Read a stream as section 9.2.6 of the HTML standard says, in its order, of whole text and without bounds."""
    text = stream.removeprefix(b"\xef\xbb\xbf")
    lines: list[bytes] = []
    line, position = bytearray(), 0
    while position < len(text):
        if text[position : position + 2] == b"\r\n":
            lines, line, position = [*lines, bytes(line)], bytearray(), position + 2
        elif text[position : position + 1] in (b"\n", b"\r"):
            lines, line, position = [*lines, bytes(line)], bytearray(), position + 1
        else:
            line.append(text[position])
            position += 1
    events: Events = []
    buffer = name = b""
    for each in lines:
        field, value = field_of(each)
        if each == b"":
            data = buffer.removesuffix(b"\n")
            if buffer != b"":
                events.append(data if name in (b"", b"message") else (name, data))
            buffer = name = b""
        elif field == b"event":
            name = value
        elif field == b"data":
            buffer += value + b"\n"
    field, value = field_of(bytes(line))
    return events, (buffer + (value + b"\n" if field == b"data" else b"")).removesuffix(b"\n")


def field_of(line: bytes) -> tuple[bytes, bytes]:
    if line.startswith(b"{") and line.endswith(b"}"):
        # Beyond the standard.
        return b"data", line
    field, value = line.split(b":", 1) if b":" in line else (line, b"")
    return field, value.removeprefix(b" ")


@pytest.mark.parametrize(("stream", "events", "cut_off"), CASES)
def test_whole(stream: bytes, events: Events, cut_off: bytes) -> None:
    """A stream gives its events' data; so does one that arrives byte by byte."""
    assert decode(stream) == (events, cut_off)
    assert decode(*(stream[index : index + 1] for index in range(len(stream)))) == (events, cut_off)


@pytest.mark.parametrize(("stream", "events", "cut_off"), CASES)
def test_cut_in_two(stream: bytes, events: Events, cut_off: bytes) -> None:
    """A stream gives the same wherever it is cut, with empty pieces in between."""
    for index in range(len(stream) + 1):
        assert decode(b"", stream[:index], b"", stream[index:], b"") == (events, cut_off)


STREAMS = st.lists(
    st.sampled_from(
        [
            b"data",
            b"data: ",
            b"data:",
            b":",
            b" ",
            b"a",
            b"\n",
            b"\r",
            b"\r\n",
            b"id: 1",
            b"event: e",
            b"\xef\xbb\xbf",
            b"\n\n",
        ]
    )
    | st.binary(max_size=3),
    max_size=20,
).map(b"".join)


@given(STREAMS, st.data())
@example(b"data\n\n", None)
def test_reference(stream: bytes, data: st.DataObject | None) -> None:
    """Any bytes, cut anywhere, give what the standard says.

    The standard sends an event whose data is one empty line, too; here it gives nothing, like one without data,
    unless it has a name.
    """
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8))) if data else []
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    events, cut_off = reference(stream)
    assert decode(*chunks) == ([event for event in events if event], cut_off)


@given(st.lists(st.binary(min_size=1).filter(lambda data: b"\n" not in data and b"\r" not in data)))
def test_round_trip(payloads: list[bytes]) -> None:
    """What is written as events is read as those events."""
    assert decode(b"".join(map(encode, payloads))) == (payloads, b"")


def test_reference_stream(samples: Path) -> None:
    """The reference's own stream is five events and the mark of the end."""
    events, cut_off = decode((samples / "fine_tune_events.sse").read_bytes())
    assert len(events) == 6
    assert events[-1] == b"[DONE]"
    assert isinstance(events[-2], bytes)
    assert b"Job succeeded." in events[-2]
    assert cut_off == b""


def pieces(stream: bytes) -> list[bytes]:
    return [stream[start : start + 65_537] for start in range(0, len(stream), 65_537)]


def test_longest_line() -> None:
    """An event may be as long as the bound, whatever its pieces."""
    data = b"x" * (MAX_EVENT_BYTES - len(b"data: "))
    assert decode(*pieces(encode(data))) == ([data], b"")


BOUND = 1 << 18


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * BOUND,
        b"x" * (BOUND + 1),
        b"data: x\n" * (BOUND + 1),
        b"data:\n" * (BOUND + 2),
        (b"data: " + b"x" * (BOUND // 2) + b"\n") * 3,
        b"event: " + b"x" * (BOUND // 2) + b"\ndata: " + b"x" * (BOUND // 2),
    ],
    ids=["line", "no field", "lines", "empty lines", "long lines", "name"],
)
def test_past_the_bound(stream: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that never ends is given up, rather than kept until the memory is full."""
    monkeypatch.setattr("aiofinetune._sse.MAX_EVENT_BYTES", BOUND)
    decoder = EventDecoder()
    with pytest.raises(ProtocolViolation, match=str(BOUND)):
        deque(map(decoder.feed, pieces(stream)), maxlen=0)


def test_bound_at_once() -> None:
    """An event past the bound is refused when it comes in one piece, as it is when it comes in several."""
    with pytest.raises(ProtocolViolation):
        EventDecoder().feed(encode(b"x" * (2 * MAX_EVENT_BYTES)))


def test_comments_for_ever() -> None:
    """Comments, by which a proxy keeps a connection open, never add up to anything."""
    decoder = EventDecoder()
    comments = b": ping\n\n" * (MAX_EVENT_BYTES // 64)
    for _ in range(12):
        assert decoder.feed(comments) == []
    assert decoder.feed(b": ping\n" * (MAX_EVENT_BYTES // 4)) == []
    assert decoder.feed(encode(b"a")) == [b"a"]


def test_a_comment_that_never_ends() -> None:
    """A comment is neither bounded nor held, however long its line, and an event around it is whole."""
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\n:") == []
    tracemalloc.start()
    for _ in range(64):
        assert decoder.feed(b" " * (MAX_EVENT_BYTES // 32)) == []
    held, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < MAX_EVENT_BYTES // 4
    assert decoder.feed(b" data: c\n\n") == [b"a"]


def test_many_events_never_add_up() -> None:
    """The bound is for one event, not for the stream."""
    decoder = EventDecoder()
    data = b"x" * (MAX_EVENT_BYTES // 3)
    for _ in range(10):
        assert decoder.feed(encode(data)) == [data]


def test_unread_prefix_of_a_mark() -> None:
    """A stream that ends within what could have been a byte order mark has no event."""
    assert decode(b"\xef\xbb") == ([], b"")
