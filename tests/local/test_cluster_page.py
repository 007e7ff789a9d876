"""The README's page "Past one machine": each of its commands is run on loopback, with two workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import ssl
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import aiofinetune
from tests.local.plainclient import KEY, connected
from tests.servers.dask_cluster import free_port

ROOT = Path(aiofinetune.__file__).parent.parent
PAGE = (ROOT / "README.md").read_text().partition("### Past one machine\n")[2].partition("\n#")[0]
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
SLOTS, SERVE, WORKER, DASK, TLS = BLOCKS
PROGRAMS = "".join(f'{name}() {{ exec "{sys.executable}" -m {name} "$@"; }}\n' for name in ("aiofinetune", "dask"))


def script(*blocks: str, port: int) -> str:
    """The blocks as one script, with free ports, in which the programs that do not end run side by side."""
    scheduler = free_port()
    text = "".join(blocks).replace("\\\n", " ").replace("8786", str(scheduler)).replace(":8000", f":{port}")
    text = text.replace("aiofinetune serve", f"aiofinetune serve --port {port}")
    return PROGRAMS + re.sub(r"^((?:aiofinetune|dask) .*)$", r"\1 &", text, flags=re.MULTILINE) + "wait\n"


@asynccontextmanager
async def started(text: str, folder: Path) -> AsyncIterator[Process]:
    """Run a script in a folder, and end all that it started."""
    environment = {"AIOFINETUNE_API_KEY": KEY, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", text), cwd=folder, env=os.environ | environment, stdout=PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await process.communicate()


@pytest.mark.parametrize(
    ("blocks", "where"),
    [((SLOTS,), "here"), ((SERVE, WORKER, WORKER), "workers"), ((DASK,), "workers"), ((TLS,), "workers")],
    ids=["slots", "workers", "dask", "tls"],
)
async def test_the_page(
    blocks: tuple[str, ...],
    where: str,
    tmp_path: Path,
    examples: bytes,
    trainers: Callable[[Path], list[int]],
) -> None:
    """What a setup of the page starts trains two jobs at once, with a word on where if that is elsewhere."""
    if blocks in {(DASK,), (TLS,)}:
        pytest.importorskip("distributed", reason="distributed is not installed")
    if blocks != (SLOTS,) and shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")
    async with started(script(*blocks, port=free_port()), tmp_path) as process:
        assert process.stdout is not None
        url = ""
        while "OPENAI_BASE_URL" not in url:
            url = (await process.stdout.readline()).decode()
            assert url, "the server has not started"
        url = url.strip().partition("=")[2]
        tls = ssl.create_default_context(cafile=tmp_path / "cluster.pem") if url.startswith("https") else True
        async with connected(url, tls=tls) as client:
            jobs = [(await client.create(examples, n_epochs=100_000))["id"] for _ in range(2)]
            for job in jobs:
                await client.reach(job, "Completed epoch 1/100000")
            assert len(trainers(tmp_path)) == 2
            for job in jobs:
                cancelled = await client.call("POST", f"/fine-tunes/{job}/cancel")
                told = [event["message"] for event in cancelled["events"]]
                assert any(message.startswith("Training on ") for message in told) == (where == "workers")
            done = await client.finish((await client.create(examples, n_epochs=1))["id"])
            assert done["status"] == "succeeded"
    async with asyncio.timeout(30):
        while trainers(tmp_path) or any(tmp_path.glob("aiofinetune-attempt-*")):
            await asyncio.sleep(0.05)
