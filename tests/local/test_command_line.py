"""The command line, run as its users run it: as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

from aiofinetune import FineTuneSession
from aiofinetune.cli._demo import examples
from tests.cli import shell

COMMAND = (sys.executable, "-m", "aiofinetune")


@asynccontextmanager
async def running(*arguments: str, **environment: str) -> AsyncIterator[Process]:
    """The command, killed in the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=PIPE, stderr=PIPE, env=os.environ | environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def exported(process: Process) -> dict[str, str]:
    """The two variables that ``serve`` says to export."""
    assert process.stdout is not None
    lines = [(await process.stdout.readline()).decode().strip() for _ in range(2)]
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


async def test_serve_prints_what_points_a_client_at_it_and_stops_at_ctrl_c(tmp_path: Path) -> None:
    """A session made from the two exported lines works, and an interrupt ends the server with status 0."""
    async with running("serve", "--port", "0", "--local-data", str(tmp_path / "data")) as process:
        variables = await exported(process)
        assert list(variables) == ["OPENAI_BASE_URL", "OPENAI_API_KEY"]
        async with FineTuneSession(variables["OPENAI_API_KEY"], base_url=variables["OPENAI_BASE_URL"]) as session:
            assert "ada" in {model.id for model in await session.list_models()}
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
    assert process.returncode == 0
    together = variables["OPENAI_BASE_URL"].removesuffix("/v1") + "/together/v1"
    assert f"OPENAI_BASE_URL={together} with AIOFINETUNE_DIALECT=together" in stderr.decode()


async def test_serve_takes_the_key_from_the_environment() -> None:
    """A key that is given is the key that clients must send."""
    async with running("serve", "--port", "0", AIOFINETUNE_API_KEY="the-key") as process:
        assert (await exported(process))["OPENAI_API_KEY"] == "the-key"
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


def test_serve_says_that_stdout_is_full() -> None:
    """Where what points a client at the server cannot be written, one line says so, and nothing is served."""
    with Path("/dev/full").open("wb") as full:
        command = (*COMMAND, "serve", "--port", "0")
        done = subprocess.run(command, stdout=full, stderr=PIPE, timeout=60, check=False)  # noqa: S603  # ours
    assert done.stderr == b"aiofinetune: stdout cannot be written: No space left on device\n"
    assert done.returncode == 5


def test_serve_says_how_its_key_stays_out_of_the_list_of_processes() -> None:
    """The help names the variable that holds the key."""
    assert "AIOFINETUNE_API_KEY" in shell("serve", "--help").stdout


async def test_serve_refuses_other_machines_without_a_key() -> None:
    """Listening on every address without a key of one's own is one line on stderr and a failure."""
    async with running("serve", "--host", "0.0.0.0", "--port", "0") as process:  # to see it refused
        stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (2, b"")
    assert stderr.startswith(b"aiofinetune: --host: ")
    assert b"; pass an --api-key of your own" in stderr
    assert stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "model"),
    [(("serve", "--port", "0", "--model", "tiny={}"), "tiny"), (("demo", "--model-path", "{}"), "open-model")],
    ids=["serve", "demo"],
)
async def test_an_open_model_that_cannot_be_used_is_refused_at_the_start(
    arguments: tuple[str, ...], model: str, tmp_path: Path
) -> None:
    """One line says what is wrong with the folder, or which extra is missing, and nothing is served."""
    async with running(*(argument.format(tmp_path) for argument in arguments)) as process:
        stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (2, b"")
    assert stderr.startswith(f"aiofinetune: model {model}: ".encode())
    assert b"config.json is missing" in stderr or b"aiofinetune[transformers]" in stderr


def assert_demonstrated(shown: str) -> None:
    """Check that a demonstration shows its job's events, its learning curve and its answers."""
    for words in ("Fine-tune succeeded", "Learning curve", "Held-out prompts", "Accuracy of the answers"):
        assert words in shown


async def test_demo_tunes_a_model_that_beats_the_majority() -> None:
    """The demonstration runs to its end, and shows its events, learning curve and answers."""
    async with running("demo", "--model", "ada", "--n-epochs", "1", COLUMNS="100") as process:
        stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    assert_demonstrated(stdout.decode())


@pytest.mark.parametrize("dialect", ["jobs", "together"])
def test_demo_speaks_each_api(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so through either of the other APIs."""
    every = examples()
    few = attrs.evolve(every, training=every.training[:600], held_out=every.held_out[:100])
    monkeypatch.setattr("aiofinetune.cli._demo.examples", lambda: few)
    done = shell("demo", "--model", "ada", "--n-epochs", "1", "--dialect", dialect, COLUMNS="100")
    assert done.exit_code == 0, done.output
    assert_demonstrated(done.stdout)


async def test_the_command_line_says_what_it_needs() -> None:
    """Without click, the command says in one line what to install."""
    code = "import sys; sys.modules['click'] = None; from aiofinetune.__main__ import main; main()"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=PIPE, stderr=PIPE)
    _, stderr = await process.communicate()
    assert process.returncode == 1
    assert stderr == b"the command line needs click: pip install 'aiofinetune[cli]'\n"
