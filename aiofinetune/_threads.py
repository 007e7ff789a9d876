"""Blocking work off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(executor: Executor | None, call: Callable[[], T]) -> T:
    """Run a blocking `call` on a thread; if cancelled, stay until it is over, so that it never outlives its caller.

    Args:
        executor: Whose thread; None is the event loop's own.
        call: What to run.
    """
    return await until_over(asyncio.get_running_loop().run_in_executor(executor, call))


async def until_over(future: asyncio.Future[T]) -> T:
    """Give what a future gives; if cancelled, stay until it is over."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            # Cancelled once more, it stays all the same; it ends with the first cancellation.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            # Seen, so that asyncio does not report that nobody looked at it.
            future.exception()
        raise
