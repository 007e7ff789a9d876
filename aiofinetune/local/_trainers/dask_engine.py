"""Starts attempts on the workers of a Dask cluster (the extra ``dask``).

Dask only starts the command: a model of 256 MB through it would take five times as long as by HTTP, and block the event
loop for seconds. A scheduler runs any code it receives, so off loopback this speaks to it by TLS only, with
certificates on both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aiofinetune._urls import is_loopback
from aiofinetune.errors import ConfigurationError
from aiofinetune.local._machines import Machine, Resources, shared
from aiofinetune.local._trainers import EngineLost
from aiofinetune.local._trainers.remote import Live, Order
from aiofinetune.local._worker.command import EXIT_ABANDONED, run_command

_LOOK_INTERVAL: Final = 2.0
"""Seconds between requests for the scheduler's workers."""

_TASK_INTERVAL: Final = 0.5
"""Seconds between looks at the states of a task and of the connection, which the client keeps up to date."""

_CONNECT_TIMEOUT: Final = 10.0

_RETRY_INTERVAL: Final = 1.0
"""Seconds before the next attempt to connect."""

_LOG_INTERVAL: Final = 60.0
"""Seconds between two lines of the log about attempts to connect that fail."""

_log = logging.getLogger(__name__)


class DaskEngine:
    """Starts attempts on the workers of a Dask cluster.

    Args:
        address: The scheduler's address, such as ``dask://127.0.0.1:8786``.
        certificates: The files of the certificates that the scheduler is checked with, of this process's own
            certificate, and of its key; None for a scheduler on loopback without TLS.

    Raises:
        ConfigurationError: The extra is not installed, the address is not valid, or it needs certificates.
    """

    paces: bool = False
    """Dask begins the next attempt at once, perhaps on the machine where the last one failed."""

    def __init__(self, address: str, certificates: tuple[Path, Path, Path] | None = None) -> None:
        if importlib.util.find_spec("distributed") is None:
            raise ConfigurationError(f"{address} needs Dask: pip install 'aiofinetune[dask]'")
        self._address = _address(address, is_tls=certificates is not None)
        self._certificates = certificates
        self._dask: Any = None  # Any: an extra that the type checkers need not have
        self._client: Any = None
        self._threads = 0
        self._machines: Sequence[Resources] = ()

    def slots(self, running: int) -> int:  # noqa: ARG002  # Those that run are on the same threads.
        """Return the number of attempts at once; see `aiofinetune.local._trainers.remote.Engine`."""
        # While the connection is lost, Dask's client takes tasks, and cancels them when it gives up.
        return self._threads if self._is_connected() else 0

    def machines(self, placed: Collection[Live], others: Collection[Resources]) -> Sequence[Machine]:
        """Return what each worker has; see `aiofinetune.local._trainers.remote.Engine`.

        Dask chooses the worker of an attempt. Where it has chosen another one than this assumes, an attempt waits in
        Dask's own queue until one that runs has ended, or begins only then.
        """
        return shared(self._machines, [*(live.attempt.needs for live in placed), *others])

    @contextlib.asynccontextmanager
    async def opened(self, on_change: Callable[[], None]) -> AsyncIterator[None]:
        """Return a context manager that stays connected; see `aiofinetune.local._trainers.remote.Engine`."""
        async with asyncio.TaskGroup() as group:
            connecting = group.create_task(self._stay_connected(on_change))
            try:
                yield
            finally:
                connecting.cancel()

    async def _stay_connected(self, on_change: Callable[[], None]) -> None:
        """Connect to the scheduler, and again whenever the connection is lost."""
        told_at = -_LOG_INTERVAL
        while True:
            try:
                await self._connect(on_change)
            except Exception as error:  # noqa: BLE001  # Dask raises whatever its sockets and messages do.
                if self._client is not None or time.monotonic() - told_at >= _LOG_INTERVAL:
                    told_at = time.monotonic()
                    why = str(error) or repr(error)
                    _log.warning("no connection to Dask's scheduler at %s: %s", self._address, why)
                self._client = None
                self._note_workers({}, on_change)
            await asyncio.sleep(_RETRY_INTERVAL)

    async def _connect(self, on_change: Callable[[], None]) -> None:
        # Dask takes a second to import, in which the server already answers.
        self._dask = await asyncio.to_thread(importlib.import_module, "distributed")
        client = self._dask.Client(
            self._address,
            asynchronous=True,
            security=self._security(),
            timeout=_CONNECT_TIMEOUT,
            set_as_default=False,
            name="aiofinetune",
        )
        try:
            await client
            _log.info("connected to Dask's scheduler at %s", self._address)
            self._client = client
            await self._look_at_workers(on_change)
        finally:
            await client.close()  # As a context manager, it would not close if it cannot connect.

    async def _look_at_workers(self, on_change: Callable[[], None]) -> None:
        while True:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                found = await self._client.scheduler.identity(n_workers=-1)
            self._note_workers(found["workers"], on_change)
            for _ in range(round(_LOOK_INTERVAL / _TASK_INTERVAL)):
                await asyncio.sleep(_TASK_INTERVAL)
                if not self._is_connected():
                    raise ConnectionError("the connection was lost")

    def _security(self) -> object:
        if self._certificates is None:
            return None
        ca, cert, key = map(str, self._certificates)
        return self._dask.Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)

    def _is_connected(self) -> bool:
        return self._client is not None and self._client.status == "running"

    def _note_workers(self, workers: Mapping[str, Any], on_change: Callable[[], None]) -> None:
        threads = sum(worker["nthreads"] for worker in workers.values())
        machines = [{name: int(amount) for name, amount in worker["resources"].items()} for worker in workers.values()]
        if (threads, machines) != (self._threads, self._machines):
            self._threads, self._machines = threads, machines
            on_change()

    async def start(self, order: Order, live: Live) -> None:
        """Start an attempt on a worker; see `aiofinetune.local._trainers.remote.Engine`."""
        client = self._client
        if not self._is_connected():
            raise EngineLost("Dask's scheduler was lost")
        attempt = live.attempt
        task = client.submit(
            run_command,
            order.url,
            order.token,
            key=attempt.id,
            pure=False,
            resources=dict(attempt.needs) or None,
        )
        # The scheduler keeps the task when this process dies: a running attempt goes on over a restart.
        self._dask.fire_and_forget(task)
        live.has_place = True
        while task.status == "pending":
            if self._client is not client:
                break
            await asyncio.sleep(_TASK_INTERVAL)
        if task.status in ("finished", "error"):
            raise await _lost(task, live)
        if not live.contacted.is_set():
            raise EngineLost("Dask's scheduler was lost")
        # The worker may still run it; from here on, what it sends says whether it does.


