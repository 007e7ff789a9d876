"""Show how far a batch is, from its journal alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs
import click
from rich.console import Console

from aiofinetune.batch._journal import read_journal
from aiofinetune.batch._journal_file import is_journal
from aiofinetune.batch._report import EntryReport, count_statuses, report_entries
from aiofinetune.cli._output import Column, ago, clock, print_columns, print_json_line, print_line
from aiofinetune.cli._types import LocalPath


@click.command("status")
@click.argument("journal", type=LocalPath(path_type=Path, exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, an object for each entry on a line.")
def status(journal: Path, *, as_json: bool) -> None:
    """Show how far a batch is, from its JOURNAL. No service is asked.

    The journal is only read, also while its batch runs. Entries that no run has tried to send yet are not in it. Of an
    entry that is "active", the service may know more.
    """
    from aiofinetune.cli._run import reported, run  # noqa: PLC0415  # as the other commands

    with reported():
        run(show(journal, Console(highlight=False), as_json=as_json))


async def show(journal: Path, console: Console, *, as_json: bool) -> None:
    """Print the entries of a journal, and how many are how far.

    Raises:
        JournalUnusable: The file is not a journal, or it is damaged.
    """
    if not await asyncio.to_thread(is_journal, journal):
        beside = journal.with_name(f"{journal.name}.journal")
        if await asyncio.to_thread(beside.exists):
            raise click.BadParameter(f"{journal} is not a journal; its journal is {beside}", param_hint="'JOURNAL'")
    content = await asyncio.to_thread(read_journal, journal)
    entries = report_entries(content)
    if as_json:
        for entry in entries:
            print_json_line(attrs.asdict(entry))
        return
    if entries:
        print_columns(console, _columns(entries))
    written_at = (await asyncio.to_thread(journal.stat)).st_mtime
    print_line(console, f"{count_statuses(it for it in entries if not it.is_left_out)}; {_rest(entries)}".rstrip("; "))
    if content.base_url:
        print_line(console, f"at {content.base_url} ({content.dialect}), last written {ago(written_at)}", "dim")
    if content.is_running:
        print_line(console, "a batch is running with this journal", "dim")
    print_line(console, "entries that no run has tried to send yet are not in the journal", "dim")


def _rest(entries: Sequence[EntryReport]) -> str:
    count = sum(entry.is_left_out for entry in entries)
    return f"{count} no longer part of the batch" if count else ""


def _columns(entries: Sequence[EntryReport]) -> list[Column]:
    return [
        Column("entry", [entry.label for entry in entries], may_fold=True),
        Column("status", [entry.status + " (left out)" * entry.is_left_out for entry in entries]),
        Column("job", [entry.job or "" for entry in entries]),
        Column("sent", [clock(entry.sent_at, "%m-%d %H:%M") for entry in entries]),
        Column("seconds", ["" if it.seconds is None else f"{it.seconds:.1f}" for it in entries], is_number=True),
        Column("attempt", [str(entry.attempt) for entry in entries], is_number=True),
        Column("model or error", [entry.model or entry.error or "" for entry in entries]),
    ]


COMMANDS: Final = {"batch status": status}
