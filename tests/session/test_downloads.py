"""Downloads: whole, cut, tried again, and to where nothing can be written."""

from __future__ import annotations

import asyncio
import resource
from asyncio import StreamWriter
from pathlib import Path

import pytest

from aiofinetune import ConnectionLost, LocalFileError, NotFound, ProtocolViolation, ReplyTimeout
from tests.servers.rawserver import Received, answering, knowing_file, reply, talking_to
from tests.session.calls import CUT, DATA, ONCE
from tests.support.limits import limited

pytestmark = pytest.mark.fastforward


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
async def test_download_of_another_length(size: int, tmp_path: Path) -> None:
    """A content that is not as long as the file is not the file, whole as its reply may be: a page, say."""
    async with talking_to(knowing_file(size, answering(reply(body=DATA)))) as session:
        with pytest.raises((ConnectionLost, ProtocolViolation), match=f"{size} bytes"):
            await session.download_file("file-1", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"x", DATA * 3], ids=len)
async def test_download(data: bytes, tmp_path: Path) -> None:
    """A file comes as it is at the service: as bytes, or at a path."""
    async with talking_to(knowing_file(len(data), answering(reply(body=data)))) as session:
        assert await session.download_file("file-1") == data
        path = await session.download_file("file-1", tmp_path / "a.csv")
        assert path == tmp_path / "a.csv"
        assert path.read_bytes() == data
        assert await session.download_file("file-1", str(path)) == path
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("raw", [*CUT, b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"x" * 8999])
async def test_cut_download(raw: bytes, tmp_path: Path) -> None:
    """A download that is cut short is a lost connection; no part of the file is left, and what was there stays."""
    target = tmp_path / "a.csv"
    target.write_bytes(b"old")

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    async with talking_to(knowing_file(8999 + 1, handler)) as session:
        with pytest.raises(ConnectionLost):
            await session.download_file("file-1", target)
        with pytest.raises(ConnectionLost):
            await session.download_file("file-1")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.csv": b"old"}


async def test_download_again(tmp_path: Path) -> None:
    """A download that is cut short is fetched again from its start."""
    count = 0

    async def handler(_request: Received, writer: StreamWriter) -> None:
        nonlocal count
        count += 1
        whole = reply(body=DATA)
        writer.write(whole if count == 3 else whole[:-1000])
        writer.close()

    async with talking_to(knowing_file(len(DATA), handler)) as session:
        path = await session.download_file("file-1", tmp_path / "a.csv")
    assert path.read_bytes() == DATA


async def test_download_that_stalls(tmp_path: Path) -> None:
    """A download of which nothing comes any more is given up, and leaves no file."""

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(reply(body=DATA)[:-1])
        await request.gone()

    async with talking_to(knowing_file(len(DATA), handler), retry=ONCE) as session:
        with pytest.raises(ReplyTimeout):
            await session.download_file("file-1", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


async def test_cancelled_download(tmp_path: Path) -> None:
    """A cancelled download leaves no part of a file, and frees its connection."""
    came, gone = asyncio.Event(), asyncio.Event()

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(reply(body=DATA)[:-1])
        await writer.drain()
        came.set()
        await request.gone()
        gone.set()

    async with talking_to(knowing_file(len(DATA), handler)) as session:
        task = asyncio.create_task(session.download_file("file-1", tmp_path / "a.csv"))
        await came.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()
    assert list(tmp_path.iterdir()) == []


async def test_download_of_nothing(tmp_path: Path) -> None:
    """An error in place of the content is that error, and no file."""
    answers = answering(reply(404, {"error": {"message": "no such file"}}))
    async with talking_to(knowing_file(5, answers)) as session:
        with pytest.raises(NotFound, match="no such file"):
            await session.download_file("file-1", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


async def test_download_to_nowhere(tmp_path: Path) -> None:
    """A place that cannot be written is an error of the file, and the content is not fetched again."""
    seen: list[Received] = []
    async with talking_to(knowing_file(len(DATA), answering(reply(body=DATA), seen=seen))) as session:
        with pytest.raises(LocalFileError):
            await session.download_file("file-1", tmp_path / "missing" / "a.csv")
    assert len(seen) == 1


@pytest.mark.parametrize("size", [100, 100_000])
async def test_download_to_a_full_disk(size: int, tmp_path: Path) -> None:
    """A disk without room is an error of the file, be the content short or long, and no part of it is left."""
    data = b"x" * size
    async with talking_to(knowing_file(size, answering(reply(body=data)))) as session:
        with limited(resource.RLIMIT_FSIZE, 50), pytest.raises(LocalFileError, match=r"a\.csv: File too large"):
            await session.download_file("file-1", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []
