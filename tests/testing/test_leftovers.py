"""What a killed server of tests leaves behind in memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiofinetune.testing import FineTuneServer, _server
from aiofinetune.testing._leftovers import PREFIX

SERVE = """
import asyncio, sys
from aiofinetune.testing import FineTuneServer, _server

async def serve():
    _server._MEMORY = sys.argv[1]
    async with FineTuneServer():
        print("serving", flush=True)
        await asyncio.Event().wait()

asyncio.run(serve())
"""


@contextlib.asynccontextmanager
async def served(memory: Path) -> AsyncIterator[Path]:
    """Run a server in a process of its own, whose memory is a folder; return its folder, and kill it in the end."""
    before = set(memory.iterdir())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVE, str(memory)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"serving\n"
        (folder,) = set(memory.iterdir()) - before
        yield folder
    finally:
        process.kill()
        await process.communicate()


async def test_the_next_server_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves what a running server uses, what is new, what is behind a link, and what is not a server's."""
    monkeypatch.setattr(_server, "_MEMORY", str(tmp_path))
    linked = tmp_path / "linked"
    (linked / "precious").mkdir(parents=True)
    (tmp_path / f"{PREFIX}link").symlink_to(linked)
    (tmp_path / f"{PREFIX}new").mkdir()
    (tmp_path / f"{PREFIX}file").touch()
    async with served(tmp_path) as running:
        async with served(tmp_path) as killed:
            pass
        for folder in (running, killed, linked):
            os.utime(folder, (0, 0))
        async with FineTuneServer():
            pass
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {running.name, "linked", *(f"{PREFIX}{each}" for each in ("link", "new", "file"))}
        assert (linked / "precious").exists()
        assert (running / "server.sqlite3").exists()
