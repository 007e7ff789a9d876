"""Run one attempt for a server on another machine.

    python -P -m aiofinetune.local.remote

An engine starts this command on the machine that is to train, and writes one line of JSON to its standard input:
``{"url": ..., "token": ..., "models": ...}``: the attempt, and the folder in which the engine's worker keeps open
models as long as it lives. It must keep standard input open: when that ends, because the engine's worker was killed,
the command ends its trainer and removes its folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import aiohttp

from aiofinetune.errors import FineTuneError
from aiofinetune.local._worker.attempt import run_attempt
from aiofinetune.local._worker.calls import Refusal
from aiofinetune.local._worker.command import EXIT_ABANDONED
from aiofinetune.local._worker.folder import remove_abandoned
from aiofinetune.local._worker.kept import KeptModels


async def main() -> int:
    """Run the attempt that standard input names; return the exit status."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101  # It is in one.
    order = json.loads(await asyncio.to_thread(sys.stdin.buffer.readline))
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    os.set_blocking(0, False)
    loop.add_reader(0, _end_with_stdin, task)
    try:
        await asyncio.to_thread(remove_abandoned)
        async with aiohttp.ClientSession() as http:
            models = KeptModels(lambda: Path(order["models"]))
            await run_attempt(http, order["url"], order["token"], models)
    except asyncio.CancelledError:
        return EXIT_ABANDONED
    except (FineTuneError, Refusal, OSError) as error:
        print(f"aiofinetune: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _end_with_stdin(task: asyncio.Task[int]) -> None:
    if not os.read(0, 1024):
        asyncio.get_running_loop().remove_reader(0)
        task.cancel()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
