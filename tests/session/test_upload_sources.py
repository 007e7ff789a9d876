"""What can be uploaded, and what is refused before anything is sent."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import mmap
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from aiofinetune import FineTuneError, LocalFileError, RequestInvalid
from tests.servers.rawserver import Received, answering, reply, talking_to

pytestmark = pytest.mark.fastforward

DATA: Final = b'{"prompt": "a", "completion": " b"}\n' * 10_000
FILE: Final = {"id": "file-1", "object": "file", "bytes": 5, "filename": "train.jsonl", "purpose": "fine-tune"}
UPLOADED: Final = reply(body=FILE)


def content_of(request: Received) -> bytes:
    """The file's bytes in the form that came in."""
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    _head, _, rest = request.body.partition(b"Content-Type: application/octet-stream\r\n\r\n")
    return rest.removesuffix(b"\r\n--" + boundary + b"--\r\n")


class _ReadOnly:
    """Has a `read`, and nothing else of a file."""

    def __init__(self, data: bytes, kind: Callable[[bytes], Any] = bytes) -> None:
        self._file = io.BytesIO(data)
        self._kind = kind

    def read(self, size: int = -1) -> Any:
        return self._kind(self._file.read(size))


class _UploadFile:
    """As Starlette's: coroutines, no tell."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        self.size = len(data)
        self.filename = "folder/train.jsonl"

    async def read(self, size: int = -1) -> bytes:
        await asyncio.sleep(0)
        return self._file.read(size)

    async def seek(self, offset: int) -> None:
        self._file.seek(offset)


class _AsyncFile(_UploadFile):
    """As of aiofiles: its iterator gives lines."""

    def __aiter__(self) -> _AsyncFile:
        return self

    async def __anext__(self) -> str:
        raise AssertionError


def mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def spooled() -> Any:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115  # the test closes it
    file.write(DATA)
    file.seek(0)
    return file


def zipped(folder: Path) -> Any:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", DATA)
    return zipfile.ZipFile(folder / "a.zip").open("a.jsonl")


def packed(path: Path, module: Any) -> Any:
    path.write_bytes(module.compress(DATA))
    return module.open(path)


SOURCES: Final[dict[str, Callable[[Path], Any]]] = {
    "read alone": lambda _: _ReadOnly(DATA),
    "read of bytearray": lambda _: _ReadOnly(DATA, bytearray),
    "read of memoryview": lambda _: _ReadOnly(DATA, memoryview),
    "UploadFile": lambda _: _UploadFile(DATA),
    "async file": lambda _: _AsyncFile(DATA),
    "mmap": lambda folder: mapped(folder / "train.jsonl"),
    "spooled": lambda _: spooled(),
    "zip member": zipped,
    "gzip": lambda folder: packed(folder / "a.gz", gzip),
    "bz2": lambda folder: packed(folder / "a.bz2", bz2),
    "path as bytes": lambda folder: _BytesPath(folder / "train.jsonl"),
}


class _BytesPath:
    """A path whose text is bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self._path)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
async def test_sources(make: Callable[[Path], Any], tmp_path: Path) -> None:
    """Whatever is read like a file of bytes arrives byte for byte."""
    (tmp_path / "train.jsonl").write_bytes(DATA)
    source = make(tmp_path)
    seen: list[Received] = []
    try:
        async with talking_to(answering(UPLOADED, seen=seen)) as session:
            assert (await session.upload_file(source)).id == "file-1"
    finally:
        getattr(source, "close", lambda: None)()
        getattr(getattr(source, "_fileobj", None), "close", lambda: None)()
    assert content_of(seen[0]) == DATA
    assert (b'filename="train.jsonl"' in seen[0].body) == isinstance(source, _UploadFile | _BytesPath)


@pytest.mark.parametrize("is_open", [True, False])
async def test_files_that_say_they_are_empty(is_open: bool) -> None:
    """A file of /proc says that it has 0 bytes, and is sent with all that it holds, on a second try too."""
    path = Path("/proc/version")
    seen: list[Received] = []
    async with talking_to(answering(reply(503, Retry_After="0"), UPLOADED, seen=seen)) as session:
        with io.FileIO(path) as file:
            assert (await session.upload_file(file if is_open else path)).id == "file-1"
    assert [content_of(request) for request in seen] == [path.read_bytes()] * 2


class _Broken(_ReadOnly):
    """Fails once there is more than nothing to give."""

    def read(self, size: int = -1) -> Any:
        if size:
            raise ZeroDivisionError("own words")
        return b""


