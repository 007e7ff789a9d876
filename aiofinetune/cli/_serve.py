"""Serve the API until a signal, with a log of the requests and jobs, and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import click

from aiofinetune.local import LocalServer
from aiofinetune.local._access import Metrics, extension
from aiofinetune.local._open_models import read_open_models
from aiofinetune.local._trainers import Trainers
from aiofinetune.local._trainers.local_process import LocalProcess


@attrs.frozen
class Options:
    """How to serve.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 chooses a free one.
        api_key: The key that clients must send; None makes a random one.
        log_format: How to log requests and jobs to stderr, "text" or "json"; None logs only warnings, as text.
        metrics: Whether to serve ``/metrics``.
        slots: The number of jobs to train at once on this machine.
        resource: What this machine has, such as ``("gpu", 1)``, for models that need it.
        needs: What a job needs, by its base model, such as ``("davinci", "gpu", 1)``.
        models: Local open models, as ``"NAME=PATH"``.
        model_options: How adapters of them are trained, as ``"NAME.SETTING=VALUE"``.
    """

    host: str
    port: int
    api_key: str | None
    log_format: str | None
    metrics: bool
    slots: int
    resource: Sequence[tuple[str, int]]
    needs: Sequence[tuple[str, str, int]]
    models: tuple[str, ...]
    model_options: tuple[str, ...]


async def serve(data: Path | None, options: Options) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: The server cannot start, or an extra is not installed.
    """
    models = await asyncio.to_thread(read_open_models, options.models, options.model_options)
    _start_log(options.log_format)
    trainers: Trainers = LocalProcess(options.slots, dict(options.resource))
    metrics = Metrics(trainers) if options.metrics else None
    extend = extension(metrics, logs=options.log_format is not None)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with LocalServer(
        data,
        host=options.host,
        port=options.port,
        api_key=options.api_key,
        trainers=metrics or trainers,
        needs=_needs(options.needs),
        models=models,
        extend=extend,
    ) as server:
        click.echo(f"export OPENAI_BASE_URL={server.base_url}")
        click.echo(f"export OPENAI_API_KEY={shlex.quote(server.api_key)}")
        click.echo("Serving. Press Ctrl-C to stop. Paste the lines above into the client's shell.", err=True)
        await stopped.wait()


def _needs(given: Sequence[tuple[str, str, int]]) -> Mapping[str, Mapping[str, int]]:
    """Return what jobs need by base model, of what was given for single resources."""
    needs: dict[str, dict[str, int]] = {}
    for model, name, amount in given:
        needs.setdefault(model, {})[name] = amount
    return needs


def _start_log(log_format: str | None) -> None:
    """Log to stderr; without a format, logging's own last resort shows the warnings."""
    if log_format is None:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if log_format == "json" else _text())
    logger = logging.getLogger("aiofinetune")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _text() -> logging.Formatter:
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    return formatter


_OWN: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""The attributes that every record has; all others are fields."""


class Json(logging.Formatter):
    """Writes a record as one line of JSON: time, level, logger, message, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in record.__dict__.items() if name not in _OWN},
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
