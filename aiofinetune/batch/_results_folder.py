"""The folder that a batch downloads results files to, one for each job."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from aiofinetune._local_files import save
from aiofinetune.errors import LocalFileError, NoResults, ProtocolViolation
from aiofinetune.models import FineTune
from aiofinetune.results import last_figures, read_results
from aiofinetune.results._rows import write_csv
from aiofinetune.session import FineTuneSession


class ResultsFolder:
    """Downloads results files, and reads their last figures.

    Args:
        session: Downloads the files.
        folder: Where they are kept, as ``label.ft-….csv``.
    """

    def __init__(self, session: FineTuneSession, folder: Path) -> None:
        self._session = session
        self._folder = folder

    async def make(self) -> None:
        """Make the folder, if it does not exist.

        Raises:
            LocalFileError: It cannot be made.
        """
        try:
            await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        except OSError as error:
            raise LocalFileError(f"{self._folder}: {error.strerror}") from error

    async def fetch(self, label: str, job: FineTune, *, may_exist: bool) -> Mapping[str, float]:
        """Return the last figures of a job's results file, downloaded first if need be.

        Args:
            label: The entry's label.
            job: The job, which succeeded.
            may_exist: Whether an earlier run may have downloaded the file already.

        Raises:
            NoResults: The job has no results file.
            LocalFileError: The file cannot be written or read.
            ProtocolViolation: It is not a results file.
        """
        path = results_path(self._folder, label, job.id)
        try:
            if not (may_exist and await asyncio.to_thread(path.exists)):
                await self._download(job, path)
            content = await asyncio.to_thread(path.read_bytes)
            return last_figures(await asyncio.to_thread(read_results, content))
        except OSError as error:
            raise LocalFileError(f"{path}: {error.strerror}") from error
        except ProtocolViolation as error:
            raise ProtocolViolation(f"{path}: {error}") from error

    async def _download(self, job: FineTune, path: Path) -> None:
        if self._session.dialect.endpoints.list_metrics is None:
            if not job.result_files:
                raise NoResults(job.id, job.status)
            await self._session.download_file(job.result_files[0].id, path)
            return
        # There is no file, so one is written of the figures that the service has.
        if not (rows := await self._session.results(job)):
            raise NoResults(job.id, job.status)
        pieces = [await asyncio.to_thread(write_csv, rows)]
        await save(path, lambda: _next(pieces))


async def _next(pieces: list[bytes]) -> bytes:
    return pieces.pop() if pieces else b""


def results_path(folder: Path, label: str, job_id: str) -> Path:
    """Return the path of the results file of an entry's job in a folder that a batch downloads to."""
    return folder / f"{_filename(label)}.{_filename(job_id)}.csv"


def _filename(label: str) -> str:
    """Return a label as a file name. A label that has to be changed gets its digest added, so that names are unique."""
    plain = re.sub(r"[^A-Za-z0-9_.,=+-]", "_", label)[:100].lstrip(".-")
    return plain if plain == label else f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
