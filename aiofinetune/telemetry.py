"""Traces and metrics by OpenTelemetry (the extra ``otel``): off until `instrument` is called.

Names and attributes of calls are those of OpenTelemetry's semantic conventions for HTTP clients
(https://opentelemetry.io/docs/specs/semconv/http/), except that a call with all its attempts is one span. What the
conventions do not know has names that begin with ``aiofinetune``.

Spans:
    ``POST /v1/fine-tunes``: one call, with an event for each retry. An event stream is a call until it is open.
    ``aiofinetune.job``: one job of a batch, from before its create to its end; the calls for it are below it.

Metrics:
    ``http.client.request.duration``: seconds of the calls, all attempts and waits between them included.
    ``aiofinetune.retries``, ``aiofinetune.throttled``, ``aiofinetune.reconnects``: counts.
    ``aiofinetune.active_streams``, ``aiofinetune.active_jobs``: how many there are now.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from aiofinetune import _observe
from aiofinetune._version import __version__
from aiofinetune.errors import ConfigurationError, FineTuneError, RateLimited

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider, UpDownCounter  # pyright: ignore[reportMissingImports]
    from opentelemetry.trace import Span, Tracer, TracerProvider  # pyright: ignore[reportMissingImports]

__all__ = ["instrument", "uninstrument"]

_NAME: Final = "aiofinetune"
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The bounds that the conventions advise for the duration of requests, in seconds."""


def instrument(*, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None) -> None:
    """Trace and measure all calls, event streams and batches of this process that begin from now on.

    Args:
        tracer_provider: Makes the spans; by default OpenTelemetry's global one.
        meter_provider: Makes the metrics; by default OpenTelemetry's global one.

    Raises:
        ConfigurationError: The extra ``otel`` is not installed, or this was called before.
    """
    try:
        from opentelemetry import metrics, trace  # noqa: PLC0415  # an extra  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigurationError("telemetry needs opentelemetry-api: pip install 'aiofinetune[otel]'") from error
    if _observe.observer is not None:
        raise ConfigurationError("telemetry is on already; call uninstrument() first")
    tracer = trace.get_tracer(_NAME, __version__, tracer_provider)
    _observe.observer = _Telemetry(tracer, metrics.get_meter(_NAME, __version__, meter_provider))


def uninstrument() -> None:
    """Stop what `instrument` began. Spans that are open end when what they describe ends."""
    _observe.observer = None