class _AsyncBroken(_UploadFile):
    """The same, awaited."""

    async def read(self, size: int = -1) -> bytes:
        if size:
            raise ZeroDivisionError("own words")
        return b""


class _NoSize:
    """Reads all, always."""

    def read(self) -> bytes:
        return DATA


class _AsyncNoSize:
    """The same, awaited."""

    async def read(self) -> bytes:
        return DATA


class _Unseekable(io.BytesIO):
    """Says that it can seek, and cannot."""

    def tell(self) -> int:
        raise ZeroDivisionError("own words")


class _AsyncText:
    """Gives text."""

    async def read(self, _size: int = -1) -> str:
        return ""


def at_end(file: Any) -> Any:
    file.seek(0, os.SEEK_END)
    return file


async def read_before(file: _UploadFile) -> _UploadFile:
    await file.read()
    return file


TEXTS: Final = {
    "lines": 'prompt,completion\n"a","b"\n',
    "one line of JSON": '{"prompt": "a", "completion": " b"}',
    "a list": ' [{"prompt": "a"}]',
    "5 MB": DATA.decode() * 3,
    "5 MB in one line": "x" * 5_000_000,
    "a path of it": Path(DATA.decode()),
}


async def refused(source: Any) -> FineTuneError:
    """The error of an upload, which must not have sent anything."""
    seen: list[Received] = []
    async with talking_to(answering(UPLOADED, seen=seen)) as session:
        with pytest.raises(FineTuneError) as caught:
            await session.upload_file(source)
    assert seen == []
    return caught.value


@pytest.mark.parametrize("source", TEXTS.values(), ids=TEXTS)
async def test_text_that_is_data(source: str | Path) -> None:
    """Text that is the data itself is no path, and the error shows only its start."""
    error = await refused(source)
    assert isinstance(error, RequestInvalid)
    assert "pass data as bytes" in str(error)
    assert len(str(error)) < 300


@pytest.mark.parametrize("name", ["{a}", "two\nlines", "[1]"])
async def test_odd_paths(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose name looks like data is still a file."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(DATA)
    seen: list[Received] = []
    async with talking_to(answering(UPLOADED, seen=seen)) as session:
        assert (await session.upload_file(name)).id == "file-1"
    assert content_of(seen[0]) == DATA


@pytest.mark.parametrize("kind", ["memory", "file", "mmap", "UploadFile"])
async def test_file_at_its_end(kind: str, tmp_path: Path) -> None:
    """A file that was written or read to its end is refused, for nothing would be sent; an empty one is sent."""
    path = tmp_path / "a"
    path.write_bytes(DATA)
    with path.open("rb") as file, mapped(path) as pages:
        source = {
            "memory": at_end(io.BytesIO(DATA)),
            "file": at_end(file),
            "mmap": at_end(pages),
            "UploadFile": await read_before(_UploadFile(DATA)),
        }[kind]
        error = await refused(source)
    assert isinstance(error, RequestInvalid)
    assert "seek(0)" in str(error)
    async with talking_to(answering(UPLOADED)) as session:
        for empty in (io.BytesIO(), _UploadFile(b""), _ReadOnly(b"")):
            assert (await session.upload_file(empty)).id == "file-1"


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        (_NoSize(), RequestInvalid, "file opened in binary mode"),
        (_AsyncNoSize(), RequestInvalid, "file opened in binary mode"),
        (_AsyncText(), RequestInvalid, "_AsyncText, whose read() returns str"),
        (io.StringIO("a"), RequestInvalid, "StringIO, whose read() returns str"),
        (_AsyncBroken(DATA), LocalFileError, "own words"),
        (_Unseekable(DATA), LocalFileError, "own words"),
        (7, RequestInvalid, "got int"),
        (None, RequestInvalid, "got NoneType"),
        ([b"a"], RequestInvalid, "got list"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_is_no_file(source: Any, kind: type[FineTuneError], words: str) -> None:
    """What cannot be read as bytes is refused in our words, and no coroutine is left that was never awaited."""
    error = await refused(source)
    assert type(error) is kind
    assert words in str(error)


async def test_file_that_fails_while_it_is_sent() -> None:
    """What a read raises in the middle of an upload is an error of the file, with the cause chained."""
    async with talking_to(answering(UPLOADED)) as session:
        with pytest.raises(LocalFileError, match="own words") as caught:
            await session.upload_file(_Broken(DATA))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
