"""The command line as processes: what is imported, what a signal does, and what a terminal shows."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.batch.test_command_line import Terminal, on_a_terminal
from tests.servers.batchserver import BatchServer
from tests.servers.rawserver import KEY

COMMAND = (sys.executable, "-m", "aiofinetune")


@asynccontextmanager
async def running(*arguments: str, url: str) -> AsyncIterator[Process]:
    """A command on pipes, killed in the end if it still runs."""
    environment = os.environ | {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url}
    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, env=environment, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(30):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def test_help_and_completion_wait_for_nothing() -> None:
    """The list of commands imports no more than click, not even rich, and completion offers all commands alike."""
    code = (
        "import sys; from aiofinetune.__main__ import main; sys.argv = ['aiofinetune', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, sorted({'asyncio', 'rich', 'attrs', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  # ours
    assert done.stdout.splitlines()[-1] == "0 []"
    words = {"_AIOFINETUNE_COMPLETE": "bash_complete", "COMP_WORDS": "aiofinetune c", "COMP_CWORD": "1"}
    code = "import sys; from aiofinetune.cli._commands import cli; cli(prog_name='aiofinetune')"
    done = subprocess.run(  # noqa: S603  # ours
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | words, check=False
    )
    assert {"plain,create", "plain,cancel", "plain,checkpoints"} <= set(done.stdout.split())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_an_interrupted_follow_leaves_the_job(number: signal.Signals, status: int) -> None:
    """Ctrl-C ends the following alone, and says how to go on and how to cancel; the status says which signal it was."""
    server = BatchServer(lasts=None)
    job = server.add_job()
    async with server.listening() as url, running("follow", job, "--base-url", url, url="") as process:
        assert process.stdout is not None
        assert (await process.stdout.readline()).endswith(f"  Created fine-tune: {job}\n".encode())
        process.send_signal(number)
        _, stderr = await process.communicate()
        assert server.active == {job}
    assert process.returncode == status
    assert stderr.decode().splitlines() == [
        f"No longer following {job}. The job continues.",
        f"To follow it again: aiofinetune follow {job} --base-url {url}",
        f"To cancel it: aiofinetune cancel {job} --base-url {url}",
    ]


async def test_an_interrupted_create_says_what_is_known() -> None:
    """A create that is interrupted after it was sent says that there may be a job."""
    server = BatchServer(lasts=None)
    file = server.add_file("train.jsonl", b"train")
    server.held["create"] = asyncio.Event()
    async with server.listening() as url, running("create", file, url=url) as process:
        await server.until(lambda: bool(server.active))
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
        server.held["create"].set()
    assert process.returncode == 130
    assert b"may have made a job; in 'aiofinetune list', look for a new job" in stderr


async def test_on_a_terminal_there_is_a_bar_below_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the events go by above a bar with the job's id, which is gone in the end."""
    monkeypatch.setattr("tests.batch.test_command_line.COMMAND", COMMAND)
    server = BatchServer(lasts=None)
    job = server.add_job()
    screen: Terminal
    async with server.listening() as url, on_a_terminal("follow", job, url=url, columns=60) as (process, screen):
        shown = await screen.shows(f"Created fine-tune: {job}", "0:00:0")
        assert shown.splitlines()[-1].startswith(f"{job} ")
        server.end(job)
        assert await process.wait() == 0
        text = await screen.shows_at_the_end()
    assert "0:00:0" not in text
    assert f"fine-tuned model  curie:ft-{job}" in text
