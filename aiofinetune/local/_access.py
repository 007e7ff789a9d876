"""Watch the requests of a server: log each, and count them for Prometheus (the extra ``metrics``).

Nothing here is used unless it is asked for; both are additions to a server's web application (`LocalServer(extend=…)`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

import attrs
from aiohttp import web

from aiofinetune import structuring
from aiofinetune.errors import ConfigurationError
from aiofinetune.local._routes import Handler
from aiofinetune.local._trainers import Ended, Trainers
from aiofinetune.local._trainers.local_process import LocalProcess

if TYPE_CHECKING:
    from aiofinetune.local._machines import Machine
    from aiofinetune.local._store.attempts import Attempt

_log = logging.getLogger("aiofinetune.local.access")

_LEFT: Final = 499
"""The status, as nginx has it, of a request whose client left before the response was complete."""


@attrs.frozen
class Answered:
    """One request that was answered.

    Args:
        method: The HTTP method.
        route: The path with names in place of ids; "unknown" if no route has it.
        status: The HTTP status; 499 if the client left first.
        seconds: From the request's headers to the end of the response.
        request_id: The id that the response has.
    """

    method: str
    route: str
    status: int
    seconds: float
    request_id: str | None


def watch_requests(application: web.Application, note: Callable[[Answered], object]) -> None:
    """Call `note` after each request to a server, those that it refuses for their key included."""

    @web.middleware
    async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
        started_at = time.perf_counter()
        status, request_id = _LEFT, None
        try:
            response = await handler(request)
            status, request_id = response.status, response.headers.get("x-request-id")
            return response
        finally:
            resource = request.match_info.route.resource
            route = "unknown" if resource is None else resource.canonical
            # A method of a client's own would be a value of its own in the metrics.
            method = request.method if request.method in _METHODS else "other"
            note(Answered(method, route, status, time.perf_counter() - started_at, request_id))

    # Around all others, so that it sees what they answer.
    application.middlewares.insert(0, watch)


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def log_request(answered: Answered) -> None:
    """Log a request at INFO, with its parts as fields."""
    words = "%s %s: %d in %.3f s (request id %s)"
    values = (answered.method, answered.route, answered.status, answered.seconds, answered.request_id or "none")
    _log.info(words, *values, extra=attrs.asdict(answered))


class Metrics:
    """The metrics of one server, at ``/metrics``, for which the server's key is needed as for all else.

    Args:
        trainers: Runs the trainers, whose jobs are counted; by default, processes on this machine.

    Raises:
        ConfigurationError: The extra ``metrics`` is not installed.
    """

    def __init__(self, trainers: Trainers | None = None) -> None:
        try:
            import prometheus_client as client  # noqa: PLC0415  # an extra  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigurationError("metrics need prometheus-client: pip install 'aiofinetune[metrics]'") from error
        self._trainers = trainers or LocalProcess()
        self._registry = client.CollectorRegistry()
        self._write = client.generate_latest
        # prometheus-client's own type has a space and a charset, which aiohttp's `content_type` does not take.
        self._headers = {"Content-Type": client.CONTENT_TYPE_LATEST}
        labels = ["method", "route", "status"]
        requests = client.Histogram(
            "aiofinetune_request_seconds", "Seconds of the requests.", labels, registry=self._registry
        )
        self._note_seconds: Callable[[Answered], object] = lambda it: requests.labels(
            it.method, it.route, it.status
        ).observe(it.seconds)
        self._running = client.Gauge("aiofinetune_trainings_running", "Jobs being trained.", registry=self._registry)
        self._trainings = client.Histogram(
            "aiofinetune_training_seconds",
            "Seconds that jobs were trained, by how that ended.",
            ["end"],
            buckets=(0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 3600),
            registry=self._registry,
        )

    def extend(self, application: web.Application) -> None:
        """Count the requests of a server, and serve its metrics."""
        watch_requests(application, self._note_seconds)
        application.router.add_get("/metrics", self._answer)

    @property
    def slots(self) -> int:
        """The number of attempts at once; see `Trainers`."""
        return self._trainers.slots

    def machines(self, running: Collection[Attempt]) -> Sequence[Machine]:
        """Return what each machine has; see `Trainers`."""
        return self._trainers.machines(running)

    async def run(self, attempt: Attempt, on_line: Callable[[bytes], Awaitable[None]]) -> Ended:
        """Run a trainer, and count it; see `Trainers`."""
        started_at = time.perf_counter()
        end = "failed"
        has_succeeded = False

        async def read(line: bytes) -> None:
            nonlocal has_succeeded
            await on_line(line)
            match structuring.loads(line):
                case {"type": "succeeded"}:
                    has_succeeded = True

        self._running.inc()
        try:
            ended = await self._trainers.run(attempt, read)
            end = "succeeded" if ended.is_well and has_succeeded else "failed"
            return ended
        except asyncio.CancelledError:
            end = "cancelled"
            raise
        finally:
            self._running.dec()
            self._trainings.labels(end).observe(time.perf_counter() - started_at)

    async def _answer(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._write(self._registry), headers=self._headers)


def extension(metrics: Metrics | None, *, logs: bool) -> Callable[[web.Application], None]:
    """Return what adds metrics and a log of requests to a server, as its argument `extend`."""

    def extend(application: web.Application) -> None:
        if metrics is not None:
            metrics.extend(application)
        if logs:
            watch_requests(application, log_request)

    return extend
