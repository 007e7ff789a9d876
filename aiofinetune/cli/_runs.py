"""Find the jobs that a command is about: by id at the service, in results files, or in the journal of a batch."""

from __future__ import annotations

import asyncio
import glob
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import attrs

from aiofinetune._local_files import no_file
from aiofinetune.batch._core import AttemptRecord
from aiofinetune.batch._journal import read_records
from aiofinetune.batch._journal_file import is_journal
from aiofinetune.batch._manifest import Entry, read_manifest
from aiofinetune.batch._outcomes import parameters_of, seconds_of
from aiofinetune.batch._results_folder import results_path
from aiofinetune.cli._shell import Shell
from aiofinetune.errors import FineTuneError, LocalFileError, ProtocolViolation
from aiofinetune.models import Status
from aiofinetune.results import Results, Run, read_results
from aiofinetune.session import FineTuneSession

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE: Final = 8
_SUFFIXES: Final = (".csv", ".json", ".jsonl", ".toml", ".journal")
"""The suffixes of names that are not ids."""


async def runs_of(names: Sequence[str], shell: Shell, *, download: bool) -> list[Run]:
    """Return jobs; those that are given by results files have their results.

    Args:
        names: The ids of jobs, and the paths of results files.
        shell: The surroundings of the command, whose service is asked for jobs by their ids.
        download: Whether all jobs must have results, which are downloaded.

    Raises:
        FineTuneError: A file cannot be read, or the service does not know a job or its results file.
    """
    paths = {name: Path(name) for name in names if await asyncio.to_thread(_is_file, name)}
    runs = {name: Run(label, results=await _read(paths[name])) for name, label in _labels(paths).items()}
    ids = [name for name in dict.fromkeys(names) if name not in runs]
    if ids:
        async with shell.session() as session:
            runs |= zip(ids, await each(lambda name: _run_at(session, name, download=download), ids), strict=True)
    return [runs[name] for name in dict.fromkeys(names)]


async def runs_of_batch(path: Path, journal: Path | None, shell: Shell) -> list[Run]:
    """Return the jobs of a batch, without their results, as its journal has them. No service is asked.

    Args:
        path: The batch's manifest, or its journal.
        journal: The manifest's journal; by default the one beside it that was written last.
        shell: The command's shell. If there are several journals, it prints which one is read.

    Raises:
        JournalUnusable: The journal is damaged, or is no journal.
        ManifestInvalid: The manifest is invalid.
        LocalFileError: A file cannot be read.
    """
    if await asyncio.to_thread(is_journal, path):
        return list(map(_run_of, await asyncio.to_thread(read_records, path)))
    if journal is None:
        journals = await asyncio.to_thread(journals_beside, path)
        journal = journals[0] if journals else None
        if len(journals) > 1:
            shell.hint(f"{path} has {len(journals)} journals; read {journal}, written last (--journal names another)")
    entries = await asyncio.to_thread(lambda: list(read_manifest(path)))
    known = [] if journal is None else await asyncio.to_thread(read_records, journal)
    records = {record.attempt.label: record for record in known}
    return [_run_of(records.get(entry.label) or entry) for entry in entries]


def journals_beside(manifest: Path) -> list[Path]:
    """Return the journals of a manifest that have the names of a batch's choice, the one that was written last first.

    That of a batch with ``--fresh`` has the time in its name.
    """
    found = [manifest.with_name(f"{manifest.name}.journal")]
    found += manifest.parent.glob(f"{glob.escape(manifest.name)}.*.journal")
    files = [path for path in found if path.is_file()]
    return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


