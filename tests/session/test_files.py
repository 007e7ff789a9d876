from __future__ import annotations

import asyncio
import io
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from aiofinetune import LocalFileError, RequestInvalid
from aiofinetune._http.upload_body import Form
from aiofinetune._http.upload_source import Content, opened_source
from aiofinetune._local_files import opened, save
from tests.support.checks import nothing_left_open

DATA = bytes(range(256)) * 3000


async def pieces_of(content: Content) -> bytes:
    pieces = []
    while piece := await content.read():
        pieces.append(piece)
    return b"".join(pieces)


async def generated(*pieces: bytes) -> AsyncIterator[bytes]:  # the source that waits is a user's
    for piece in pieces:
        yield piece


class Pieces:
    """An async iterable that is no iterator, and no generator."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return generated(b"a", b"", b"bc")


class Pipe(io.BytesIO):
    """A file that cannot go back."""

    def seekable(self) -> bool:  # noqa: D102  # as the class says
        return False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize("source_of", [str, Path, lambda path: path], ids=["str", "Path", "PathLike"])
async def test_path(path: Path, source_of: Callable[[Path], Any]) -> None:
    """A path is opened, known by its own name, and read as often as asked."""
    async with opened_source(source_of(path)) as content:
        assert (content.name, content.size) == ("train.jsonl", len(DATA))
        assert await pieces_of(content) == DATA
        assert content.rewind is not None
        await content.rewind(0)
        assert await pieces_of(content) == DATA


@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=len)
async def test_bytes(data: bytes) -> None:
    """Bytes are a source without a name."""
    async with opened_source(data) as content:
        assert (content.name, content.size) == (None, len(data))
        assert await pieces_of(content) == data
        assert content.rewind is not None
        await content.rewind(0)
        assert await pieces_of(content) == data


async def test_open_file(path: Path) -> None:
    """An open file is read from where it stands, goes back there, keeps its name, and is left open."""
    with path.open("rb") as file:
        file.seek(1000)
        async with opened_source(file) as content:
            assert (content.name, content.size) == ("train.jsonl", len(DATA) - 1000)
            assert await pieces_of(content) == DATA[1000:]
            assert content.rewind is not None
            await content.rewind(0)
            assert await pieces_of(content) == DATA[1000:]
        assert not file.closed


async def test_pipe() -> None:
    """A file that cannot go back has no known size, and is read once."""
    async with opened_source(Pipe(DATA)) as content:
        assert (content.name, content.size, content.rewind) == (None, None, None)
        assert await pieces_of(content) == DATA


async def test_file_descriptor(path: Path) -> None:
    """A file opened by its number has a number for a name, which is none."""
    with os.fdopen(os.open(path, os.O_RDONLY), "rb") as file:
        async with opened_source(file) as content:
            assert content.name is None


@pytest.mark.parametrize("source", [generated(b"a", b"", b"bc"), Pieces()], ids=["generator", "iterable"])
async def test_pieces(source: AsyncIterator[bytes]) -> None:
    """An async iterator is read once to its end; an empty piece is not that."""
    async with opened_source(source) as content:
        assert (content.name, content.size, content.rewind) == (None, None, None)
        assert await pieces_of(content) == b"abc"
        assert await content.read() == b""


def closed_file() -> BinaryIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


@pytest.mark.parametrize(
    "source", [None, 7, ["a"], {b"x"}, io.StringIO("text"), bytearray(b"x")], ids=lambda source: type(source).__name__
)
async def test_no_source(source: Any) -> None:
    """What gives no bytes is refused by the parameter's name, with what it may be."""
    with pytest.raises(RequestInvalid, match=r"^file: expected a path, bytes, .*" + type(source).__name__):
        async with opened_source(source):
            pass


async def test_text_file(path: Path) -> None:
    """A file opened as text is refused: its bytes are not the file's."""
    with path.open(encoding="latin-1") as file, pytest.raises(RequestInvalid, match="'rb'"):
        async with opened_source(file):  # type: ignore[arg-type]  # the wrong type is the point
            pass


