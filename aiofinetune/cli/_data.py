"""``aiofinetune data``: check, mend, split, convert and sample data files, and print what was found or done."""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from aiofinetune.cli._exit import Exit
from aiofinetune.cli._output import print_line, print_table, print_text
from aiofinetune.cli._run import reported
from aiofinetune.cli._types import LocalPath, Number
from aiofinetune.data import (
    CHECKS,
    EMBEDDED,
    FINE_TUNES,
    JOBS,
    Columns,
    Finding,
    MendReport,
    Place,
    Report,
    Severity,
    SplitReport,
    Suggestion,
    Template,
    check_file,
    convert_file,
    mend_file,
    sample_file,
    split_file,
    suggest_request,
)
from aiofinetune.errors import LocalFileError

Function = TypeVar("Function", bound=Callable[..., Any])  # Any: click calls it by the names of its options

_STYLES: Final = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_RULES: Final = {"embedded": EMBEDDED, "fine-tunes": FINE_TUNES, "jobs": JOBS}
_QUIET_SECONDS: Final = 1.0
"""A progress bar appears after this time."""

_FILE: Final = LocalPath(path_type=Path, exists=True, dir_okay=False)
_OUTPUT: Final = LocalPath(path_type=Path, dir_okay=False)
_output = click.option("-o", "--output", type=_OUTPUT, required=True, help="JSON Lines file to write.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace files that exist; never the input.")
_seed = click.option("--seed", type=int, default=0, show_default=True, help="The same seed chooses the same rows.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_api = click.option(
    "--api",
    type=click.Choice(sorted(_RULES)),
    help="The API whose rules apply; by default, the one that fits the rows.",
)


def _reading(function: Function) -> Function:
    """Add the options of commands that read rows."""
    for option in (
        click.option("--fallback-encoding", "fallback", help="Encoding of the lines that are not valid otherwise."),
        click.option("--encoding", help="The file's encoding; by default UTF-8, or what its first bytes show."),
    ):
        function = option(function)
    return function


def _mapped(function: Function) -> Function:
    """Add the options of commands that look for prompts and completions."""
    for option in (
        click.option("--completion", default="completion", help="Column with the completions.", show_default=True),
        click.option("--prompt", default="prompt", help="Column with the prompts.", show_default=True),
    ):
        function = option(function)
    return _reading(function)


