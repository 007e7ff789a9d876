"""The commands of the embedded server. What they run is imported only then: it may need extras, and takes long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from aiofinetune.cli._options import examples
from aiofinetune.cli._resources import read_needs, read_resources
from aiofinetune.cli._types import LocalPath

# ruff: noqa: PLC0415  # see above

_READ: Final = LocalPath(path_type=Path, exists=True, dir_okay=False)
"""A file that is read."""


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. One beyond loopback needs --api-key, and https: --tls-cert and --tls-key, or"
    " --public-url of a proxy with https (or else --allow-plain-http).",
)
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 chooses a free port.",
)
@click.option(
    "--local-data",
    type=LocalPath(path_type=Path, file_okay=False),
    help="Folder for the server's state; by default a temporary folder.",
)
@click.option(
    "--api-key",
    envvar="AIOFINETUNE_API_KEY",
    help="Key that clients must send; by default a random key. In the variable AIOFINETUNE_API_KEY, it stays"
    " out of the list of processes.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Log requests and jobs to stderr like this.")
@click.option("--metrics", is_flag=True, help="Serve metrics for Prometheus at /metrics, with the same key.")
@click.option(
    "--slots",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of jobs to train at once on this machine; each uses one core.",
)
@click.option(
    "--resource",
    metavar="NAME=AMOUNT",
    multiple=True,
    callback=read_resources,
    help="What this machine has for models that need it, such as gpu=1; may be given several times.",
)
@click.option(
    "--needs",
    metavar="MODEL:NAME=AMOUNT",
    multiple=True,
    callback=read_needs,
    help="What a job of a base model needs, such as davinci:gpu=1; may be given several times.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME=PATH",
    help="Offer the open model in a folder too, to train adapters of it; may be given several times.",
)
@click.option(
    "--model-option",
    "model_options",
    multiple=True,
    metavar="NAME.SETTING=VALUE",
    help="How adapters of it are trained: rank, alpha, base_rate, targets, max_length or threads.",
)
@click.option(
    "--trainers",
    metavar="local|workers|dask://HOST:PORT",
    help="Where to train: on this machine (the default), or on others by Dask or 'aiofinetune worker'.",
)
@click.option(
    "--worker-token-file",
    type=_READ,
    help="File with the token that lets 'aiofinetune worker' train jobs; implies --trainers workers.",
)
@click.option("--dask-ca", type=_READ, help="Certificates that Dask's scheduler is checked with; needed off loopback.")
@click.option("--dask-cert", type=_READ, help="This server's certificate for Dask.")
@click.option("--dask-key", type=_READ, help="The key of that certificate.")
@click.option(
    "--public-url", help="URL of this server for clients and other machines; by default the address it listens on."
)
@click.option("--tls-cert", type=_READ, help="Certificate to serve https with.")
@click.option("--tls-key", type=_READ, help="The key of that certificate.")
@click.option("--allow-plain-http", is_flag=True, help="Let keys and data travel to other machines over http.")
def serve(local_data: Path | None, **options: Any) -> None:
    """Serve the fine-tunes API, training small models, or adapters of local open ones, for real."""
    from aiofinetune.cli._serve import Options
    from aiofinetune.cli._serve import serve as serve_until_signal

    _run(lambda: serve_until_signal(local_data, Options(**options)))


@click.command(epilog=examples("aiofinetune worker --server https://tuning.example.com --token-file worker.token"))
@click.option("--server", required=True, metavar="URL", help="URL of 'aiofinetune serve'.")
@click.option("--token-file", required=True, type=_READ, help="File with the server's token for workers.")
@click.option(
    "--resource",
    metavar="NAME=AMOUNT",
    multiple=True,
    callback=read_resources,
    help="What this machine has for models that need it, such as gpu=1; may be given several times.",
)
@click.option("--allow-plain-http", is_flag=True, help="Let the server be another machine although its URL is http.")
def worker(server: str, token_file: Path, **options: Any) -> None:
    """Train jobs for a server on another machine, one after the other, until stopped."""
    from aiofinetune.cli._exit import worker_way_out
    from aiofinetune.cli._worker import run_worker

    _run(lambda: run_worker(server, token_file, **options), worker_way_out)


@click.command()
@click.option("--model", default="curie", show_default=True, type=click.Choice(["ada", "babbage", "curie", "davinci"]))
@click.option(
    "--model-path",
    type=LocalPath(path_type=Path, file_okay=False),
    help="Folder of a local open model to tune instead; needs the extra 'transformers'.",
)
@click.option("--n-epochs", type=click.IntRange(1), help="Number of epochs; by default 4, or 1 for an open model.")
@click.option(
    "--dialect",
    default="fine-tunes",
    show_default=True,
    type=click.Choice(["fine-tunes", "jobs", "together"]),
    help="The API to use.",
)
def demo(model: str, model_path: Path | None, n_epochs: int | None, dialect: str) -> None:
    """Fine-tune a model on real data, offline, and show what it learned."""
    from rich.console import Console

    from aiofinetune.cli import _demo as demonstration

    _run(lambda: demonstration.run(model, n_epochs, dialect, Console(), model_path))


def _run(
    main: Callable[[], Coroutine[object, object, int | None]],
    find_way_out: Callable[[BaseException], str | None] | None = None,
) -> NoReturn:
    """Run a coroutine that needs no session, and exit with its status."""
    from aiofinetune.cli._exit import way_out
    from aiofinetune.cli._run import reported, run

    with reported(find_way_out=find_way_out or way_out):
        status = run(main())
    sys.exit(status)


COMMANDS: Final = {"serve": serve, "worker": worker, "demo": demo}
"""The commands, by name."""
