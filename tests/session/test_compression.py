"""Compressed replies, whole and broken, and what a small one may unfold to."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import tracemalloc
import zlib
from asyncio import StreamWriter
from collections.abc import Callable

import aiohttp
import pytest

from aiofinetune import BadRequest, FineTuneSession, NotFound, ProtocolViolation, StreamInterrupted
from tests.servers.rawserver import KEY, Received, answering, chunk, knowing_file, reply, serve, talking_to
from tests.session.calls import MODELS, ONCE

pytestmark = pytest.mark.fastforward


async def test_a_small_body_that_stands_for_a_large_one_lets_others_run() -> None:
    """While a stream's body unfolds to tens of megabytes without an event, others on the loop have their turn."""
    packed = gzip.compress(b": kept alive\n" * 2**20)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    head = reply(body=packed, content_type="text/event-stream", Content_Encoding="gzip")
    async with talking_to(answering(head), retry=ONCE) as session, asyncio.TaskGroup() as group:
        busy = group.create_task(others())
        async with session.stream_fine_tune_events("ft-1") as stream:
            before = turns
            with pytest.raises(StreamInterrupted):
                await anext(stream)
            assert turns - before > 100
        busy.cancel()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "Deflate ": lambda data: zlib.compress(data, wbits=-zlib.MAX_WBITS),
    "identity, deflate": lambda data: zlib.compress(data, level=0, wbits=-zlib.MAX_WBITS),
    "utf-8, gzip,": gzip.compress,
}
PLAIN = ["identity", "Identity", "none", "", " ", ",", "utf-8", "UTF8", "binary", "8bit", "aws-chunked", "x" * 1000]


@pytest.mark.parametrize("encoding", [*PACKED, *PLAIN])
async def test_compressed(encoding: str) -> None:
    """A compressed reply is read as what it stands for, of any length and however it is cut."""
    data = {"data": [{"id": f"model-{random.random()}"} for _ in range(5_000)]}  # noqa: S311
    whole = reply(body=data)
    packed = PACKED.get(encoding, bytes)(whole.partition(b"\r\n\r\n")[2])

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % encoding.encode()
        )
        for start in range(0, len(packed), 7919):
            writer.write(chunk(packed[start : start + 7919]))
            await writer.drain()
        writer.write(chunk(b""))

    async with talking_to(handler) as session:
        assert len(await session.list_models()) == 5_000


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("br", b"{}"),
        ("gzip", b"no gzip"),
        ("deflate", b"{}"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0)),
    ],
)
async def test_wrong_compression(encoding: str, body: bytes) -> None:
    """A body that cannot be unpacked as its header says is a violation."""
    async with talking_to(answering(reply(body=body, Content_Encoding=encoding))) as session:
        with pytest.raises(ProtocolViolation):
            await session.list_models()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "none"])
@pytest.mark.parametrize("status", [200, 204])
async def test_nothing_compressed(encoding: str, status: int) -> None:
    """A reply without a body has none, whatever its header says of it."""
    async with talking_to(answering(reply(status, Content_Encoding=encoding))) as session:
        assert (await session.delete_file("file-1")).deleted


@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_bare_deflate_in_small_pieces(size: int) -> None:
    """Deflate without zlib's wrapper is recognized by its first byte."""
    packed = zlib.compress(reply(body=MODELS).partition(b"\r\n\r\n")[2], wbits=-zlib.MAX_WBITS)

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(packed), size):
            writer.write(chunk(packed[start : start + size]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(chunk(b""))

    async with talking_to(handler) as session:
        assert len(await session.list_models()) == 1


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_byte_order_mark(status: int, encoding: str) -> None:
    """A byte order mark before a reply's JSON is passed over, in an error too; one of a file stays."""
    body = b"\xef\xbb\xbf" + (b'{"data": []}' if status == 200 else b'{"error": {"message": "no such thing"}}')
    packed = gzip.compress(body) if encoding == "gzip" else body
    handler = knowing_file(len(body), answering(reply(status, packed, Content_Encoding=encoding)))
    async with talking_to(handler) as session:
        if status == 200:
            assert await session.list_models() == ()
            assert await session.download_file("file-1") == body
        else:
            with pytest.raises(NotFound, match="404: no such thing"):
                await session.list_models()


@pytest.mark.parametrize("is_borrowed", [False, True])
async def test_long_headers(is_borrowed: bool) -> None:
    """Headers of tens of kilobytes, as some proxies add, are read; an error says how long they may be."""
    async with (
        serve(answering(reply(body=MODELS, X_A="a" * 30_000, X_B="b" * 60_000), reply(X_A="a" * 70_000))) as url,
        aiohttp.ClientSession() as http,
        FineTuneSession(KEY, base_url=url, http=http if is_borrowed else None) as session,
    ):
        assert len(await session.list_models()) == 1
        with pytest.raises(ProtocolViolation, match="65536 bytes"):
            await session.list_models()


async def test_two_compressed_members() -> None:
    """A gzip body of several members, which RFC 1952 allows, is never read as its first alone."""
    body = gzip.compress(b"first ") + gzip.compress(b"second")
    async with talking_to(answering(reply(body=body, Content_Encoding="gzip"))) as session:
        with contextlib.suppress(ProtocolViolation):
            assert await session.download_file("file-1") == b"first second"


@pytest.mark.parametrize("status", [429, 503])
async def test_error_in_unknown_compression(status: int) -> None:
    """The status says what an error is, even if its body cannot be read."""
    async with talking_to(answering(reply(status, b"x", Content_Encoding="br"), reply(body=MODELS))) as session:
        assert await session.list_models()


async def test_bomb() -> None:
    """A small body that stands for 64 MiB is refused, in a bounded memory."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    body = b"".join(packer.compress(b"\0" * (16 << 20)) for _ in range(4)) + packer.flush()
    assert len(body) < 1 << 19
    async with talking_to(answering(reply(400, body, Content_Encoding="gzip"))) as session:
        tracemalloc.start()
        try:
            with pytest.raises(BadRequest):
                await session.list_models()
            assert tracemalloc.get_traced_memory()[1] < 32 << 20
        finally:
            tracemalloc.stop()


async def test_bomb_that_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply past the longest that is read is refused once it is past it, not once it is whole."""
    monkeypatch.setattr("aiofinetune._http.reply_body.MAX_REPLY_BYTES", 8 << 20)
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    body = b"".join(packer.compress(b" " * (16 << 20)) for _ in range(4)) + packer.flush()
    async with talking_to(answering(reply(body=body, Content_Encoding="gzip"))) as session:
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolViolation, match="longer than"):
                await session.list_models()
            assert tracemalloc.get_traced_memory()[1] < 32 << 20
        finally:
            tracemalloc.stop()
