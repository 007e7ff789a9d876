"""Run blocking work outside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(executor: Executor | None, call: Callable[[], T]) -> T:
    """Run a blocking `call` in a thread. If cancelled, wait until it ends, so that it never outlives its caller.

    Args:
        executor: The executor to run it in; None for the event loop's default.
        call: The function to call.
    """
    return await until_over(asyncio.get_running_loop().run_in_executor(executor, call))


async def until_over(future: asyncio.Future[T]) -> T:
    """Return a future's result. If cancelled, wait until the future is done before raising."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            # A further cancellation does not end this wait; the first one is raised below.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            # Retrieve the exception, so that asyncio does not log that it was never retrieved.
            future.exception()
        raise
