"""Trainers on other machines. An engine only starts a command there; all else travels by HTTP.

The command is `aiofinetune.local.remote`, or ``aiofinetune worker``. It gets the address of one attempt and the random
token of this attempt. With them it fetches the inputs, passes on the trainer's lines, and uploads the model and the
results (`aiofinetune.local._routes.attempts`). The token is stored hashed, and is of no use once the attempt is over:
then every request is answered with 410, and the command ends its trainer.

A running attempt does not depend on the engine, nor on this process: after a restart, the command goes on with the same
attempt. An attempt is lost when its command is not heard of for some time, or when a second process runs it, because
then the engine has given up the first one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, Protocol

import attrs

from aiofinetune._secret import Secret
from aiofinetune._urls import check_base_url
from aiofinetune.errors import ConfigurationError
from aiofinetune.local._machines import Machine, Resources
from aiofinetune.local._shortage import Shortage
from aiofinetune.local._store import Store
from aiofinetune.local._store.attempts import Attempt
from aiofinetune.local._trainers import Ended, EngineLost, engine_lost
from aiofinetune.local._trainers.trainer import input_paths, output_paths

_SILENCE: Final = 90.0
"""Seconds without a request after which an attempt is lost. A network that is cut for a minute does no harm."""

_RETURN: Final = 30.0
"""Seconds after the start of the server within which a process must call that ran an attempt before. One that is alive
calls every few seconds."""

_ABSENCE: Final = 10.0
"""Seconds after which an attempt is lost whose process has closed its connections: that is what a killed one does."""

_MAX_LINES: Final = 1000
"""The number of a trainer's lines that wait to be read."""

_log = logging.getLogger(__name__)


@attrs.frozen
class Order:
    """What the command on the other machine is given.

    Args:
        url: The URL of the attempt.
        token: The attempt's token.
    """

    url: str
    token: Secret


class Engine(Protocol):
    """Starts commands on other machines."""

    paces: bool
    """Whether a machine where an attempt has failed waits by itself before it runs another one."""

    def slots(self, running: int) -> int:
        """Return the number of attempts that can run at once.

        Args:
            running: The number of attempts that have a place on a machine.
        """
        ...  # Without this, Pyright takes the method for one that returns None.

    def machines(self, placed: Collection[Live], others: Collection[Resources]) -> Sequence[Machine]:
        """Return what each machine has, and has free.

        Args:
            placed: The attempts that have a place on a machine.
            others: What each attempt needs that has none yet, oldest first.
        """
        ...  # as above

    async def start(self, order: Order, live: Live) -> None:
        """Start the command for an attempt, and return when the engine has nothing more to do or to watch.

        Raises:
            EngineLost: The command cannot be started, or has ended without having run the attempt.
        """

    def opened(self, on_change: Callable[[], None]) -> AbstractAsyncContextManager[object]:
        """Return a context manager in which the engine works; it calls `on_change` if there may be more slots."""
        ...  # as above


class Live:
    """An attempt that runs on another machine, as far as this process knows it.

    Args:
        attempt: The attempt.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.has_place: bool = attempt.is_resumed
        """Whether it has a place on a machine."""
        self.where: str | None = None
        """The machine that runs it, if this server process was told."""
        self.worker_has: Resources = {}
        """What its worker has, if that is known; only workers that ask for attempts themselves say so."""
        self.contacted: asyncio.Event = asyncio.Event()
        """Set when its process has sent its first request to this server process."""
        self.closed: asyncio.Event = asyncio.Event()
        """Set when this process no longer takes anything of the attempt."""
        self.lines_read: int = 0
        """The number of lines received; the next line has this number."""
        self.writing: asyncio.Lock = asyncio.Lock()
        """Held while a piece of an output is written."""
        self.has_outputs: bool = False
        """Whether its outputs are complete and checked; none may change from then on."""
        self.uploads: Counter[str] = Counter()
        """How often the upload of each output has begun; only the last one may write."""
        self._adding = asyncio.Lock()
        self._arrived: asyncio.Queue[bytes | Ended] = asyncio.Queue(_MAX_LINES)
        self._lost: EngineLost | None = None
        self._heard_at = time.monotonic()
        self.requests: int = 0
        """The number of its process's requests that are being answered."""
        self._is_gone = False
        """Whether the process has closed the connection of its last request."""
        self._changed = asyncio.Event()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request of the attempt's process, during the block."""
        self.requests += 1
        self._is_gone = False
        self.hear()
        self.contacted.set()
        try:
            yield
        except asyncio.CancelledError:
            # The client has closed the connection. If it is only cut, nothing is known of that.
            self._is_gone = True
            raise
        finally:
            self.requests -= 1
            self.hear()

    def hear(self) -> None:
        """Note that something of the attempt's process has just arrived."""
        self._heard_at = time.monotonic()
        self._changed.set()

    async def add_lines(self, start: int, lines: Sequence[bytes]) -> int:
        """Add lines that the trainer wrote, unless they are known; return the number of the next one.

        Args:
            start: The number of the first line.
            lines: The lines.
        """
        async with self._adding:
            while start <= self.lines_read < start + len(lines):
                await self._arrived.put(lines[self.lines_read - start])
                self.lines_read += 1
            return self.lines_read

    async def end(self, ended: Ended) -> None:
        """Note that the trainer has ended, and that all lines and outputs are here."""
        await self._arrived.put(ended)

    def lose(self, message: str, *, by_job: bool = False, by_stop: bool = False) -> None:
        """Give the attempt up. See `EngineLost`."""
        self._lost = EngineLost(message, by_job=by_job, by_stop=by_stop)
        self._changed.set()

    async def read(self, on_line: Callable[[bytes], Awaitable[None]]) -> Ended:
        """Pass on the lines as they arrive, until the trainer has ended.

        Raises:
            EngineLost: The trainer says that its machine has run out of something.
        """
        while isinstance(arrived := await self._arrived.get(), bytes):
            try:
                await on_line(arrived)
            except Shortage as shortage:  # This machine's own are errors of other types.
                worker = f"its worker {self.where}" if self.where else "its worker"
                raise EngineLost(f"{worker} has run out of a resource: {shortage}") from shortage
        return arrived

    async def watch(self) -> None:
        """Wait until the attempt is lost.

        Raises:
            EngineLost: It is.
        """
        if not self.attempt.is_resumed:
            while self._lost is None and not self.contacted.is_set():
                self._changed.clear()
                await self._changed.wait()
        while self._lost is None:
            self._changed.clear()
            left = self._heard_at + self._patience() - time.monotonic()
            if left <= 0:
                known = self.contacted.is_set()
                self.lose("its worker was lost" if known else "its worker did not come back", by_job=known)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(left, 0)):
                    await self._changed.wait()
        raise self._lost

    def _patience(self) -> float:
        if not self.contacted.is_set():
            return _RETURN
        return _ABSENCE if self._is_gone and not self.requests else _SILENCE

    async def close(self) -> None:
        """Take nothing more of the attempt, and wait until nothing more is written."""
        self.closed.set()
        async with self.writing:
            pass


