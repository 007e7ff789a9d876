"""Show the results of jobs: curves, a summary, a picture, or the rows themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aiofinetune.cli._compare import print_comparison, print_diverged
from aiofinetune.cli._output import (
    cell,
    is_ascii,
    number,
    print_csv,
    print_drawing,
    print_line,
    print_table,
)
from aiofinetune.cli._runs import runs_of
from aiofinetune.cli._shell import Shell
from aiofinetune.results import Comparison, Results, Run, draw_curves, plot_curves, title_of


async def show_results(
    jobs: Sequence[str], shell: Shell, *, plot: Path | None, epochs: int | None, as_csv: bool
) -> int:
    """Print the results of jobs.

    Args:
        jobs: Ids of jobs, and paths of results files.
        shell: The surroundings of the command. With its JSON the summaries and the rows are printed, a job on a line.
        plot: Draw a picture into this file, rather than curves on the terminal.
        epochs: The number of epochs of jobs that do not say it.
        as_csv: Print the rows as CSV, and nothing else.

    Returns:
        The exit status, 0.

    Raises:
        FineTuneError: A job or a file has no results that can be read, or the picture cannot be drawn.
    """
    runs = await runs_of(jobs, shell, download=True)
    results = {run.label: run.results or Results() for run in runs}
    known = {run.label: _epochs(run, epochs) for run in runs}
    if plot is not None:
        await asyncio.to_thread(plot_curves, plot, results, known)
    if shell.as_json:
        shell.print_json(*map(_told, runs))
    elif as_csv:
        print_csv(_rows(runs))
    elif plot is not None:
        print_line(shell.out, str(plot))
    else:
        _print(runs, known, shell.out)
    return 0


def _print(runs: Sequence[Run], epochs: Mapping[str, int | None], console: Console) -> None:
    results = {run.label: run.results or Results() for run in runs}
    if len(runs) == 1:
        print_line(console, _heading(runs[0]), "bold")
    print_diverged(runs, console)
    print_drawing(console, draw_curves(results, epochs, width=console.width, is_ascii=is_ascii(console)))
    if len(runs) == 1:
        print_table(console, _summary(results[runs[0].label]))
    else:
        print_comparison(Comparison(runs), console, says_diverged=False)


def _epochs(run: Run, given: int | None) -> int | None:
    """Return how many epochs a job has; a job that has not chosen says "auto"."""
    known = run.parameters.get("n_epochs")
    return known if isinstance(known, int) else given


def _heading(run: Run) -> str:
    rows = run.results or ()
    return "  ".join(
        filter(None, [cell(run.label), cell(run.status), cell(run.fine_tuned_model), f"{len(rows)} steps"])
    )


def _told(run: Run) -> dict[str, object]:
    results = run.results or Results()
    summary = {name: attrs.asdict(figure) for name, figure in results.summary().items()}
    return {
        "label": run.label,
        "job": run.job,
        "status": run.status,
        "diverged": run.diverged,
        "fine_tuned_model": run.fine_tuned_model,
        "parameters": dict(run.parameters),
        "summary": summary,
        "rows": results.to_dicts(),
    }


def _rows(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Return the rows of all jobs, with a first column that names the job if there are several."""
    if len(runs) == 1:
        return (runs[0].results or Results()).to_dicts()
    rows = [{"label": run.label, **row} for run in runs for row in (run.results or Results()).to_dicts()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def _summary(results: Results) -> Table:
    """Return a table of the final and the best value of each figure."""
    table = Table("figure", box=None, pad_edge=False)
    for name in ("final", "best", "at step"):
        table.add_column(name, justify="right")
    for name, figure in results.summary().items():
        cells = (title_of(name), number(figure.final), number(figure.best), str(figure.best_step))
        table.add_row(*map(Text, cells))
    return table
