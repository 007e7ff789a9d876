"""The commands about files: upload, list, get, download and delete."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from aiofinetune.cli._options import Command, examples, session_command
from aiofinetune.cli._output import Column, ago, moment, one_line, print_columns, print_fields, print_line, size
from aiofinetune.cli._run import asking, for_each
from aiofinetune.cli._shell import Shell
from aiofinetune.cli._stdio import telling
from aiofinetune.cli._types import LocalPath
from aiofinetune.errors import RequestInvalid
from aiofinetune.models import Deleted, File
from aiofinetune.session import FineTuneSession


@click.group("files", short_help="Upload, list, download and delete files.")
def group() -> None:
    """Upload files, and list, show, download and delete those at the service."""


async def upload(shell: Shell, session: FineTuneSession, path: Path, purpose: str = "fine-tune") -> File:
    """Upload a file, with a progress bar in bytes on a terminal."""
    with _bar(shell, path.name) as progress:
        return await session.upload_file(path, purpose=purpose, progress=progress)


@contextlib.contextmanager
def _bar(shell: Shell, name: str) -> Iterator[Callable[[int, int | None], object]]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=shell.err, transient=True, disable=not shell.shows_progress) as progress:
        bar = progress.add_task(one_line(name), total=None)
        yield lambda sent, total: progress.update(bar, completed=sent, total=total)


@group.command(
    "upload",
    cls=Command,
    epilog=examples("aiofinetune files upload train.jsonl", "aiofinetune files upload train.jsonl --json | jq -r .id"),
)
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=LocalPath(path_type=Path, exists=True))
@click.option("--purpose", default="fine-tune", show_default=True, help="What the service is to use them for.")
@session_command
async def upload_files(shell: Shell, paths: tuple[Path, ...], purpose: str) -> None:
    """Upload local files, and print their ids."""
    async with shell.session() as session:
        for path in paths:
            file = await upload(shell, session, path, purpose)
            words = f"{file.id}  {path}  {size(file.bytes)}".rstrip()
            with telling(f"uploaded {words}"):
                if shell.as_json:
                    shell.print_json(file)
                else:
                    print_line(shell.out, words)


@group.command("list", cls=Command, epilog=examples("aiofinetune files list --purpose fine-tune"))
@click.option("--purpose", help="Only files with this purpose, such as fine-tune or fine-tune-results.")
@session_command
async def list_files(shell: Shell, purpose: str | None) -> None:
    """List the files, the newest first."""
    async with shell.session() as session:
        found = await session.list_files(purpose)
    files = sorted(found, key=lambda file: file.created_at or 0, reverse=True)
    if shell.as_json:
        shell.print_json(*files)
    elif files:
        columns = [
            Column("file", [file.id for file in files]),
            Column("name", [file.filename or "" for file in files], may_fold=True),
            Column("size", [size(file.bytes) for file in files], is_number=True),
            Column("created", [ago(file.created_at) for file in files]),
            Column("purpose", [file.purpose or "" for file in files]),
            Column("status", [file.status or "" for file in files]),
        ]
        print_columns(shell.out, columns)
    else:
        shell.hint("no files")


@group.command("get", cls=Command, epilog=examples("aiofinetune files get file-abc123"))
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@session_command
async def get(shell: Shell, ids: tuple[str, ...]) -> int:
    """Show what the service knows of files."""

    async def show(file_id: str) -> None:
        file = await session.retrieve_file(file_id)
        if shell.as_json:
            shell.print_json(file)
            return
        fields = [
            ("file", file.id),
            ("name", file.filename or ""),
            ("purpose", file.purpose or ""),
            ("size", size(file.bytes)),
            ("created", moment(file.created_at)),
            ("status", " ".join(filter(None, (file.status, file.status_details)))),
        ]
        print_fields(shell.out, fields)
        if len(ids) > 1:
            print_line(shell.out, "")

    async with shell.session() as session:
        return await for_each(ids, show)


@group.command(
    "download",
    cls=Command,
    epilog=examples("aiofinetune files download file-abc123", "aiofinetune files download file-abc123 -o - | head"),
)
@click.argument("file_id", metavar="ID")
@click.option(
    "-o",
    "--output",
    type=LocalPath(path_type=Path, dir_okay=False, allow_dash=True),
    help="File to write; - is stdout. By default the file's own name, in this folder.",
)
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@session_command
async def download(shell: Shell, file_id: str, output: Path | None, *, overwrite: bool) -> None:
    """Download a file. It appears under its name only when it is whole."""
    async with shell.session() as session:
        if output is not None and str(output) == "-":
            _print_content(await session.download_file(file_id))
            return
        if output is None:
            output = Path(_safe_name((await session.retrieve_file(file_id)).filename) or file_id)
        if output.exists() and not overwrite:
            raise RequestInvalid("output", f"{output} exists; pass --overwrite, or another name with -o")
        if not output.parent.is_dir():
            raise RequestInvalid("output", f"the folder {output.parent} does not exist")
        await session.download_file(file_id, output)
    if shell.as_json:
        shell.print_json({"id": file_id, "path": str(output)})
    else:
        print_line(shell.out, str(output))


def _safe_name(name: str | None) -> str:
    """Return the last part of a name that a service gives, if it can be that of a file in this folder."""
    last = one_line((name or "").replace("\\", "/").rpartition("/")[2]).strip().lstrip(".")
    return last[:200]


def _print_content(content: bytes) -> None:
    """Print a file's content: as it is into a pipe, and without control characters on a terminal."""
    stdout = sys.stdout.buffer
    if stdout.isatty():
        for line in content.decode(errors="replace").splitlines():
            click.echo(one_line(line))
        return
    stdout.write(content)
    stdout.flush()


@group.command("delete", cls=Command, epilog=examples("aiofinetune files delete file-abc123 --yes"))
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask. Where stdin is no terminal, nothing is asked.")
@session_command
async def delete(shell: Shell, ids: tuple[str, ...], *, yes: bool) -> int:
    """Delete files at the service."""

    async def do(file_id: str) -> None:
        show_deleted(shell, await session.delete_file(file_id))

    confirm(f"Delete {len(ids)} {'file' if len(ids) == 1 else 'files'} at the service?", yes=yes)
    async with shell.session() as session:
        return await for_each(ids, do)


def confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal whether to go on; what is in a script is meant."""
    if not yes and sys.stdin.isatty():
        with asking():
            click.confirm(question, abort=True, err=True)


def show_deleted(shell: Shell, deleted: Deleted) -> None:
    """Print what was deleted."""
    with telling(f"deleted {deleted.id}"):
        if shell.as_json:
            shell.print_json(deleted)
        else:
            print_line(shell.out, f"deleted {deleted.id}")


COMMANDS: Final = {"files": group}