async def with_results(runs: Sequence[Run], folder: Path | None, shell: Shell) -> tuple[list[Run], list[str]]:
    """Return jobs with their results, and what to tell of those that have none.

    Args:
        runs: The jobs.
        folder: The folder that the batch downloaded results files to; None downloads them from the service.
        shell: The surroundings of the command, whose service is asked.
    """
    wanted = [run for run in runs if run.results is None and run.job is not None and run.status == Status.SUCCEEDED]
    found: Iterable[Results | FineTuneError] = []
    if folder is not None:
        found = [await _caught(_read(results_path(folder, run.label, run.job or ""))) for run in wanted]
    elif wanted:
        try:
            async with shell.session() as session:
                found = await each(lambda run: _caught(_download(session, run.job or "")), wanted)
        except FineTuneError as error:
            # There is no key, or the service cannot be reached; the parameters can be compared all the same.
            found = [error] * len(wanted)
    results = {run.label: it for run, it in zip(wanted, found, strict=True) if isinstance(it, Results)}
    problems = [f"{run.label}: {it}" for run, it in zip(wanted, found, strict=True) if isinstance(it, FineTuneError)]
    words = [f"no figures of {len(problems)} of {len(runs)} jobs, such as {problems[0]}"] if problems else []
    return [attrs.evolve(run, results=results.get(run.label, run.results)) for run in runs], words


def _run_of(source: AttemptRecord | Entry) -> Run:
    if isinstance(source, Entry):
        return Run(source.label, source.request.given(), status="not sent")
    job, status = source.job, "not sent"
    if job is not None:
        status = job.status
    elif source.job_id is not None:
        status = "active"
    elif source.sent is not None:
        status = "uncertain"
    return Run(
        source.attempt.label,
        parameters_of(source.request, job),
        status=status,
        job=source.job_id,
        fine_tuned_model=None if job is None else job.fine_tuned_model,
        seconds=seconds_of(job, source.sent_at, source.ended_at),
    )


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(end - start, 3)


async def _run_at(session: FineTuneSession, job_id: str, *, download: bool) -> Run:
    job = await session.retrieve_fine_tune(job_id)
    results = await session.results(job) if download else None
    seconds = _between(job.created_at, job.finished_at or job.updated_at) if job.is_terminal else None
    return Run(job.id, parameters_of(None, job), results, job.status, job.id, job.fine_tuned_model, seconds)


async def _download(session: FineTuneSession, job_id: str) -> Results:
    return await session.results(await session.retrieve_fine_tune(job_id))


async def _read(path: Path) -> Results:
    try:
        return await asyncio.to_thread(lambda: read_results(path.read_bytes()))
    except OSError as error:
        raise LocalFileError(f"{path}: {error.strerror}") from error
    except ProtocolViolation as error:
        raise LocalFileError(f"{path}: {error}") from error


def _is_file(name: str) -> bool:
    """Return whether a name is a file.

    Raises:
        LocalFileError: It can only be a path, but there is no such file, or it is a pipe or a device.
    """
    if Path(name).is_file():
        return True
    if "/" in name or name.endswith(_SUFFIXES):
        raise no_file(name)
    return False


def _labels(paths: dict[str, Path]) -> dict[str, str]:
    """Return what to call each file: its name, without the job's id and the digest that a batch adds."""
    short = {name: re.sub(r"(-[0-9a-f]{8})?(\.ft(job)?-[^.]+)?$", "", path.stem) for name, path in paths.items()}
    are_unique = len(set(short.values())) == len(short) and all(short.values())
    return short if are_unique else {name: name for name in paths}


async def each(
    function: Callable[[T], Coroutine[object, object, R]], items: Sequence[T], *, at_once: int = _AT_ONCE
) -> list[R]:
    """Return the function's results in the order of the items; a few calls run at once. The first error is raised."""
    room = asyncio.Semaphore(at_once)

    async def call(item: T) -> R:
        async with room:
            return await function(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call(item)) for item in items]
    except ExceptionGroup as failures:
        raise failures.exceptions[0]  # noqa: B904  # its own cause stays
    return [task.result() for task in tasks]


async def _caught(call: Coroutine[object, object, Results]) -> Results | FineTuneError:
    try:
        return await call
    except FineTuneError as error:
        return error
