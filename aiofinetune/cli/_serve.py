"""Serve the API until a signal, with a log of the requests and jobs, and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import signal
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs
import click

from aiofinetune._urls import check_base_url, is_loopback
from aiofinetune.cli._worker import read_token
from aiofinetune.errors import ConfigurationError
from aiofinetune.local import LocalServer
from aiofinetune.local._access import Metrics, extension
from aiofinetune.local._machines import Resources, described, fits
from aiofinetune.local._open_models import read_open_models
from aiofinetune.local._routes.together import BASE_PATH
from aiofinetune.local._trainers import Trainers
from aiofinetune.local._trainers.claims import Claims
from aiofinetune.local._trainers.local_process import LocalProcess
from aiofinetune.local._trainers.remote import Engine, RemoteTrainers

_log = logging.getLogger(__name__)


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
        trainers: Where to train: "local", "workers", or the address of Dask's scheduler; None is one of the first two.
        worker_token_file: The file with the token that claims attempts.
        dask_ca: The certificates that the scheduler is checked with.
        dask_cert: This server's certificate for Dask.
        dask_key: The key of that certificate.
        public_url: The URL of this server for clients and other machines; None for the one that it listens on.
        tls_cert: The certificate to serve https with.
        tls_key: The key of that certificate.
        allow_plain_http: Whether other machines may use http.
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
    trainers: str | None
    worker_token_file: Path | None
    dask_ca: Path | None
    dask_cert: Path | None
    dask_key: Path | None
    public_url: str | None
    tls_cert: Path | None
    tls_key: Path | None
    allow_plain_http: bool


async def serve(data: Path | None, options: Options) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: The server cannot start, or an extra is not installed.
        OutputFailed: Stdout cannot be written.
    """
    models = await asyncio.to_thread(read_open_models, options.models, options.model_options)
    _start_log(options.log_format)
    remote = _remote(options)
    needs = _needs(options.needs)
    if remote is None:
        _check_needs(needs, dict(options.resource))
    trainers: Trainers = remote or LocalProcess(options.slots, dict(options.resource))
    metrics = Metrics(trainers) if options.metrics else None
    token_file = options.worker_token_file
    token = None if token_file is None else await asyncio.to_thread(read_token, token_file)
    extend = extension(metrics, logs=options.log_format is not None)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    server = LocalServer(
        data,
        host=options.host,
        port=options.port,
        api_key=options.api_key,
        trainers=metrics or trainers,
        needs=needs,
        models=models,
        remote=remote,
        worker_token=token,
        tls=_tls(options),
        extend=extend,
    )
    _refuse_plain_text(options)
    public_url = _public_url(options)
    async with server:
        base_url = shown_url(public_url or server.base_url)
        exports = {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": shlex.quote(server.api_key)}
        if _is_plain_beyond_loopback(base_url):
            exports["AIOFINETUNE_ALLOW_PLAIN_HTTP"] = "1"
        _print(exports)
        told = notes(base_url, server.base_url)
        if options.log_format is None:
            told.append("Serving. Press Ctrl-C to stop. Paste the lines above into the client's shell.")
        else:
            told.append(f"Serving at {base_url}.")
        for note in told:
            if options.log_format is None:
                click.echo(note, err=True)
            else:
                _log.info(note)
        await stopped.wait()


def _print(exports: Mapping[str, str]) -> None:
    """Print the lines that point a client at the server.

    Raises:
        OutputFailed: They cannot be written, so that nobody would learn a random key.
    """
    for name, value in exports.items():
        click.echo(f"export {name}={value}")


def _refuse_plain_text(options: Options) -> None:
    """Refuse to serve other machines without https, unless a proxy has it or plain http is allowed.

    Raises:
        ConfigurationError: Keys and data would travel in plain text.
    """
    has_https = options.tls_cert is not None or (options.public_url or "").startswith("https:")
    if not (is_loopback(options.host) or has_https or options.allow_plain_http):
        raise ConfigurationError(
            f"host: other machines can reach {options.host!r}, and the key and data would travel in plain text; give"
            " --tls-cert and --tls-key, or --public-url with the https URL of a proxy, or --allow-plain-http"
        )


def _public_url(options: Options) -> str | None:
    """Return the API's URL for clients, if it is not the one that the server listens on.

    Raises:
        ConfigurationError: It is not valid, or not allowed.
    """
    if options.public_url is None:
        return None
    way_out = "allow plain http (--allow-plain-http)"
    url = check_base_url(
        options.public_url, allow_plain_http=options.allow_plain_http, name="public_url", way_out=way_out
    )
    return f"{url.removesuffix('/v1')}/v1"


_EVERY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  # It listens to none here.
"""The hosts that stand for every address of a machine, which no client can send to, and what this machine can use."""


def shown_url(url: str) -> str:
    """Return the URL to give to a client: with an address of this machine in place of all of them."""
    parts = urlsplit(url)
    host = _EVERY_ADDRESS.get(parts.hostname or "")
    return url if host is None else parts._replace(netloc=f"{host}:{parts.port}").geturl()


def _is_plain_beyond_loopback(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def notes(base_url: str, listens_at: str) -> list[str]:
    """Return what to say about how the server can be reached.

    Args:
        base_url: The URL that clients are given.
        listens_at: The URL that the server listens on.
    """
    lines = []
    listening = urlsplit(listens_at)
    if shown_url(listens_at) == base_url != listens_at:
        lines.append(
            f"Other machines reach it at {listening.scheme}://HOST:{listening.port}/v1, where HOST is a name of this"
            " machine. --public-url prints such a URL here."
        )
    if _is_plain_beyond_loopback(listens_at) and not base_url.startswith("https:"):
        lines.append("Without https, others on the network can read the key, the data and the models on their way.")
    together = base_url.removesuffix("/v1") + BASE_PATH
    return [*lines, f"Together's API is at OPENAI_BASE_URL={together} with AIOFINETUNE_DIALECT=together."]


def _remote(options: Options) -> RemoteTrainers | None:
    """Return what trains on other machines; None to train on this one.

    Raises:
        ConfigurationError: The options do not fit together.
    """
    where = options.trainers or ("workers" if options.worker_token_file else "local")
    is_dask = where.startswith("dask://")
    if not is_dask and where not in ("local", "workers"):
        raise ConfigurationError(f"--trainers: expected local, workers or dask://HOST:PORT, got {where!r}")
    if (where == "workers") != (options.worker_token_file is not None):
        raise ConfigurationError("--trainers workers and --worker-token-file belong together")
    if not is_dask and (options.dask_ca or options.dask_cert or options.dask_key):
        raise ConfigurationError("--dask-ca, --dask-cert and --dask-key are for --trainers dask://HOST:PORT")
    if where != "local" and (options.slots != 1 or options.resource):
        raise ConfigurationError("--slots and --resource are for --trainers local; workers have their own")
    if where == "local":
        return None
    engine: Engine = _dask(where, options) if is_dask else Claims()
    return RemoteTrainers(engine, options.public_url, allow_plain_http=options.allow_plain_http)


def _dask(address: str, options: Options) -> Engine:
    """Return the Dask cluster at an address.

    Raises:
        ConfigurationError: It cannot be used.
    """
    from aiofinetune.local._trainers.dask_engine import DaskEngine  # noqa: PLC0415  # only when it is used

    if options.public_url is None and options.host in _EVERY_ADDRESS:
        raise ConfigurationError(
            f"host: {options.host!r} names no machine, and Dask's workers are told a URL of this server; give"
            " --public-url, or the --host at which they reach it"
        )
    ca, cert, key = options.dask_ca, options.dask_cert, options.dask_key
    if ca is None or cert is None or key is None:
        if ca or cert or key:
            raise ConfigurationError("--dask-ca, --dask-cert and --dask-key belong together")
        return DaskEngine(address)
    return DaskEngine(address, (ca, cert, key))


def _tls(options: Options) -> ssl.SSLContext | None:
    """Return what to serve https with.

    Raises:
        ConfigurationError: The certificate or its key cannot be used.
    """
    if options.tls_cert is None or options.tls_key is None:
        if options.tls_cert or options.tls_key:
            raise ConfigurationError("--tls-cert and --tls-key belong together")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--tls-cert, --tls-key: cannot be used: {error}") from error
    return context


def _needs(given: Sequence[tuple[str, str, int]]) -> Mapping[str, Mapping[str, int]]:
    """Return what jobs need by base model, of what was given for single resources."""
    needs: dict[str, dict[str, int]] = {}
    for model, name, amount in given:
        needs.setdefault(model, {})[name] = amount
    return needs


def _check_needs(needs: Mapping[str, Resources], resources: Resources) -> None:
    """Check that this machine has what a job of each model needs. Workers may bring it at any time; this one cannot.

    Raises:
        ConfigurationError: It has not.
    """
    for model, needed in needs.items():
        if not fits(needed, resources):
            raise ConfigurationError(
                f"--needs: a job of {model!r} needs {described(needed)}, but this machine has"
                f" {described(resources) or 'nothing'}; say what it has with --resource NAME=AMOUNT"
            )


def _start_log(log_format: str | None) -> None:
    """Log to stderr, what other packages log too; without a format, only the warnings, as text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if log_format == "json" else _text())
    logging.getLogger().addHandler(handler)
    if log_format is not None:
        logging.getLogger("aiofinetune").setLevel(logging.INFO)


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
