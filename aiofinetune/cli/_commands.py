"""The commands: parse options, call the library and print. They have no logic of their own."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from aiofinetune._version import __version__
from aiofinetune.cli._exit import MEANINGS
from aiofinetune.cli._options import WORDS, Command, examples, session_command
from aiofinetune.cli._types import LocalPath, Number

if TYPE_CHECKING:
    from aiofinetune.cli._shell import Shell

# ruff: noqa: PLC0415  # each command imports what it runs, so that --help does not wait for the rest

_LATER: Final = {
    "create": ("_jobs", "Create a job from a training file."),
    "list": ("_jobs", "List the jobs, the newest first."),
    "get": ("_jobs", "Show jobs."),
    "follow": ("_jobs", "Print the events of a job until it ends."),
    "events": ("_jobs", "Print the events of a job so far."),
    "cancel": ("_jobs", "Cancel jobs."),
    "pause": ("_jobs", "Pause jobs, where the service can."),
    "resume": ("_jobs", "Resume paused jobs, where the service can."),
    "checkpoints": ("_jobs", "List the models that a job has saved."),
    "delete-job": ("_jobs", "Delete jobs, where the service can."),
    "files": ("_files", "Upload, list, download and delete files."),
    "models": ("_models", "List the models that the key may use."),
    "delete-model": ("_models", "Delete fine-tuned models."),
    "serve": (
        "_embedded",
        "Serve the fine-tunes API, training small models, or adapters of local open ones, for real.",
    ),
    "worker": ("_embedded", "Train jobs for a server on another machine, one after the other, until stopped."),
    "demo": ("_embedded", "Fine-tune a model on real data, offline, and show what it learned."),
    "batch status": ("_batch_status", "Show how far a batch is, from its journal."),
}
"""The module of each command that is imported when it is used, and its line in the list of commands."""


class _Group(click.Group):
    """A group that names the nearest command for a misspelt one; click itself knows only commands that are imported."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of the first word."""
        word = args[0]
        if not (ctx.resilient_parsing or word.startswith("-")) and self.get_command(ctx, word) is None:
            import difflib

            if near := difflib.get_close_matches(word, self.list_commands(ctx), 1):
                ctx.fail(f"No such command {word!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)


class _Commands(_Group):
    """The group of all commands. To list them imports none of them."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:  # Any: as click has it
        """Keep the words of the command line, which some commands repeat."""
        words = tuple(args)
        ctx = super().make_context(info_name, args, parent, **extra)
        ctx.meta[WORDS] = words
        return ctx

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of the first word, or of the first two: a batch is run without a word of its own for it."""
        name = " ".join(args[:2])
        if name in _LATER:
            return name, self.get_command(ctx, name), args[2:]
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, those about jobs first."""
        first = [name for name in _LATER if " " not in name]
        return [*first, *sorted({*super().list_commands(ctx), *_LATER} - set(first))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command."""
        if cmd_name not in _LATER:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"aiofinetune.cli.{_LATER[cmd_name][0]}")
        command: click.Command = module.COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._lines(ctx)))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit statuses, and how to set what all commands share."""
        with formatter.section("Exit status"):
            formatter.write_dl([(str(int(status)), meaning) for status, meaning in MEANINGS.items()])
        super().format_epilog(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and options that start with what was typed."""
        lines = [(name, line) for name, line in self._lines(ctx) if " " not in name]
        found = [CompletionItem(name, help=line) for name, line in lines if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def _lines(self, ctx: click.Context) -> Iterator[tuple[str, str]]:
        for name in self.list_commands(ctx):
            if name in _LATER:
                yield name, _LATER[name][1]
            elif command := self.get_command(ctx, name):
                yield name, command.get_short_help_str(200)


class _Data(_Group):
    """The group of the commands about data, which are imported when one of them is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        from aiofinetune.cli import _data

        return super().list_commands(ctx) or sorted(_data.COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command."""
        from aiofinetune.cli import _data

        return super().get_command(ctx, cmd_name) or _data.COMMANDS.get(cmd_name)


_ABOUT: Final = """\
Each shared option (see 'aiofinetune list --help') can also be a variable, such as AIOFINETUNE_BASE_URL, or a line of
your own configuration file (config.toml in ~/.config/aiofinetune), such as:

\b
  base_url = "https://tuning.example.com/v1"

\b
Examples:
  aiofinetune create train.jsonl --model ada --follow
  aiofinetune list --limit 10
  aiofinetune batch sweep.toml --max-active 3
  aiofinetune create train.jsonl --local --follow

\b
Completion in bash (zsh_source, fish_source elsewhere):
  eval "$(_AIOFINETUNE_COMPLETE=bash_source aiofinetune)"
"""


@click.group(
    cls=_Commands,
    epilog=_ABOUT,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def cli() -> None:
    """Fine-tune models through the fine-tunes API, or serve that API on this machine."""


@cli.command()
@click.option("--dialect", metavar="NAME", help="Only this dialect.")
def services(dialect: str | None) -> None:
    """List the services that a session can speak to, and what each can and cannot."""
    from rich.console import Console

    from aiofinetune.cli._run import reported
    from aiofinetune.cli._services import show

    with reported():
        show(Console(), dialect)


@cli.command(
    cls=Command,
    epilog=examples(
        "aiofinetune batch sweep.toml --check",
        "aiofinetune batch sweep.toml --max-active 3 --results results/ --summary outcomes.jsonl",
        "aiofinetune batch sweep.toml --retry-failed",
        "aiofinetune batch nightly.toml --fresh --results results/",
        "aiofinetune batch status sweep.toml.journal",
    ),
)
@click.argument("manifest", type=LocalPath(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--journal",
    type=LocalPath(path_type=Path, dir_okay=False),
    help="What the batch did, to continue it from. Default: MANIFEST.journal.",
)
@click.option("--fresh", is_flag=True, help="Begin a new journal, with the time in its name, and so all jobs anew.")
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
    type=Number(0, min_open=True),
    help="Maximum number of jobs to create per minute.",
)
@click.option(
    "--poll-interval",
    type=Number(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds between requests for the list of jobs.",
)
@click.option(
    "--outage",
    type=Number(0),
    default=300.0,
    show_default=True,
    help="Seconds for which the service may be away before the batch sends no more.",
)
@click.option("--results", type=LocalPath(path_type=Path, file_okay=False), help="Folder for the results files.")
@click.option("--summary", type=LocalPath(path_type=Path, dir_okay=False), help="JSON Lines file for the outcomes.")
@click.option("--fail-fast", is_flag=True, help="Stop sending after the first failure.")
@click.option("--cancel-on-exit", is_flag=True, help="Cancel the jobs that are still active on exit.")
@click.option("--accept-changes", is_flag=True, help="Create new jobs for requests that have changed.")
@click.option("--accept-base-url", is_flag=True, help="Continue at another base URL, which is the same service.")
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
@session_command
async def batch(
    shell: Shell, manifest: Path, journal: Path | None, summary: Path | None, *, fresh: bool, **options: Any
) -> int:
    """Run all jobs of a MANIFEST (TOML or JSON Lines).

    If it is killed or interrupted, run the same command again to continue. The first Ctrl-C stops sending and leaves
    active jobs running at the service; the second exits at once. 'aiofinetune batch status JOURNAL' shows how far a
    batch is.
    """
    from aiofinetune.cli._batch import journal_of, run_manifest

    if fresh and (options["retry_failed"] or options["retry_uncertain"]):
        raise click.UsageError("--fresh begins a new journal, with nothing to retry; leave out one of them")
    with journal_of(manifest, journal, fresh=fresh, is_local=shell.local) as path:
        return await run_manifest(manifest, path, summary, shell, **options)


@cli.group(cls=_Data)
def data() -> None:
    """Check and mend training data; split, convert and sample it."""


_PLOT = LocalPath(path_type=Path, dir_okay=False, writable=True)
"""The file of a picture."""


@cli.command(
    cls=Command,
    epilog=examples(
        "aiofinetune results ft-abc123",
        "aiofinetune results results/*.csv --plot curves.png",
    ),
)
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@click.option("--plot", type=_PLOT, help="Draw a picture into this file (.png or .svg) instead; needs matplotlib.")
@click.option(
    "--epochs", type=click.IntRange(1), help="Number of epochs, to mark them where a file does not show them."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print the rows as CSV.")
@session_command
async def results(shell: Shell, jobs: tuple[str, ...], **options: Any) -> int:
    """Show the curves of jobs, each given by its id or by its results file (results/*.csv).

    Of one job it shows the training loss of each step and its mean, the validation loss, and the accuracy; of several
    jobs one picture of each figure.
    """
    from aiofinetune.cli._results import show_results

    return await show_results(jobs, shell, **options)


@cli.command(
    cls=Command,
    epilog=examples(
        "aiofinetune compare sweep.toml --results results/ --sort validation_loss",
        "aiofinetune compare sweep.toml --plot sweep.svg --figure accuracy --against n_epochs",
        "aiofinetune compare ft-abc123 ft-def456 --json",
    ),
)
@click.argument("jobs", metavar="MANIFEST|JOURNAL|JOB...", nargs=-1, required=True)
@click.option(
    "--journal",
    type=LocalPath(path_type=Path, exists=True, dir_okay=False),
    help="Default: MANIFEST.journal, or that of a run with --fresh if it was written later.",
)
@click.option(
    "--results",
    type=LocalPath(path_type=Path, file_okay=False, exists=True),
    help="Folder that the batch downloaded results files to. By default they are downloaded again.",
)
@click.option("--sort", metavar="COLUMN", help="Sort by a figure (the best first), a parameter or another column.")
@click.option("--plot", type=_PLOT, help="Draw a picture into this file (.png or .svg) instead; needs matplotlib.")
@click.option("--figure", metavar="FIGURE", help="The figure of the picture. Default: the first of the table.")
@click.option("--against", metavar="PARAMETER", help="Its horizontal axis. Default: the one with the most values.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the table as CSV.")
@session_command
async def compare(shell: Shell, jobs: tuple[str, ...], **options: Any) -> int:
    """Compare the jobs of a batch, given by its MANIFEST or JOURNAL, or other JOBs, given by ids or results files.

    The table has the parameters in which the jobs differ, and the final value of each figure. The journal is only read,
    also while its batch runs.
    """
    from aiofinetune.cli._compare import Options
    from aiofinetune.cli._compare import compare as compare_jobs

    return await compare_jobs(jobs, shell, Options(**options))


@cli.command(
    "try",
    cls=Command,
    epilog=examples(
        "aiofinetune try ada:ft-acme-2026-01-02-03-04-05 'the film was dull ->'",
        "aiofinetune try ada:ft-acme-2026-01-02-03-04-05 --beside ada --file held_out.jsonl",
    ),
)
@click.argument("model")
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@click.option(
    "--file",
    type=LocalPath(path_type=Path, dir_okay=False, exists=True),
    help="Data file of prompts, in any format; with completions the accuracy is measured.",
)
@click.option("--prompt", default="prompt", show_default=True, help="Column of --file with the prompts.")
@click.option("--completion", default="completion", show_default=True, help="Column of --file with the completions.")
@click.option("--chat/--no-chat", default=None, help="Ask by messages, or not; by default as the service's API has it.")
@click.option("--beside", metavar="MODEL", help="Show the answers of another model too, such as the base model.")
@click.option("--max-tokens", type=click.IntRange(1), default=16, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", type=Number(0, 2), default=0.0, show_default=True, help="0 is not random.")
@click.option("--stop", multiple=True, help="Text at which an answer ends; may be given several times.")
@click.option("--show", type=click.IntRange(0), default=10, show_default=True, help="Rows of --file to show.")
@session_command
async def try_(
    shell: Shell,
    model: str,
    prompts: tuple[str, ...],
    file: Path | None,
    beside: str | None,
    prompt: str,
    completion: str,
    **options: Any,  # as `Options` takes them
) -> int:
    """Show what a MODEL answers to each PROMPT, or to those of a file.

    End a prompt the way that the training prompts end.
    """
    from aiofinetune.cli._try import Options, try_models
    from aiofinetune.data import Columns

    models = (model,) if beside is None else (model, beside)
    asked = Options(columns=Columns(prompt, completion), **options)
    return await try_models(models, prompts, file, shell, asked)
