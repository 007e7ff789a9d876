"""The commands: parse options, call the library and print. They have no logic of their own."""

from __future__ import annotations

import asyncio
import io
import shlex
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from aiofinetune._version import __version__
from aiofinetune.errors import FineTuneError

# ruff: noqa: PLC0415  # each command imports what it runs, so that --help does not wait for the rest


class _Later(click.Group):
    """A group whose commands are imported when one of them is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        from aiofinetune.cli import _data

        return super().list_commands(ctx) or sorted(_data.COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command."""
        from aiofinetune.cli import _data

        return super().get_command(ctx, cmd_name) or _data.COMMANDS.get(cmd_name)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Fine-tune models through the fine-tunes API, or serve that API on this machine."""


@cli.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. An address other than loopback needs --api-key.",
)
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 chooses a free port.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the server's state; by default a temporary folder.",
)
@click.option("--api-key", envvar="AIOFINETUNE_API_KEY", help="Key that clients must send; by default a random key.")
def serve(host: str, port: int, data: Path | None, api_key: str | None) -> None:
    """Serve the fine-tunes API, training small models for real."""
    _run(_serve(host, port, data, api_key))


async def _serve(host: str, port: int, data: Path | None, api_key: str | None) -> None:
    from aiofinetune.local import LocalServer

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with LocalServer(data, host=host, port=port, api_key=api_key) as server:
        click.echo(f"export OPENAI_BASE_URL={server.base_url}")
        click.echo(f"export OPENAI_API_KEY={shlex.quote(server.api_key)}")
        click.echo("Serving. Press Ctrl-C to stop. Paste the lines above into the client's shell.", err=True)
        await stopped.wait()


@cli.command()
@click.option("--model", default="curie", show_default=True, type=click.Choice(["ada", "babbage", "curie", "davinci"]))
@click.option(
    "--dialect",
    default="fine-tunes",
    show_default=True,
    type=click.Choice(["fine-tunes", "jobs"]),
    help="The API to use.",
)
def demo(model: str, dialect: str) -> None:
    """Fine-tune a model on real data, offline, and show what it learned."""
    from aiofinetune.cli import _demo as demonstration

    _run(demonstration.run(model, dialect, Console()))


@cli.command()
def services() -> None:
    """List the services that a session can speak to, and what each can and cannot."""
    from aiofinetune.cli._services import show

    show(Console())


@cli.command()
@click.argument("manifest", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--journal", type=click.Path(path_type=Path, dir_okay=False), help="Default: MANIFEST.journal.")
@click.option(
    "--max-active",
    type=click.IntRange(1),
    help="Maximum number of active jobs at the service, including those of other programs.",
)
@click.option("--reserve", type=click.IntRange(0), default=0, help="Part of --max-active to leave to other programs.")
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Maximum number of requests at once.",
)
@click.option(
    "--per-minute",
    type=click.FloatRange(0, min_open=True),
    help="Maximum number of jobs to create per minute.",
)
@click.option(
    "--poll-interval",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds between requests for the list of jobs.",
)
@click.option("--results", type=click.Path(path_type=Path, file_okay=False), help="Folder for the results files.")
@click.option("--summary", type=click.Path(path_type=Path, dir_okay=False), help="JSON Lines file for the outcomes.")
@click.option("--fail-fast", is_flag=True, help="Stop sending after the first failure.")
@click.option("--cancel-on-exit", is_flag=True, help="Cancel the jobs that are still active on exit.")
@click.option("--accept-changes", is_flag=True, help="Create new jobs for requests that have changed.")
@click.option("--retry-failed", is_flag=True, help="Create new jobs where the last one failed or was cancelled.")
@click.option(
    "--retry-uncertain",
    multiple=True,
    metavar="LABEL",
    help="Create a new job for an uncertain or vanished entry; a job that was made after all costs money too.",
)
@click.option("--show-ended", is_flag=True, help="Print also the entries that ended in an earlier run.")
@click.option("--check", is_flag=True, help="Check the manifest and its data files without sending anything.")
@click.option("--no-data-check", "data_check", flag_value=False, default=True, help="Do not look into the data files.")
def batch(manifest: Path, journal: Path | None, summary: Path | None, *, check: bool, **options: Any) -> None:
    """Run all jobs of a MANIFEST (JSON Lines or TOML).

    If it is killed or interrupted, run the same command again to continue. The first Ctrl-C stops sending and leaves
    active jobs running at the service; the second exits at once.
    """
    from aiofinetune.cli._batch import run_manifest

    journal = journal or manifest.with_name(f"{manifest.name}.journal")
    _run(run_manifest(manifest, journal, summary, Console(), check=check, **options))


@cli.group(cls=_Later)
def data() -> None:
    """Check and mend training data; split, convert and sample it."""


_PLOT = click.Path(path_type=Path, dir_okay=False, writable=True)
"""The file of a picture."""


@cli.command()
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@click.option("--plot", type=_PLOT, help="Draw a picture into this file (.png or .svg) instead; needs matplotlib.")
@click.option(
    "--epochs", type=click.IntRange(1), help="Number of epochs, to mark them where a file does not show them."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print the rows as CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary and the rows as JSON.")
def results(jobs: tuple[str, ...], **options: Any) -> None:
    """Show the curves of jobs, each given by its id or by its results file (results/*.csv).

    Of one job it shows the training loss of each step and its mean, the validation loss, and the accuracy; of several
    jobs one picture of each figure.
    """
    from aiofinetune.cli._results import show_results

    _run(show_results(jobs, Console(), **options))


@cli.command()
@click.argument("jobs", metavar="MANIFEST|JOURNAL|JOB...", nargs=-1, required=True)
@click.option("--journal", type=click.Path(path_type=Path, dir_okay=False), help="Default: MANIFEST.journal.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder that the batch downloaded results files to. By default they are downloaded again.",
)
@click.option("--sort", metavar="COLUMN", help="Sort by a figure (the best first), a parameter or another column.")
@click.option("--plot", type=_PLOT, help="Draw a picture into this file (.png or .svg) instead; needs matplotlib.")
@click.option("--figure", metavar="FIGURE", help="The figure of the picture. Default: the first of the table.")
@click.option("--against", metavar="PARAMETER", help="Its horizontal axis. Default: the one with the most values.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the table as CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def compare(jobs: tuple[str, ...], **options: Any) -> None:
    """Compare the jobs of a batch, given by its MANIFEST or JOURNAL, or other JOBs, given by ids or results files.

    The table has the parameters in which the jobs differ, and the final value of each figure. The journal is only read,
    also while its batch runs.
    """
    from aiofinetune.cli._compare import Options
    from aiofinetune.cli._compare import compare as compare_jobs

    _run(compare_jobs(jobs, Console(), Console(stderr=True), Options(**options)))


@cli.command("try")
@click.argument("model")
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help='JSON Lines with {"prompt": ..., "completion": ...}; with completions the accuracy is measured.',
)
@click.option("--beside", metavar="MODEL", help="Show the answers of another model too, such as the base model.")
@click.option("--max-tokens", type=click.IntRange(1), default=16, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="0 is not random.")
@click.option("--stop", multiple=True, help="Text at which an answer ends; may be given several times.")
@click.option("--show", type=click.IntRange(0), default=10, show_default=True, help="Rows of --file to show.")
@click.option("--json", "as_json", is_flag=True, help="Print all answers and the accuracy as JSON.")
def try_(model: str, prompts: tuple[str, ...], file: Path | None, beside: str | None, **options: Any) -> None:
    """Show what a MODEL answers to each PROMPT, or to those of a file.

    End a prompt the way that the training prompts end.
    """
    from aiofinetune.cli._try import Options, try_models

    models = (model,) if beside is None else (model, beside)
    _run(try_models(models, prompts, file, Console(), Console(stderr=True), Options(**options)))


def _run(main: Coroutine[object, object, int | None]) -> None:
    """Run a coroutine and exit with the status that it returns. Print this package's own errors to stderr."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot display must not stop a batch.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = asyncio.run(main)
    except FineTuneError as error:
        sys.exit(f"aiofinetune: {error}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        # By convention 128 plus the number of SIGINT.
        sys.exit(130)
    sys.exit(status)
