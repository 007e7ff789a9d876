"""Uploads: from each kind of source, sent again, stalled, and of files that change."""

from __future__ import annotations

import asyncio
import io
import threading
from asyncio import StreamWriter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiofinetune import ConnectionLost, LocalFileError, RateLimited, ReplyTimeout, RequestInvalid
from tests.servers.rawserver import Received, answering, reply, session_for, talking_to
from tests.session.calls import DATA, FILE, ONCE

pytestmark = pytest.mark.fastforward


def content_of(request: Received) -> bytes:
    """The file's bytes in the form that came in, and the form as it must be around them."""
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    head, _, rest = request.body.partition(b"Content-Type: application/octet-stream\r\n\r\n")
    assert head.startswith(b"--" + boundary + b"\r\n")
    assert b'name="purpose"\r\n\r\n' in head
    tail = b"\r\n--" + boundary + b"--\r\n"
    assert rest.endswith(tail)
    return rest.removesuffix(tail)


async def generated(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        await asyncio.sleep(0)
        yield data[start : start + 100_000]


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
@pytest.mark.parametrize("kind", ["path", "bytes", "file", "pieces"])
async def test_upload(kind: str, size: int, tmp_path: Path) -> None:
    """Every kind of source arrives byte for byte, with its length ahead where that is known, and its name."""
    data = DATA[:size]
    path = tmp_path / "my data.jsonl"
    path.write_bytes(data)
    seen: list[Received] = []
    told: list[tuple[int, int | None]] = []
    async with talking_to(answering(reply(body=FILE), seen=seen)) as session:
        with path.open("rb") as file:
            source: Any = {"path": path, "bytes": data, "file": file, "pieces": generated(data)}[kind]
            uploaded = await session.upload_file(source, progress=lambda sent, total: told.append((sent, total)))
    assert uploaded.id == "file-1"
    assert content_of(seen[0]) == data
    name = "my data.jsonl" if kind in ("path", "file") else "data.jsonl"
    assert f'filename="{name}"'.encode() in seen[0].body
    assert b"\r\n\r\nfine-tune\r\n" in seen[0].body
    if kind == "pieces":
        assert seen[0].headers["transfer-encoding"] == "chunked"
        assert "content-length" not in seen[0].headers
    else:
        assert "transfer-encoding" not in seen[0].headers
    assert [sent for sent, _ in told] == sorted({sent for sent, _ in told})
    assert {total for _, total in told} <= {None if kind == "pieces" else size}
    assert (told[-1][0] if told else 0) == size


async def test_upload_names() -> None:
    """What the caller says of name and purpose goes before what the source says."""
    seen: list[Received] = []
    async with talking_to(answering(reply(body=FILE), seen=seen)) as session:
        await session.upload_file(b"x", filename='a"b.jsonl', purpose="search")
    assert b'filename="a%22b.jsonl"' in seen[0].body
    assert b"\r\n\r\nsearch\r\n" in seen[0].body


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
async def test_upload_again(kind: str, tmp_path: Path) -> None:
    """An upload that is refused for now is sent again from its first byte."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(DATA)
    seen: list[Received] = []
    async with talking_to(answering(reply(429), reply(503, Retry_After="0"), reply(body=FILE), seen=seen)) as session:
        with path.open("rb") as file:
            file.seek(10)
            source: Any = {"path": path, "bytes": DATA, "file": file}[kind]
            await session.upload_file(source)
    assert [content_of(request) for request in seen] == [DATA[10:] if kind == "file" else DATA] * 3


async def test_upload_that_cannot_go_back() -> None:
    """A source that can be read only once is sent once."""
    seen: list[Received] = []
    async with talking_to(answering(reply(429), reply(body=FILE), seen=seen)) as session:
        with pytest.raises(RateLimited):
            await session.upload_file(generated(DATA))
    assert len(seen) == 1


async def test_upload_refused_half_way() -> None:
    """A service that refuses an upload before it has read it is heard, and the next attempt is whole."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        if len(seen) == 1:
            writer.write(reply(429, Connection="close"))
            writer.close()
        else:
            body = await request.read_body()
            assert DATA * 8 in body
            writer.write(reply(body=FILE))

    async with talking_to(handler, reads_body=False) as session:
        try:
            await session.upload_file(DATA * 8)
        except ConnectionLost:
            # The system may drop an answer that overtakes what it answers; then the upload is not sent again.
            assert len(seen) == 1
        else:
            assert len(seen) == 2


class SlowFile(io.BytesIO):
    """A file on a slow disk: its second piece comes only once the first attempt is over."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = 0
        self.is_reading = threading.Event()
        self.goes_on = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:  # noqa: D102  # as the class says
        self.reads += 1
        if self.reads == 2:
            self.is_reading.set()
            # Once the file goes back, or, where that waits for this read as it must, after a moment.
            self.goes_on.wait(0.2)
        return super().read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:  # noqa: D102  # likewise
        position = super().seek(offset, whence)
        if self.is_reading.is_set():
            self.goes_on.set()
        return position


async def test_upload_again_while_still_reading() -> None:
    """A piece of the file that is still being read for one attempt is not missing from the next."""
    file = SlowFile(DATA)
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        if len(seen) == 1:
            await asyncio.to_thread(file.is_reading.wait)
            writer.write(reply(429))
            writer.write_eof()
            await request.gone()
        else:
            assert DATA in await request.read_body()
            writer.write(reply(body=FILE))

    async with talking_to(handler, reads_body=False) as session:
        assert (await session.upload_file(file)).id == "file-1"
    assert len(seen) == 2


async def test_upload_of_what_cannot_be_read() -> None:
    """What goes wrong in the source is an error of the file, with its cause, and is not sent again."""
    seen: list[Received] = []

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await asyncio.sleep(0)
        raise OSError(5, "Input/output error")

    async with talking_to(answering(reply(body=FILE), seen=seen)) as session:
        with pytest.raises(LocalFileError, match="Input/output error") as caught:
            await session.upload_file(broken())
        assert isinstance(caught.value.__cause__, OSError)
    assert seen == []


async def test_upload_of_a_missing_file(tmp_path: Path) -> None:
    """A file that is not there is an error before anything is sent."""
    async with session_for("http://127.0.0.1:1/v1") as session:
        with pytest.raises(LocalFileError, match="No such file"):
            await session.upload_file(tmp_path / "missing.jsonl")
        with pytest.raises(RequestInvalid, match="expected a path"):
            await session.upload_file(7)  # type: ignore[arg-type]


async def test_upload_of_a_file_that_shrinks(tmp_path: Path) -> None:
    """A file that is cut while it is sent is an error of the file."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(DATA * 2)

    def cut(_sent: int, _total: int | None) -> None:
        path.write_bytes(DATA[:1000])

    async with talking_to(answering(reply(body=FILE))) as session:
        with pytest.raises(LocalFileError, match="changed"):
            await session.upload_file(path, progress=cut)


async def test_upload_of_a_file_that_grows(tmp_path: Path) -> None:
    """A file that grows while it is sent is an error of the file, whatever the service says of what it got."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(DATA * 2)

    def grow(_sent: int, _total: int | None) -> None:
        with path.open("ab") as file:
            file.write(b"a line more, and one more\n" * 2)

    async with talking_to(answering(reply(body=FILE))) as session:
        with pytest.raises(LocalFileError, match="changed"):
            await session.upload_file(path, progress=grow)


async def test_upload_of_text_pieces() -> None:
    """An iterator that gives text is an error of the source, not of the network."""

    async def texts() -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        yield "text"

    async with talking_to(answering(reply(body=FILE))) as session:
        with pytest.raises((LocalFileError, RequestInvalid)):
            await session.upload_file(texts())


async def test_slow_upload() -> None:
    """An upload may take longer than any reply, as long as its pieces keep moving."""

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(10):
            await asyncio.sleep(50)
            yield b"x"

    seen: list[Received] = []
    async with talking_to(answering(reply(body=FILE), seen=seen)) as session:
        await session.upload_file(slow())
    assert content_of(seen[0]) == b"x" * 10


async def test_upload_that_stalls() -> None:
    """A service that stops reading is given up."""

    async def handler(_request: Received, _writer: StreamWriter) -> None:
        await asyncio.Event().wait()

    async with talking_to(handler, retry=ONCE, reads_body=False) as session:
        with pytest.raises(ReplyTimeout):
            await session.upload_file(b"x" * (24 << 20))
