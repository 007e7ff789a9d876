"""Uploads whose data is checked first: what is wrong is told before anything is sent."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from aiofinetune import DatasetError, FineTuneSession, LocalFileError, RequestInvalid
from aiofinetune.data import EMBEDDED, FINE_TUNES, JOBS, Rules
from aiofinetune.dialects import DIALECTS
from aiofinetune.local import LocalServer

GOOD = b'{"prompt": "a ->", "completion": " b"}\n'
BAD = GOOD + b"\n" + b'{"prompt": "a ->", "completion": ""}\n'
CHAT = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[FineTuneSession]:
    """A session with a running server."""
    async with (
        LocalServer(tmp_path / "data") as server,
        FineTuneSession(server.api_key, base_url=server.base_url) as session,
    ):
        yield session


def at(position: int, content: bytes) -> io.BytesIO:
    """A file at a position."""
    file = io.BytesIO(content)
    file.seek(position)
    return file


@pytest.mark.parametrize(
    "source",
    [lambda path: path, str, Path.read_bytes, lambda path: at(5, b"x" * 5 + path.read_bytes())],
    ids=["path", "text", "bytes", "part of a file"],
)
async def test_wrong_data_is_not_sent(session: FineTuneSession, tmp_path: Path, source: Callable[[Path], Any]) -> None:
    """The error names the file, the line and what to do, and nothing is sent until the data is right."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(BAD)
    with pytest.raises(DatasetError, match=r"line 3: The completion is empty.*aiofinetune data check") as refused:
        await session.upload_file(source(path), filename="named.jsonl", check=True)
    assert refused.value.path in (str(path), "named.jsonl")
    assert refused.value.line == 3
    assert await session.list_files() == ()
    path.write_bytes(BAD.replace(b'""', b'"b"'))
    file = await session.upload_file(path, check=True)
    assert await session.download_file(file.id) == path.read_bytes()


async def test_what_is_sent_starts_where_the_check_started(session: FineTuneSession) -> None:
    """A file that was read to its end by the check is sent from the position at which it was given."""
    file = at(7, b"garbage" + GOOD)
    uploaded = await session.upload_file(file, check=True)
    assert not file.closed
    assert await session.download_file(uploaded.id) == GOOD


async def test_what_can_be_read_once_is_refused(session: FineTuneSession) -> None:
    """An iterator or a pipe would be used up by the check."""

    async def pieces() -> AsyncIterator[bytes]:
        yield GOOD

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    for source in (pieces(), Pipe(GOOD)):
        with pytest.raises(RequestInvalid, match="can be read only once"):
            await session.upload_file(source, check=True)
    assert await session.list_files() == ()


async def test_rules_can_be_given(session: FineTuneSession) -> None:
    """At this machine the embedded server's rules apply; others can be passed."""
    assert (await session.upload_file(CHAT, check=True)).bytes == len(CHAT)
    with pytest.raises(DatasetError, match="fewer examples than the service takes"):
        await session.upload_file(CHAT, check=JOBS)


@pytest.mark.parametrize(
    ("dialect", "url", "rules"),
    [
        ("fine-tunes", "https://example.com/v1", FINE_TUNES),
        ("jobs", "https://example.com/v1", JOBS),
        ("nebius", "https://example.com/v1", JOBS),
        ("fine-tunes", "http://localhost:1/v1", EMBEDDED),
        ("jobs", "http://127.0.0.1:1/v1", EMBEDDED),
    ],
)
def test_the_rules_are_those_of_the_service(dialect: str, url: str, rules: Rules) -> None:
    """A dialect has its rules; on this machine it is the embedded server that speaks it."""
    assert FineTuneSession("key", base_url=url, dialect=dialect).data_rules == rules
    assert all(each.rules().shapes for each in DIALECTS.values())


async def test_a_check_ends_when_it_is_cancelled(session: FineTuneSession) -> None:
    """A cancelled call stops reading, sends nothing, and leaves no thread behind."""
    reading = threading.Event()

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if size and size > 1:
                reading.set()
            return GOOD * 1000 if size and size > 1 else b""

    call = asyncio.create_task(session.upload_file(Endless(GOOD), check=True))
    await asyncio.to_thread(reading.wait)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await session.list_files() == ()


async def test_what_a_file_raises_is_told_as_an_error_of_this_package(session: FineTuneSession) -> None:
    """A file that cannot be read fails the check with its reason."""

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if size:
                raise ZeroDivisionError("no disk")
            return b""

    with pytest.raises(LocalFileError, match="no disk"):
        await session.upload_file(Broken(GOOD), check=True)


async def test_no_check_by_default(session: FineTuneSession) -> None:
    """Whatever the data is, it is sent if no check is asked for."""
    assert (await session.upload_file(json.dumps([]).encode())).bytes == 2