async def test_wrapped_text_file() -> None:
    """A temporary file opened as text, which the standard library wraps, is refused or cannot be read; no more."""
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8") as file:
        file.write("text")
        file.seek(0)
        with pytest.raises((RequestInvalid, LocalFileError)):
            async with opened_source(file) as content:  # type: ignore[arg-type, unused-ignore]  # likewise
                await anext(Form(Content(None, 4, content.read, None), (b"", b""), None))


async def test_closed_file() -> None:
    """A file that is closed already is an error of ours, not the standard library's."""
    with pytest.raises((LocalFileError, RequestInvalid)):
        async with opened_source(closed_file()):
            pass


@pytest.mark.parametrize("name", ["missing.jsonl", "", "missing/train.jsonl", "train.jsonl/x", "a\0b", "x" * 300])
async def test_no_such_file(tmp_path: Path, path: Path, name: str) -> None:
    """A path that cannot be opened is named, with the system's reason chained; a folder is no file."""
    assert path.exists()
    with pytest.raises(LocalFileError) as caught:
        async with opened_source(tmp_path / name):
            pass
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError | ValueError)


# The body of an upload


def form(data: bytes, size: int | None, told: list[tuple[int, int | None]] | None = None) -> Form:
    file = io.BytesIO(data)

    async def read() -> bytes:
        return file.read(1000)

    progress = None if told is None else lambda sent, total: told.append((sent, total))
    return Form(Content("x", size, read, None), (b"<head>", b"<tail>"), progress)


@pytest.mark.parametrize("data", [b"", b"x", DATA[:2500]], ids=len)
@pytest.mark.parametrize("known", [True, False])
async def test_form(data: bytes, known: bool) -> None:
    """The body is what goes before, the file and what goes after; its size, where the file's is known, is true."""
    told: list[tuple[int, int | None]] = []
    body = form(data, len(data) if known else None, told)
    size = body.size
    pieces = [piece async for piece in body]
    assert b"".join(pieces) == b"<head>" + data + b"<tail>"
    assert all(pieces)
    assert size == (len(data) + 12 if known else None)
    assert told == [
        (min(sent, len(data)), len(data) if known else None) for sent in range(1000, len(data) + 1000, 1000)
    ]
    assert body.failure is None
    with pytest.raises(StopAsyncIteration):
        await anext(body)


async def test_form_of_a_large_piece() -> None:
    """However large the pieces of a source are, the body comes in parts that a slow network takes one by one."""
    async with opened_source(generated(DATA * 2, b"end")) as content:
        parts = [part async for part in Form(content, (b"<", b">"), None)]
    assert b"".join(parts) == b"<" + DATA * 2 + b"end>"
    assert max(map(len, parts)) == 256 << 10


async def test_file_that_does_not_block() -> None:
    """A file that says "nothing yet" is refused: what came so far is not all of it."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "wb", 0) as far, os.fdopen(reading, "rb", 0) as near:
        far.write(b"half")
        async with opened_source(near) as content:
            assert await content.read() == b"half"
            with pytest.raises(LocalFileError, match="non-blocking"):
                await content.read()


@pytest.mark.parametrize("size", [2499, 2501, 0, 10_000])
async def test_file_that_changes(size: int) -> None:
    """A file that shrank or grew while it was sent is an error of the file, known before the body ends."""
    body = form(DATA[:2500], size)
    pieces = []
    with pytest.raises(LocalFileError, match="changed"):
        pieces = [piece async for piece in body]
    assert pieces == []
    assert isinstance(body.failure, LocalFileError)


async def test_file_that_cannot_be_read() -> None:
    """What the file's reader raises is kept, for aiohttp would make a broken connection of it."""

    async def read() -> bytes:
        raise OSError(5, "Input/output error")

    body = Form(Content(None, None, read, None), (b"<head>", b"<tail>"), None)
    assert await anext(body) == b"<head>"
    with pytest.raises(OSError, match="Input/output"):
        await anext(body)
    assert isinstance(body.failure, OSError)