class RemoteTrainers:
    """Runs each trainer on another machine.

    Args:
        engine: Starts the commands there.
        public_url: The URL of this server for other machines; by default the one that it listens on.
        allow_plain_http: Whether that may be http, although it is not on loopback.

    Raises:
        ConfigurationError: The URL is not valid, or not allowed.
    """

    def __init__(self, engine: Engine, public_url: str | None = None, *, allow_plain_http: bool = False) -> None:
        self.engine = engine
        self._allow_plain_http = allow_plain_http
        self.live: dict[str, Live] = {}
        """The attempts that run, by id."""
        self._public_url = public_url and attempts_url(public_url, "public_url", allow_plain_http=allow_plain_http)
        self._store: Store | None = None

    @property
    def slots(self) -> int:
        """The number of attempts that can run at once; see `aiofinetune.local._trainers.Trainers`."""
        return self.engine.slots(sum(live.has_place for live in self.live.values()))

    def machines(self, running: Collection[Attempt]) -> Sequence[Machine]:
        """Return what each machine has; see `aiofinetune.local._trainers.Trainers`."""
        placed = {attempt_id: live for attempt_id, live in self.live.items() if live.has_place}
        return self.engine.machines(placed.values(), [attempt.needs for attempt in running if attempt.id not in placed])

    @contextlib.asynccontextmanager
    async def opened(self, store: Store, base_url: str, on_change: Callable[[], None]) -> AsyncIterator[None]:
        """Return a context manager in which attempts can run.

        Args:
            store: The server's state.
            base_url: The URL that the server listens on.
            on_change: Called when there may be more slots or resources.

        Raises:
            ConfigurationError: The URL that the server listens on is not allowed, or the engine cannot be used.
        """
        self._store = store
        self._url = self._public_url or attempts_url(base_url, "public_url", allow_plain_http=self._allow_plain_http)
        async with self.engine.opened(on_change):
            yield

    async def run(self, attempt: Attempt, on_line: Callable[[bytes], Awaitable[None]]) -> Ended:
        """Run a trainer until it ends (see `aiofinetune.local._trainers.Trainers`)."""
        if self._store is None:
            raise ConfigurationError("these trainers need a server: pass them to LocalServer(remote=...) too")
        live = self.live[attempt.id] = Live(attempt)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(live.watch())]
                if not attempt.is_resumed:
                    token = Secret(secrets.token_urlsafe(32))
                    await self._store.attempts.add_remote(attempt, digest(token))
                    order = Order(f"{self._url}/{attempt.id}", token)
                    tasks.append(group.create_task(self.engine.start(order, live)))
                ended = await live.read(on_line)
                for task in tasks:
                    task.cancel()
            return ended
        except Exception as error:
            if lost := engine_lost(error):
                lost.where, lost.is_paced = live.where, self.engine.paces
            raise
        finally:
            await live.close()
            del self.live[attempt.id]


def attempts_url(url: str, name: str, *, allow_plain_http: bool) -> str:
    """Return the URL of a server's attempts, of that of the server, with or without ``/v1``.

    Args:
        url: The URL of the server.
        name: What the caller knows it as.
        allow_plain_http: Whether it may be http, although it is not on loopback.

    Raises:
        ConfigurationError: It is not valid, or not allowed.
    """
    checked = check_base_url(
        url,
        allow_plain_http=allow_plain_http,
        name=name,
        what="training data, models and tokens",
        way_out="allow plain http (--allow-plain-http)",
    )
    return f"{checked.removesuffix('/v1')}/v1/attempts"


def digest(token: str) -> bytes:
    """Return the SHA-256 of a token. It has no salt, because tokens are random."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def inputs_by_name(attempt: Attempt) -> dict[str, Path]:
    """Return the files that a trainer on another machine reads, by their paths there. This blocks."""
    found = {}
    for path in input_paths(attempt):
        if path.is_dir():
            # An open model. Its weights are in the folder itself; in folders below it are other forms of them.
            parts = (part for part in path.iterdir() if part.is_file() and not part.name.startswith("."))
            found.update({f"{path.name}/{part.name}": part for part in parts})
        else:
            found[path.name] = path
    return found


def outputs_by_name(attempt: Attempt) -> dict[str, Path]:
    """Return the files that a trainer on another machine writes, by their paths there."""
    return {path.name: path for path in output_paths(attempt)}
