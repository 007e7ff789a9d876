"""`FineTuneServer`: the embedded server with instant jobs, faults on demand, and a record of its requests."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import Final, Self

from aiohttp import web

from aiofinetune.local import LocalServer
from aiofinetune.local._trainers.local_process import LocalProcess
from aiofinetune.testing._control import Control
from aiofinetune.testing._faults import Faults
from aiofinetune.testing._faulty_trainers import FaultyTrainers
from aiofinetune.testing._instant import InstantTrainers
from aiofinetune.testing._leftovers import PREFIX, remove_leftovers
from aiofinetune.testing._middleware import Middleware
from aiofinetune.testing._plans import Plans
from aiofinetune.testing._recorder import Requests
from aiofinetune.testing._simulated import SimulatedCompleter

_MEMORY: Final = "/dev/shm"  # noqa: S108  # The folder is made there with a random name, and for this user only.
"""A folder in memory, on Linux. A server of tests commits often, and need not survive a power failure."""

_MIN_MEMORY: Final = 32 << 20
"""The free bytes that it must have."""


class FineTuneServer(LocalServer):
    """The embedded server for tests: jobs end in an instant, and requests and jobs fail on demand.

    Nothing is trained: a job has the events, figures and files of one that was, its figures are made up, its results
    have a column ``simulated``, and completions say that they are simulated. A file that cannot be trained on fails
    its job.

    It is an async context manager; `in_thread` returns one that is not async.

    Args:
        data: The folder for files, jobs and models; by default a temporary one, in memory if the system has room. What
            a killed server leaves in memory, the next server removes.
        port: The port to listen on; 0 chooses a free one.
        api_key: The key that clients must send; by default, a random one.
        real_training: Whether jobs are trained, and completed, as `LocalServer` does.

    Raises:
        ConfigurationError: As for `LocalServer`.
    """

    faults: Faults
    """What the next requests and jobs meet."""
    requests: Requests
    """What the server was asked."""

    _temporary_prefix = PREFIX

    def __init__(
        self,
        data: str | os.PathLike[str] | None = None,
        *,
        port: int = 0,
        api_key: str | None = None,
        real_training: bool = False,
    ) -> None:
        plans = Plans()
        self.faults = Faults(plans)
        self.requests = Requests()
        self._additions = (Middleware(plans, self.requests), Control(self.faults, self.requests))
        super().__init__(
            data,
            port=port,
            api_key=api_key,
            trainers=FaultyTrainers(LocalProcess() if real_training else InstantTrainers(), plans),
            completer=None if real_training else SimulatedCompleter(),
            extend=self._add_to,
        )
        if _free_bytes(_MEMORY) >= _MIN_MEMORY:
            self._temporary_parent = _MEMORY

    async def __aenter__(self) -> Self:
        if self._temporary_parent is not None:
            await asyncio.to_thread(remove_leftovers, self._temporary_parent)
        return await super().__aenter__()

    def _add_to(self, application: web.Application) -> None:
        for addition in self._additions:
            addition.add_to(application)


def _free_bytes(folder: str) -> int:
    """Return the free bytes of a folder that this user may write to; 0 if there is none."""
    return shutil.disk_usage(folder).free if os.access(folder, os.W_OK | os.X_OK) else 0