def _told(function: Function) -> Function:
    """Print this package's own errors, and exit with their status."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:  # Any: as click calls it
        with reported():
            function(*args, **options)

    return run  # type: ignore[return-value]  # click takes it for the function


@click.command()
@click.argument("files", type=_FILE, nargs=-1, required=True)
@click.option(
    "--validation-file", "validation", type=_FILE, help="Validation file, which must share no prompt with FILES."
)
@_api
@_mapped
@click.option("--tokenizer", type=_FILE, help="tokenizer.json to count tokens with; by default they are estimated.")
@click.option("--price", type=Number(0), help="Price of 1,000 trained tokens, to state the cost.")
@click.option("--epochs", type=click.IntRange(1), help="Number of epochs; by default the service's.")
@click.option(
    "--fail-on",
    type=click.Choice([*map(str, Severity), "never"]),
    default="error",
    show_default=True,
    help="Exit with status 5 if there is a problem as bad as this.",
)
@_json
@click.option("-o", "--output", type=_OUTPUT, help="Write the report to this file, as JSON.")
@_told
def check(
    files: tuple[Path, ...],
    api: str | None,
    prompt: str,
    completion: str,
    price: float | None,
    epochs: int | None,
    fail_on: str,
    output: Path | None,
    *,
    as_json: bool,
    **options: Any,  # as `check_file` takes them
) -> None:
    """Report what is wrong with data FILES, the worst first."""
    console, is_bad, told = Console(highlight=False), False, list[dict[str, object]]()
    for file in files:
        with progress_bar(file) as progress:
            rules = None if api is None else _RULES[api]
            report = check_file(file, rules=rules, columns=Columns(prompt, completion), progress=progress, **options)
        suggestion = suggest_request(report, n_epochs=epochs, price_per_1000_tokens=price)
        told.append({**report.to_dict(), "suggestion": None if suggestion is None else suggestion.to_dict()})
        is_bad |= fail_on != "never" and bool(report.at_least(Severity(fail_on)))
        if not as_json:
            _show_report(console, report, suggestion, Columns(prompt, completion))
    text = _json_of(told if len(told) > 1 else told[0]) + "\n"
    if output is not None:
        read = (options["validation"], options["tokenizer"])
        _write(output, (*files, *(it for it in read if it is not None)), text)
    if as_json:
        click.echo(text, nl=False)
    sys.exit(int(Exit.DATA_WRONG if is_bad else Exit.DONE))


@click.command()
@click.argument("file", type=_FILE)
@click.option("-o", "--output", type=_OUTPUT, help="JSON Lines file to write.")
@click.option("--dry-run", is_flag=True, help="Write nothing, and show what would change.")
@click.option("--mend", "mends", multiple=True, metavar="CHECK", help="Mend this too, by the check's id; repeatable.")
@click.option("--without", multiple=True, metavar="CHECK", help="Leave this as it is: duplicate, empty-completion.")
@_api
@_mapped
@_overwrite
@_json
@_told
def mend(
    file: Path,
    output: Path | None,
    api: str | None,
    prompt: str,
    completion: str,
    *,
    dry_run: bool,
    as_json: bool,
    **options: Any,  # as `mend_file` takes them
) -> None:
    """Write a mended copy of a data FILE: what `check` calls safe, and what is named with --mend."""
    if dry_run == (output is not None):
        raise click.UsageError("give either --output or --dry-run")
    with progress_bar(file) as progress:
        rules = None if api is None else _RULES[api]
        columns = Columns(prompt, completion)
        report = mend_file(file, output, rules=rules, columns=columns, progress=progress, **options)
    if as_json:
        _print_json(report.to_dict())
    else:
        _show_mends(Console(highlight=False), report)
    if report.rows_in and not report.rows_out:
        raise report.nothing_left()


@click.command()
@click.argument("file", type=_FILE)
@click.option(
    "--training-file", "training", type=_OUTPUT, required=True, help="JSON Lines file to write the training rows to."
)
@click.option(
    "--validation-file",
    "validation",
    type=_OUTPUT,
    required=True,
    help="JSON Lines file to write the validation rows to.",
)
@click.option("--share", type=Number(0, 1, min_open=True, max_open=True), help="For validation; default 0.2.")
@click.option("--count", type=click.IntRange(1), help="Number of rows for validation.")
@_seed
@_mapped
@_overwrite
@_json
@_told
def split(file: Path, prompt: str, completion: str, *, as_json: bool, **options: Any) -> None:  # as `split_file` has it
    """Split a FILE into training and validation rows, each class alike, and equal prompts together."""
    report = split_file(file, columns=Columns(prompt, completion), **options)
    if as_json:
        _print_json(report.to_dict())
    else:
        _show_split(Console(highlight=False), report)


@click.command()
@click.argument("file", type=_FILE)
@_output
@click.option("--to", type=click.Choice(["pairs", "messages"]), help="Shape of the rows; by default as they are.")
@click.option("--separator", default="", help="What ends each prompt, but no message.")
@click.option("--space", default="", help="What starts each completion, but no message.")
@click.option("--stop", default="", help="What ends each completion, but no message.")
@click.option("--system", help="Message of the system that starts each row of messages.")
@_mapped
@_overwrite
@_told
def convert(
    file: Path, prompt: str, completion: str, separator: str, space: str, stop: str, system: str | None, **options: Any
) -> None:  # Any: as `convert_file` takes them
    r"""Write a FILE as JSON Lines, as pairs or messages. In --separator and --stop, \n is a line break."""
    template = Template(_unescaped(separator), _unescaped(space), _unescaped(stop), system)
    count = convert_file(file, template=template, columns=Columns(prompt, completion), **options)
    click.echo(f"{count:,} rows written to {options['output']}")


@click.command()
@click.argument("file", type=_FILE)
@_output
@click.option("--count", type=click.IntRange(1), required=True, help="Number of rows.")
@_seed
@_reading
@_overwrite
@_told
def sample(file: Path, **options: Any) -> None:  # Any: as `sample_file` takes them
    """Write some rows of a FILE, chosen by chance, in their order."""
    click.echo(f"{sample_file(file, **options):,} rows written to {options['output']}")


@click.command()
@click.argument("names", metavar="[CHECK]...", nargs=-1, type=click.Choice(list(CHECKS)))
@_json
def checks(names: tuple[str, ...], *, as_json: bool) -> None:
    """List all checks: the id and severity of each, what is wrong, and what `mend` does about it.

    Of each CHECK that is named, an example is shown too.
    """
    found = [CHECKS[name] for name in names or CHECKS]
    if as_json:
        click.echo(json.dumps([attrs.asdict(it) | {"example": _example(it.id)} for it in found], indent=2))
        return
    if names:
        for it in found:
            lines = (f"  {line}" for line in _example(it.id))
            click.echo("\n".join([f"{it.id} ({it.severity.value}): {it.says}", *lines]))
        return
    table = Table(Column("check", no_wrap=True), "severity", "problem", "mend", box=None, pad_edge=False)
    for it in found:
        mend_text = "" if it.mend is None else f"{it.mend} ({it.kind})"
        table.add_row(it.id, Text(it.severity.value, _STYLES[it.severity]), it.says, mend_text)
    print_table(Console(highlight=False), table)


def _example(check: str) -> list[str]:
    """Return a small file that has a problem, as lines to show."""
    from aiofinetune.data._catalog_examples import EXAMPLES  # noqa: PLC0415  # no other command needs them

    example = EXAMPLES.get(check)
    return [] if example is None else example.shown()


COMMANDS: Final = {"checks": checks, "check": check, "mend": mend, "split": split, "convert": convert, "sample": sample}


@contextlib.contextmanager
def progress_bar(
    file: Path, console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal, by default that of stderr, if reading takes longer than a second."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console or Console(stderr=True), transient=True)
    start, task = clock(), bar.add_task(f"reading {file.name}", total=None)
    is_shown = False

    def progress(done: int, size: int) -> None:
        nonlocal is_shown
        if not is_shown and bar.console.is_terminal and clock() - start > _QUIET_SECONDS:
            is_shown = True
            bar.start()
        bar.update(task, completed=done, total=size)

    try:
        yield progress
    finally:
        if is_shown:
            bar.stop()


def _print_json(told: dict[str, object]) -> None:
    click.echo(_json_of(told))


def _json_of(value: object) -> str:
    # The name of a file may have bytes that are no UTF-8, which JSON must not have.
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="replace").decode()


def _write(output: Path, inputs: tuple[Path, ...], text: str) -> None:
    if output.exists() and any(output.samefile(file) for file in inputs):
        raise LocalFileError(f"{output}: is the input; give another file to write")
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LocalFileError(f"{output}: {error.strerror}") from error


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


# Tables


def _show_report(console: Console, report: Report, suggestion: Suggestion | None, columns: Columns) -> None:
    print_text(console, report.file, "bold")
    print_text(console, _summary(report))
    if report.findings:
        table = Table(Column("rows", justify="right"), Column("problem", overflow="fold"), box=None, pad_edge=False)
        for finding in report.findings:
            table.add_row(Text(f"{finding.count:,}"), _finding_text(finding, can_map=_lacks_columns(report)))
        print_table(console, table)
    else:
        print_text(console, "no problems")
    if mapping := suggested_mapping(report):
        print_line(console, f"The columns have other names; try again with {shlex.join(mapping)}")
    elif _lacks_columns(report):
        words = "No row has both columns. Try again with the names that they have in this file:"
        print_line(console, f"{words} --prompt COLUMN --completion COLUMN")
    elif any(finding.is_mend_safe for finding in report.findings) and report.unreadable_rows < report.rows:
        given = zip(("--prompt", "--completion"), attrs.astuple(columns), attrs.astuple(Columns()), strict=True)
        named = [word for option, name, usual in given if name != usual for word in (option, name)]
        command = shlex.join(["aiofinetune", "data", "mend", report.file, *named, "-o", "FILE"])
        print_line(console, f"To mend what can be mended safely: {command}")
    if report.suggested_encoding:
        words = f"The lines that cannot be decoded may be {report.suggested_encoding}: look at them, and then give"
        print_line(console, f"{words} --fallback-encoding {report.suggested_encoding}")
    if suggestion is not None and report.is_accepted:
        for line in _suggestion_text(suggestion).splitlines():
            print_text(console, line)


def _summary(report: Report) -> str:
    parts = [f"{report.rows:,} rows of {report.shape or 'no known shape'} ({report.format}, {report.encoding})"]
    if report.unreadable_rows:
        parts.append(f"{report.unreadable_rows:,} of them unusable")
    if report.task is not None:
        parts.append(report.task.kind)
        if report.task.classes:
            shown = [f"{name.strip()!r} {count:,}" for name, count in list(report.task.classes.items())[:5]]
            more = ", …" if len(report.task.classes) > 5 else ""
            parts[-1] += f" in {len(report.task.classes)} classes: {', '.join(shown)}{more}"
    parts.append(f"{report.tokens:,} tokens ({report.tokens_from})")
    return "; ".join(parts)


def suggested_mapping(report: Report) -> list[str]:
    """Return the options that map the columns, if all rows have them by other, usual names; else an empty list."""
    places = [place for finding in _missing(report) for place in finding.places] if _lacks_columns(report) else []
    _, _, options = places[0].text.partition("; try ") if places else ("", "", "")
    return shlex.split(options)


def _lacks_columns(report: Report) -> bool:
    """Return whether no row can be used, for want of a column: to drop such rows would leave none."""
    return report.unreadable_rows == report.rows and bool(_missing(report))


def _missing(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.check == "missing-field"]


def _finding_text(finding: Finding, *, can_map: bool) -> Text:
    text = Text.assemble((finding.severity.value, _STYLES[finding.severity]), " ", (finding.check, "bold"))
    text.append(f": {finding.says}")
    if finding.mend is not None and not (can_map and finding.check == "missing-field"):
        how = "safe mend" if finding.is_mend_safe else f"mend with --mend {finding.check}"
        text.append(f" ({how})", "dim")
    for place in finding.places:
        if shown := _place_text(place):
            text.append(f"\n  {shown}", "dim")
    return text


def _place_text(place: Place) -> str:
    where = [] if place.line is None else [f"line {place.line:,}"]
    where += [place.field] if place.field else []
    return ": ".join([*([", ".join(where)] if where else []), *([place.text] if place.text else [])])


def _suggestion_text(suggestion: Suggestion) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in suggestion.request.given().items())
    cost = "" if suggestion.cost is None else f", at a cost of {suggestion.cost:,.2f}"
    return f"FineTuneRequest({given})\n{suggestion.steps:,} steps, {suggestion.trained_tokens:,} trained tokens{cost}"


def _show_mends(console: Console, report: MendReport) -> None:
    for mended in report.mended:
        print_text(console, f"{mended.mend}: {mended.count:,}", "bold")
        for change in mended.changes:
            where = "" if change.line is None else f"line {change.line:,}: "
            print_text(console, f"  - {where}{_short(change.before)}", "red")
            if change.after is not None:
                print_text(console, f"  + {where}{_short(change.after)}", "green")
        if lines := mended.dropped_lines:
            shown = ", ".join(f"{line:,}" for line in lines[:10])
            more = f" and {len(lines) - 10:,} more" if len(lines) > 10 else ""
            print_text(console, f"  dropped lines: {shown}{more}")
    where = "dry run, nothing was written" if report.output is None else f"written to {report.output}"
    print_text(console, f"{report.rows_in:,} rows, {report.dropped:,} dropped, {report.rows_out:,} left; {where}")


def _show_split(console: Console, report: SplitReport) -> None:
    table = Table(Column("class", overflow="fold"), Column("training", justify="right"), box=None, pad_edge=False)
    table.add_column("validation", justify="right")
    for name, counts in sorted(report.classes.items()):
        table.add_row(Text(name.strip()), *(f"{count:,}" for count in counts))
    table.add_row("all", f"{report.training_rows:,}", f"{report.validation_rows:,}")
    print_table(console, table)


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"