class _Telemetry:
    """Makes spans and metrics of what is observed."""

    def __init__(self, tracer: Tracer, meter: Meter) -> None:
        self._tracer = tracer
        self._duration = meter.create_histogram(
            "http.client.request.duration", "s", "Duration of calls.", explicit_bucket_boundaries_advisory=_BUCKETS
        )
        self._retries = meter.create_counter("aiofinetune.retries", "{retry}", "Attempts after a failed one.")
        self._throttled = meter.create_counter("aiofinetune.throttled", "{reply}", "Replies that ask to slow down.")
        self._reconnects = meter.create_counter("aiofinetune.reconnects", "{connection}", "Event streams resumed.")
        self._streams = meter.create_up_down_counter("aiofinetune.active_streams", "{stream}", "Open event streams.")
        self._jobs = meter.create_up_down_counter("aiofinetune.active_jobs", "{job}", "Jobs of batches not yet ended.")

    @contextlib.contextmanager
    def call(self, call: _observe.Call) -> Iterator[None]:
        from opentelemetry.trace import SpanKind  # noqa: PLC0415  # an extra  # pyright: ignore[reportMissingImports]

        at = urlsplit(call.base_url)
        port = at.port or (443 if at.scheme == "https" else 80)
        attributes: dict[str, str | int] = {
            "http.request.method": call.method,
            "url.template": _template(call),
            "server.address": at.hostname or "",
            "server.port": port,
        }
        started_at = time.perf_counter()
        name = f"{call.method} {_template(call)}"
        # The message of an error may hold what a service says of the data, so only its class is recorded.
        with self._tracer.start_as_current_span(
            name, kind=SpanKind.CLIENT, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                self._note_failure(call, span, attributes, error)
                raise
            finally:
                if call.status is not None:
                    attributes["http.response.status_code"] = call.status
                self._duration.record(time.perf_counter() - started_at, attributes)
                span.set_attributes(attributes | _more_of(call))

    def _note_failure(
        self, call: _observe.Call, span: Span, attributes: dict[str, str | int], error: BaseException
    ) -> None:
        is_refused = call.status is not None and call.status >= 400
        attributes["error.type"] = str(call.status) if is_refused else type(error).__name__
        if isinstance(error, Exception):
            _set_failed(span)
        if isinstance(error, RateLimited):
            self._throttled.add(1)

    def retrying(self, call: _observe.Call, failure: FineTuneError, seconds: float) -> None:
        self._retries.add(1, {"http.request.method": call.method, "url.template": _template(call)})
        if isinstance(failure, RateLimited):
            self._throttled.add(1)
        _add_event("retry", failure, seconds)

    def stream_opened(self) -> Callable[[], object]:
        self._streams.add(1)
        return lambda: self._streams.add(-1)

    def reconnecting(self, failure: FineTuneError, seconds: float) -> None:
        self._reconnects.add(1)
        _add_event("reconnect", failure, seconds)

    def job(self, label: str, attempt: int) -> _observe.Job:
        attributes: dict[str, str | int] = {"aiofinetune.label": label, "aiofinetune.attempt": attempt}
        return _Job(self._tracer.start_span("aiofinetune.job", attributes=attributes), self._jobs)


class _Job:
    """The span of one job of a batch."""

    def __init__(self, span: Span, active: UpDownCounter) -> None:
        self._span = span
        self._active = active
        self._is_named = False

    def current(self) -> contextlib.AbstractContextManager[object]:
        from opentelemetry.trace import use_span  # noqa: PLC0415  # an extra  # pyright: ignore[reportMissingImports]

        # What ends the job is told to `end`.
        context: contextlib.AbstractContextManager[object] = use_span(
            self._span, record_exception=False, set_status_on_exception=False
        )
        return context

    def name(self, job_id: str) -> None:
        if not self._is_named:
            self._is_named = True
            self._span.set_attribute("aiofinetune.job.id", job_id)
            self._active.add(1)

    def end(self, status: str, error: BaseException | None) -> None:
        self._span.set_attribute("aiofinetune.status", status)
        if error is not None:
            self._span.set_attribute("error.type", type(error).__name__)
            _set_failed(self._span)
        if self._is_named:
            self._active.add(-1)
        self._span.end()


def _template(call: _observe.Call) -> str:
    """Return the template of the whole path of a call, such as ``/v1/fine-tunes/{id}``."""
    return urlsplit(call.base_url).path.rstrip("/") + call.path.replace("{}", "{id}")


def _more_of(call: _observe.Call) -> dict[str, str | int]:
    """Return the attributes of a call that its span has, but no metric, because they have too many values."""
    more: dict[str, str | int] = {}
    if call.url is not None:
        more["url.full"] = call.url
    if call.request_id is not None:
        more["aiofinetune.request_id"] = call.request_id
    if call.attempts > 1:
        more["http.request.resend_count"] = call.attempts - 1
    return more


def _set_failed(span: Span) -> None:
    from opentelemetry.trace import StatusCode  # noqa: PLC0415  # an extra  # pyright: ignore[reportMissingImports]

    span.set_status(StatusCode.ERROR)


def _add_event(name: str, failure: FineTuneError, seconds: float) -> None:
    """Add an event to the span in which something failed: a call, a job of a batch, or the program's own."""
    from opentelemetry.trace import get_current_span  # noqa: PLC0415  # an extra  # pyright: ignore[reportMissingImports]

    get_current_span().add_event(name, {"error.type": type(failure).__name__, "aiofinetune.delay": seconds})
