"""Compare the jobs of a sweep: a table of their parameters and figures, or a picture of one against the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aiofinetune.cli._output import cell, has_width, number, print_csv, print_line, print_table
from aiofinetune.cli._runs import runs_of, runs_of_batch, with_results
from aiofinetune.cli._shell import Shell
from aiofinetune.results import Comparison, Run, plot_comparison, title_of
from aiofinetune.results._figures import diverged

_FIGURES_KEPT: Final = 3
"""The number of figures that a narrow table keeps longer than how long the jobs took."""
_MIN_LABEL: Final = 16
"""The least width of the labels, which are folded where there is less room than they need."""


@attrs.frozen
class Options:
    """What a comparison reads and shows.

    Args:
        journal: The journal of the manifest.
        results: The folder that holds the results files of the batch.
        sort: The column to sort by.
        plot: The file to draw a picture into.
        figure: The figure of the picture.
        against: The parameter of the picture.
        as_csv: Whether to print CSV, and nothing else.
    """

    journal: Path | None = None
    results: Path | None = None
    sort: str | None = None
    plot: Path | None = None
    figure: str | None = None
    against: str | None = None
    as_csv: bool = False


async def compare(names: Sequence[str], shell: Shell, options: Options) -> int:
    """Print the jobs of a batch, or others, side by side.

    Args:
        names: A manifest, a journal, results files or ids of jobs.
        shell: The surroundings of the command. With its JSON a job is printed on each line.
        options: What to read and show.

    Returns:
        The exit status, 0.

    Raises:
        FineTuneError: Something cannot be read, there is no such column, or the picture cannot be drawn.
    """
    runs, problems = await with_results(await _runs(names, options.journal, shell), options.results, shell)
    for problem in problems:
        shell.hint(problem)
    comparison = Comparison(runs)
    if options.sort is not None:
        comparison = comparison.ordered(comparison.column(options.sort))
    if options.plot is not None:
        await asyncio.to_thread(plot_comparison, options.plot, comparison, options.figure, options.against)
    if shell.as_json:
        shell.print_json(*comparison.to_dicts())
    elif options.as_csv:
        print_csv(comparison.to_dicts())
    elif options.plot is not None:
        print_line(shell.out, str(options.plot))
    else:
        print_comparison(comparison, shell.out)
    return 0


async def _runs(names: Sequence[str], journal: Path | None, shell: Shell) -> list[Run]:
    """Return all jobs that the names stand for. A file that is not CSV is a manifest or a journal."""
    names = list(dict.fromkeys(names))
    files = [name for name in names if not name.endswith(".csv") and await asyncio.to_thread(Path(name).is_file)]
    runs = {name: await runs_of_batch(Path(name), journal, shell) for name in files}
    jobs = [name for name in names if name not in runs]
    runs |= {name: [run] for name, run in zip(jobs, await runs_of(jobs, shell, download=False), strict=True)}
    return [run for name in names for run in runs[name]]


def print_diverged(runs: Iterable[Run], console: Console) -> None:
    """Print a line for each job whose training diverged."""
    for run in runs:
        if words := diverged(run.figures()):
            print_line(console, f"{run.label} diverged: at the end its {words}", "bold red")


def print_comparison(comparison: Comparison, console: Console, *, says_diverged: bool = True) -> None:
    """Print a table of jobs, with what has room, and which of them diverged."""
    if shared := comparison.shared:
        words = ", ".join(f"{name}={cell(value)}" for name, value in shared.items())
        console.print(Text(f"all: {words}", "bright_black"), soft_wrap=not has_width(console), highlight=False)
    columns, left_out = _fitting(comparison, console)
    print_table(console, _table(comparison, columns))
    if says_diverged:
        print_diverged(comparison.runs, console)
    if any(comparison.best(name) for name in columns):
        print_line(console, "* the best of its column", "bright_black")
    if any(name.startswith("training_") for name in columns):
        print_line(console, "training figures are means of the last twentieth of the steps", "bright_black")
    if left_out:
        names = ", ".join(map(title_of, left_out))
        console.print(Text(f"left out for want of room: {names} (--json has all)", "bright_black"), highlight=False)


def _fitting(comparison: Comparison, console: Console) -> tuple[list[str], list[str]]:
    """Return the columns to show, and those for which a terminal has no room, the least telling ones."""
    columns = list(_columns(comparison))
    left_out: list[str] = []
    order = list(_dispensable(comparison, columns))
    while has_width(console) and order and _width(comparison, columns, console) > console.width:
        columns.remove(order[0])
        left_out.append(order.pop(0))
    return columns, [name for name in [*comparison.figures, "seconds"] if name in left_out]


def _columns(comparison: Comparison) -> Iterable[str]:
    statuses = {run.status for run in comparison.runs}
    yield "label"
    yield from comparison.varied
    if len(statuses) > 1 or statuses - {"succeeded", None}:
        yield "status"
    if any(run.seconds is not None for run in comparison.runs):
        yield "seconds"
    yield from comparison.figures


def _dispensable(comparison: Comparison, columns: Sequence[str]) -> Iterable[str]:
    """Yield the columns that a narrow table can do without, the least telling first."""
    figures = comparison.figures
    yield from reversed(figures[_FIGURES_KEPT:])
    yield from (name for name in ("seconds",) if name in columns)
    yield from reversed(figures[1:_FIGURES_KEPT])


def _width(comparison: Comparison, columns: Sequence[str], console: Console) -> int:
    """Return the least width that a table of these columns needs."""
    table = _table(comparison, columns)
    table.columns[0].max_width = _MIN_LABEL
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def _table(comparison: Comparison, columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    best = {name: comparison.best(name) for name in columns if name in comparison.figures}
    for name in columns:
        is_text = name in ("label", "status")
        # A title of several words has a line for each, so that its column is as narrow as its figures.
        title = title_of(name).replace(" ", "\n")
        table.add_column(title, justify="left" if is_text else "right", overflow="fold", vertical="bottom")
    for place in range(len(comparison.runs)):
        table.add_row(*(_cell(comparison, place, name, best.get(name)) for name in columns))
    return table


def _cell(comparison: Comparison, place: int, name: str, best: frozenset[int] | None) -> Text:
    value = comparison.value(place, name)
    if best is None or not isinstance(value, int | float):
        return Text(f"{value:.1f}" if name == "seconds" and isinstance(value, float) else cell(value))
    return Text(f"{number(value)}*", "bold green") if place in best else Text(f"{number(value)} ")
