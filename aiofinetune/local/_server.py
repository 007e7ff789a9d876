"""The server itself: its folder, queue and application on a listening socket."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from aiofinetune._urls import is_loopback
from aiofinetune.errors import ConfigurationError
from aiofinetune.local._app import Api
from aiofinetune.local._completions import Completer
from aiofinetune.local._connections import Connections, SeldomLog, listen
from aiofinetune.local._open_models import BUILT_IN, OpenModel
from aiofinetune.local._queue import Jobs
from aiofinetune.local._routes.together import BASE_PATH
from aiofinetune.local._store import Store
from aiofinetune.local._trainers import Trainers
from aiofinetune.local._trainers.remote import RemoteTrainers

_SHUTDOWN_TIMEOUT: Final = 0.3
"""Seconds that connections have to close after their requests have ended or were cancelled."""

_log = logging.getLogger("aiofinetune.local")


class LocalServer:
    """A server of the fine-tunes API, of ``/fine_tuning/jobs`` and of Together's API, in this process, on this loop.

    Args:
        data: The folder for files, jobs and models; it is created if it does not exist. By default, a temporary folder.
        host: The address to listen on. Any address except loopback needs an explicit `api_key`; without `tls`, or a
            proxy with https, others can read on the network what is sent to it.
        port: The port to listen on; 0 chooses a free one.
        api_key: The key that clients must send; by default, a random one.
        trainers: What trains the jobs; by default, processes on this machine.
        needs: The amount of each resource that a job needs, by its base model.
        remote: Trains the jobs on other machines. If `trainers` is given too, it is what passes the attempts on to
            `remote`.
        worker_token: The token with which workers claim attempts.
        tls: Serves https with this context.
        completer: Writes the completions; by default, with the models that the jobs trained.
        models: Local open models, which the server offers as base models besides the built-in ones.
        extend: Called with the web application before it starts, to add middlewares, routes or signals to it. What is
            added sees only requests with the right key.

    Raises:
        ConfigurationError: The host or the key is not allowed, or `needs` names a model that is not there. On entering
            the server: the folder or the port cannot be used, or NumPy is not installed.
    """

    base_url: str
    """The URL of the API, such as ``http://127.0.0.1:40123/v1``; it is set when the server is entered."""

    _temporary_parent: str | None = None
    """The folder in which temporary folders are made; None for the system's choice."""
    _temporary_prefix: str = "aiofinetune-"
    """What their names begin with."""

    def __init__(
        self,
        data: str | os.PathLike[str] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        trainers: Trainers | None = None,
        needs: Mapping[str, Mapping[str, int]] | None = None,
        remote: RemoteTrainers | None = None,
        worker_token: str | None = None,
        tls: ssl.SSLContext | None = None,
        completer: Completer | None = None,
        models: Sequence[OpenModel] = (),
        extend: Callable[[web.Application], None] = lambda _application: None,
    ) -> None:
        if api_key is None and not is_loopback(host):
            raise ConfigurationError(f"host: other machines can reach {host!r}; pass an api_key of your own")
        if api_key is not None and not _is_key(api_key):
            raise ConfigurationError("api_key: expected printable ASCII without space around it")
        for model in models:
            if not isinstance(model, OpenModel):
                raise ConfigurationError(f"models: expected models such as OpenModel.at('smol', path), got {model!r}")
        if worker_token is not None and worker_token == api_key:
            raise ConfigurationError("worker_token: is the API key; workers need a token of their own")
        bases = (*BUILT_IN, *(model.name for model in models))
        if unknown := sorted({*(needs or ())}.difference(bases)):
            raise ConfigurationError(f"needs: there is no base model {unknown[0]!r}; there are {', '.join(bases)}")
        self.api_key: str = api_key or f"local-{secrets.token_urlsafe(24)}"
        self._data = data
        self._host = host
        self._port = port
        self._trainers = trainers or remote
        self._remote = remote
        self._worker_token = worker_token
        self._tls = tls
        self._needs = needs
        self._completer = completer
        self._models = tuple(models)
        self._extend = extend
        self._entered: contextlib.AbstractAsyncContextManager[None] | None = None

    def url_of(self, dialect: str) -> str:
        """Return the base URL of the API of a dialect: Together's has one of its own, and the others share one.

        Together's own client adds the ``/v1`` at the end itself.
        """
        return self.base_url.removesuffix("/v1") + BASE_PATH if dialect == "together" else self.base_url

    def __repr__(self) -> str:
        """Return a representation without the key."""
        return f"<{type(self).__name__} {getattr(self, 'base_url', 'not entered')}>"

    async def __aenter__(self) -> Self:
        if self._entered is not None:
            raise ConfigurationError("this server is running already")
        if importlib.util.find_spec("numpy") is None:
            raise ConfigurationError("the server trains with NumPy; install it with: pip install 'aiofinetune[local]'")
        self._loop = asyncio.get_running_loop()
        self._entered = self._running()
        try:
            await self._entered.__aenter__()
        except BaseException:
            self._entered = None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if asyncio.get_running_loop() is not self._loop and not self._loop.is_closed():
            raise ConfigurationError("this server runs on another event loop; exit it there")
        entered, self._entered = self._entered, None
        assert entered is not None  # noqa: S101  # __aenter__ was called before.
        await entered.__aexit__(kind, error, traceback)

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[Self]:
        """Return a context manager that runs the server on an event loop of its own, in a thread.

        It serves code that is not async, and code that blocks its own event loop.

        Raises:
            ConfigurationError: As on entering the server.
        """
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        with ThreadPoolExecutor(1, thread_name_prefix="aiofinetune-server") as thread:
            serving = thread.submit(asyncio.run, self._serve(started))
            loop, is_over = started.result()
            try:
                yield self
            finally:
                loop.call_soon_threadsafe(is_over.set)
                serving.result()

    async def _serve(self, started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        """Run until the event is set that is in `started`, or put there what kept the server from starting."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self)
            except BaseException as error:
                started.set_exception(error)
                raise
            is_over = asyncio.Event()
            started.set_result((asyncio.get_running_loop(), is_over))
            await is_over.wait()

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        failure: BaseException | None = None
        async with (
            _folder(self._data, self._temporary_prefix, self._temporary_parent) as folder,
            Store(folder, open_models=self._models, keeps_remote=self._remote is not None).opened() as store,
            asyncio.TaskGroup() as group,
        ):
            jobs = Jobs(store, self._trainers, self._needs)
            api = Api(store, jobs, self.api_key, self._completer, self._remote, self._worker_token)
            try:
                async with self._listening(api), self._with_remote(store, jobs):
                    trainings = group.create_task(jobs.run())
                    try:
                        yield
                    finally:
                        trainings.cancel()  # The trainers end at the same time as the requests.
            except BaseException as error:  # noqa: BLE001  # It is raised below, because the group would wrap it.
                failure = error
            finally:
                await api.close()
        if failure is not None:
            raise failure

    def _with_remote(self, store: Store, jobs: Jobs) -> contextlib.AbstractAsyncContextManager[None]:
        if self._remote is None:
            return contextlib.nullcontext()
        return self._remote.opened(store, self.base_url, jobs.look_again)

    @contextlib.asynccontextmanager
    async def _listening(self, api: Api) -> AsyncIterator[None]:
        log = SeldomLog(_log)
        application = api.application()
        self._extend(application)
        # A client that disconnects cancels its request, so that a stream frees its resources at once.
        runner = web.AppRunner(
            application,
            handler_cancellation=True,
            access_log=None,
            logger=log,
            shutdown_timeout=_SHUTDOWN_TIMEOUT,
        )
        await runner.setup()
        assert runner.server is not None  # noqa: S101  # It is set by `setup`.
        connections = Connections(runner.server, log, self._tls)
        try:
            try:
                sockets = await listen(self._host, self._port)
            except (OSError, OverflowError) as error:
                why = getattr(error, "strerror", None) or error
                raise ConfigurationError(f"cannot listen on {self._host}, port {self._port}: {why}") from error
            host, port = sockets[0].getsockname()[:2]
            self.base_url = f"http{'s' if self._tls else ''}://{f'[{host}]' if ':' in host else host}:{port}/v1"
            connections.accept(sockets)
            yield
        finally:
            await connections.close()
            await runner.cleanup()


def _is_key(key: object) -> bool:
    """Return whether a key can be sent in a header."""
    return isinstance(key, str) and key.isascii() and key.isprintable() and key.strip() == key != ""


@contextlib.asynccontextmanager
async def _folder(data: str | os.PathLike[str] | None, prefix: str, parent: str | None) -> AsyncIterator[Path]:
    """Return a context manager of the data folder, which removes a temporary one at its end."""
    if data is not None:
        yield Path(data).absolute()  # noqa: ASYNC240  # It only asks for the working directory.
        return
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=prefix, dir=parent))
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder)
