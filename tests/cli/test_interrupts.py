"""Signals before a command has begun, while it ends, and what is said of what they leave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.batch.test_command_line import on_a_terminal
from tests.cli.test_processes import COMMAND, running
from tests.servers.batchserver import BatchServer
from tests.servers.rawserver import KEY

EARLY = """
import os, signal, sys

# What runs the tests may be in the background of a shell, which then has this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

from aiofinetune.__main__ import main

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Finder())
sys.argv = ["aiofinetune", "create", "file-1"]
main()
"""
"""Sends a signal when a module is imported."""


@pytest.mark.parametrize("module", ["click", "aiofinetune.cli._jobs", "aiofinetune.cli._data_check"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_modules_are_imported(module: str, number: signal.Signals, status: int) -> None:
    """Ctrl-C in the first second ends a command with the status that says so, and without a traceback."""
    environment = os.environ | {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    code = EARLY.format(module=module, number=int(number))
    done = subprocess.run(  # noqa: S603  # ours
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


async def test_ctrl_c_at_a_question_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is asked whether to delete, and presses Ctrl-C, need not answer. A shell has 130 for it."""
    monkeypatch.setattr("tests.batch.test_command_line.COMMAND", COMMAND)
    server = BatchServer()
    async with server.listening() as url, on_a_terminal("files", "delete", "file-1", url=url) as (process, screen):
        await screen.shows("Delete 1 file at the service?")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == -signal.SIGINT


async def test_jobs_that_are_left_by_a_second_signal_are_named(tmp_path: Path) -> None:
    """With --cancel-on-exit the last line names the jobs that were not cancelled, and how to cancel them.

    What to do for quitting at once is said of the signal that came.
    """
    server = BatchServer(lasts=None)
    file = server.add_file("train.jsonl", b"train")
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(json.dumps({"training_file": file, "n_epochs": n}) for n in (1, 2, 3)))
    async with server.listening() as url, running("batch", str(path), "--cancel-on-exit", url=url) as process:
        await server.until(lambda: server.asked["stream"] == 3)
        server.held["cancel"] = asyncio.Event()
        process.send_signal(signal.SIGTERM)
        await server.until(lambda: server.asked["cancel"] == 3)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = await process.communicate()
        server.held["cancel"].set()
        jobs = set(server.jobs)
    lines = [line[20:] for line in stdout.decode().splitlines()]
    assert (process.returncode, b"Traceback" in stderr) == (143, False)
    assert lines[0] == "Sending no more requests. Active jobs are cancelled. Send SIGTERM again to quit at once"
    words, _, command = lines[-1].partition(" To cancel: aiofinetune cancel ")
    assert words == "3 jobs were not cancelled, and may still run and cost money."
    assert set(command.split()) == jobs