# Saving


def reader(*pieces: bytes | BaseException) -> Callable[[], Any]:
    left = list(pieces)

    async def read() -> bytes:
        piece = left.pop(0) if left else b""
        if isinstance(piece, BaseException):
            raise piece
        return piece

    return read


async def test_save(tmp_path: Path) -> None:
    """A file appears with all its bytes, and nothing else does."""
    await save(tmp_path / "new.csv", reader(b"ab", b"c"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"new.csv": b"abc"}


async def test_save_nothing(tmp_path: Path) -> None:
    """An empty file is a file."""
    await save(tmp_path / "new.csv", reader())
    assert (tmp_path / "new.csv").read_bytes() == b""


async def test_save_replaces_at_once(tmp_path: Path) -> None:
    """What was there before stays whole until the new file is, and those who read it go on reading it."""
    target = tmp_path / "old.csv"
    target.write_bytes(b"old")
    seen: list[bytes] = []
    left = [b"new", b"er"]

    async def read() -> bytes:
        seen.append(target.read_bytes())
        return left.pop(0) if left else b""

    target.chmod(0o640)
    with target.open("rb") as held:
        await save(target, read)
        assert held.read() == b"old"
    assert seen == [b"old"] * 3
    assert target.read_bytes() == b"newer"
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("failure", [ValueError("broken"), OSError("broken"), asyncio.CancelledError()], ids=repr)
async def test_save_that_fails(tmp_path: Path, failure: BaseException) -> None:
    """A download that fails or is cancelled half way leaves what was there, nothing else, and its own error."""
    target = tmp_path / "old.csv"
    target.write_bytes(b"old")
    with pytest.raises(type(failure)):
        await save(target, reader(b"new", failure))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old.csv": b"old"}


async def test_save_that_is_cancelled(tmp_path: Path) -> None:
    """A cancelled download leaves no part of a file, and stays cancelled."""
    reading = asyncio.Event()

    async def read() -> bytes:
        reading.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(save(tmp_path / "new.csv", read))
    await reading.wait()
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/new.csv", "file/new.csv", "folder", "a\0b", "x" * 300, "/", ".."])
async def test_save_nowhere(tmp_path: Path, name: str) -> None:
    """A place that cannot be written is an error of ours that names it, and no part of a file is left."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    target = Path(name) if name == "/" else tmp_path / name
    with pytest.raises(LocalFileError) as caught:
        await save(target, reader(b"x"))
    assert str(target) in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


async def test_save_under_a_long_name(tmp_path: Path) -> None:
    """A name as long as the file system allows can be saved under."""
    name = "x" * 255
    await save(tmp_path / name, reader(b"x"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


async def test_opening_that_is_cancelled(tmp_path: Path) -> None:
    """A file whose opening is cancelled is closed once the thread has opened it."""
    path = tmp_path / "file"
    path.write_bytes(b"x")

    async def open_it() -> None:
        async with opened(path, "rb"):
            raise AssertionError

    async with nothing_left_open():
        task = asyncio.create_task(open_it())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """What would hold up whoever opens it until another process comes along is not opened, to read or to write."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(LocalFileError, match="is not a regular file"):
        async with opened(pipe, "rb"):
            raise AssertionError
    with pytest.raises(LocalFileError, match="is not a regular file"):
        await save(pipe, reader(b"x"))
    assert pipe.is_fifo()


async def test_saving_through_a_link(tmp_path: Path) -> None:
    """A link stays one, and the file that it leads to is replaced."""
    link = tmp_path / "link"
    (tmp_path / "file").write_bytes(b"old")
    link.symlink_to("file")
    await save(link, reader(b"new"))
    assert link.is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
