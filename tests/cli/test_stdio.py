"""Standard output that cannot be written: a full disk, and a pipe that nobody reads."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.servers.batchserver import BatchServer
from tests.servers.rawserver import KEY

COMMAND = (sys.executable, "-m", "aiofinetune")
FULL = "aiofinetune: stdout cannot be written: No space left on device"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def unread_pipe() -> int:
    """The end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


async def run(*arguments: str, url: str = "http://127.0.0.1:9/v1", out: str = "full") -> tuple[int | None, list[str]]:
    """Run a command whose stdout is a full disk or an unread pipe, or whose stderr is full; its status and stderr."""
    stdout = unread_pipe() if out == "unread" else os.open("/dev/full", os.O_WRONLY)
    streams = (PIPE, stdout) if out == "stderr is full" else (stdout, PIPE)
    environment = os.environ | {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url}
    try:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, env=environment, stdout=streams[0], stderr=streams[1]
        )
    finally:
        os.close(stdout)
    async with asyncio.timeout(30):
        _, stderr = await process.communicate()
    return process.returncode, (stderr or b"").decode().splitlines()


def sweep(server: BatchServer, count: int) -> str:
    file = server.add_file("train.jsonl", b"train")
    lines = ({"label": f"job-{n}", "training_file": file, "n_epochs": n} for n in range(1, count + 1))
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return "jobs.jsonl"


@pytest.mark.parametrize(("out", "status"), [("full", 5), ("unread", 141)])
@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_a_job_that_was_made_is_named(out: str, status: int, options: tuple[str, ...]) -> None:
    """The id of a job that costs money is on stderr where stdout fails."""
    server = BatchServer(lasts=None)
    file = server.add_file("train.jsonl", b"train")
    async with server.listening() as url:
        done, said = await run("create", file, "-m", "ada", *options, url=url, out=out)
    (job,) = server.jobs
    assert done == status
    assert said == [*([FULL] if out == "full" else []), f"  created {job}; to follow it: aiofinetune follow {job}"]


@pytest.mark.parametrize("words", ["--help", "data checks --json"])
async def test_what_needs_no_service_fails_alike(words: str) -> None:
    """Help and texts that are printed without a session end with a line too, and never with a traceback."""
    assert await run(*words.split()) == (5, [FULL])


@pytest.mark.parametrize(
    ("out", "status", "words"), [("full", 5, FULL[13:]), ("unread", 141, "stdout cannot be written: Broken pipe")]
)
async def test_a_batch_stops_and_its_journal_goes_on(out: str, status: int, words: str) -> None:
    """It sends no more, says so and how to go on on stderr, and the same command makes no job twice.

    That one cannot write to stderr, which changes nothing.
    """
    server = BatchServer()
    async with server.listening() as url:
        name = sweep(server, 5)
        command = ("batch", name, "--max-active", "1", "--poll-interval", "0.05")
        done, said = await run(*command, url=url, out=out)
        assert (done, [line for line in said if "Traceback" in line]) == (status, [])
        assert any(line[20:].startswith(f"{words}. Sending no more requests.") for line in said)
        assert said[-1].endswith("To continue: aiofinetune batch jobs.jsonl --max-active 1 --poll-interval 0.05")
        assert len(server.jobs) < 5
        done, _ = await run(*command, url=url, out="stderr is full")
    assert (done, len(server.jobs)) == (0, 5)
