"""Claim attempts from a server and run them, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Final

import aiohttp

from aiofinetune import structuring
from aiofinetune._secret import Secret
from aiofinetune._threads import in_thread, until_over
from aiofinetune.errors import AuthenticationFailed, ConnectFailed, ProtocolViolation
from aiofinetune.local._worker.attempt import run_attempt
from aiofinetune.local._worker.calls import AttemptOver, Calls
from aiofinetune.local._worker.folder import MODELS, temporary_folder
from aiofinetune.local._worker.kept import KeptModels

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
"""The first and the longest pause, in seconds, after an attempt that failed here; each is twice the last. So a machine
whose disk is full leaves the jobs to others."""

_log = logging.getLogger(__name__)


async def work(url: str, token: str, resources: Mapping[str, int]) -> None:
    """Claim attempts and run them until cancelled.

    Args:
        url: The URL of the server's attempts.
        token: The token that claims attempts.
        resources: What this machine has, such as ``{"gpu": 1}``.

    Raises:
        AuthenticationFailed: The token is wrong.
        ConnectFailed: The server cannot be reached.
        Refusal: The server gives no attempts to workers.
    """
    async with aiohttp.ClientSession() as http, _models() as models:
        calls = Calls(http, url, Secret(token), secrets.token_hex(16))
        pause = 0.0
        while True:
            match await _claim(calls, resources):
                case {"id": str(attempt_id), "token": str(attempt_token)}:
                    is_well = await _run(http, f"{url}/{attempt_id}", attempt_token, models)
                    pause = 0.0 if is_well else min(max(_FIRST_PAUSE, 2 * pause), _LONGEST_PAUSE)
                    if pause:
                        _log.warning("attempts fail on this machine; it asks for the next one in %g s", pause)
                        await asyncio.sleep(pause)
                case None:
                    pass
                case answer:
                    raise ProtocolViolation(f"the server's answer to a claim is {answer!r:.200}")


@contextlib.asynccontextmanager
async def _models() -> AsyncIterator[KeptModels]:
    """Return a context manager of the open models that are kept; their folder is removed at its end."""
    stack = contextlib.ExitStack()
    try:
        yield KeptModels(functools.cache(lambda: stack.enter_context(temporary_folder(MODELS))))
    finally:
        await in_thread(None, stack.close)


async def _claim(calls: Calls, resources: Mapping[str, int]) -> object:
    """Wait for an attempt; return None if there is none yet."""
    try:
        return await calls.json("POST", "", body=lambda: structuring.dumps({"resources": resources}))
    except AttemptOver:
        raise AuthenticationFailed(401, "the server does not know this token of a worker") from None


async def _run(http: aiohttp.ClientSession, url: str, token: str, models: KeptModels) -> bool:
    """Run an attempt; return whether this machine can run another one at once.

    What fails here must not end the worker, unless the server cannot be reached.
    """
    try:
        return await _apart(run_attempt(http, url, token, models))
    except ConnectFailed:
        raise
    except Exception:  # noqa: BLE001  # See above.
        _log.exception("an attempt failed on this machine")
        return False


async def _apart(attempt: Coroutine[object, object, bool]) -> bool:
    """Run an attempt in a task of its own. If cancelled, cancel that task, wait until it ends, and raise.

    An attempt ends by an error in a task group. Before Python 3.13, such a group takes a cancellation that comes while
    it ends, and may leave `cancelling` of its task raised where none came.
    """
    task = asyncio.create_task(attempt)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        with contextlib.suppress(Exception, asyncio.CancelledError):  # The first cancellation is raised below.
            await until_over(task)
        raise