async def _lost(task: Any, live: Live) -> EngineLost:  # Any: a future of Dask
    """Return how the task of an attempt ended that is not over."""
    if task.status == "finished":
        code, stderr = await task.result()
        how = f"its worker's command ended with exit status {code}" + (f": {stderr}" if stderr else "")
        return EngineLost(how, by_job=live.contacted.is_set() and code != EXIT_ABANDONED)
    error = await task.exception()
    how = f"its worker could not run it: {type(error).__name__}: {str(error)[:200]}"
    return EngineLost(how, by_job=live.contacted.is_set())


def _address(address: str, *, is_tls: bool) -> str:
    """Return the address of a scheduler as Dask has it.

    Raises:
        ConfigurationError: It is not valid, or needs TLS.
    """
    found = re.fullmatch(r"dask://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})/?", address)
    if found is None:
        raise ConfigurationError(f"--trainers: expected dask://HOST:PORT, got {address!r}")
    host, port = found.groups()
    if not is_tls and not is_loopback(host.strip("[]")):
        raise ConfigurationError(
            f"--trainers: {address!r} runs whatever it is sent, by anyone who reaches it; start it with TLS, and pass"
            " --dask-ca, --dask-cert and --dask-key"
        )
    return f"{'tls' if is_tls else 'tcp'}://{host}:{port}"
