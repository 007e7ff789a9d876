"""The server's state: a folder with a SQLite database, the files' bytes, and the models' weights.

Whatever a client was told of is on the disk by then, so it outlives a ``kill -9``. The order that makes it so: bytes
go to a file of a temporary name, are flushed to the disk, the file takes its final name, and only then a transaction
makes it known. What a kill leaves half done is a file that no row names, and is set aside at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import os
import re
import secrets
import sqlite3
import string
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, Final, ParamSpec, TypeVar

import attrs

from aiofinetune import structuring
from aiofinetune._threads import in_thread
from aiofinetune.data._examples import MAX_LINE_BYTES
from aiofinetune.local._engines.defaults import batch_size_of, learning_rate_multiplier_of
from aiofinetune.local._folder import PARTS, SCHEMA_VERSION, Folder
from aiofinetune.models import File, FineTune, FineTuneEvent, FineTuneRequest, Hyperparams, Model, Status

P = ParamSpec("P")
T = TypeVar("T")

BASE_MODELS: Final = ("ada", "babbage", "curie", "davinci")
ORGANIZATION: Final = "org-local"
PURPOSE: Final = "fine-tune"
RESULTS_PURPOSE: Final = "fine-tune-results"

_DEFAULT_MODEL: Final = "curie"
_DEFAULT_N_EPOCHS: Final = 4
_DEFAULT_PROMPT_LOSS_WEIGHT: Final = 0.01

_NEAR: Final = 10
"""Up to this queue number a job is told of each step; if all were, a thousand jobs would make half a million events."""

_SCHEMA: Final = (
    """CREATE TABLE files (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL,
        bytes INTEGER NOT NULL, created_at INTEGER NOT NULL)""",
    # `record` is the job as the API shows it, but for its events. `queue` is the queue number that was last announced.
    """CREATE TABLE jobs (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, status TEXT NOT NULL, model TEXT NOT NULL,
        training_file TEXT NOT NULL, validation_file TEXT, suffix TEXT, queue INTEGER, record BLOB NOT NULL)""",
    "CREATE INDEX jobs_by_status ON jobs (status, number)",
    """CREATE TABLE events (
        job TEXT NOT NULL, position INTEGER NOT NULL, created_at INTEGER NOT NULL, level TEXT NOT NULL,
        message TEXT NOT NULL, PRIMARY KEY (job, position)) WITHOUT ROWID""",
    """CREATE TABLE models (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, base TEXT NOT NULL, created INTEGER NOT NULL,
        weights TEXT NOT NULL)""",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class Refused(Exception):
    """A request that is not granted.

    Args:
        status: The HTTP status of the answer.
        message: Why not, for the client.
        param: The parameter that is wrong, if it is one.
        code: The API's word for the failure, if it has one.
        headers: Headers that the status asks for.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}


@attrs.frozen
class Run:
    """One attempt to train a job, and where its trainer finds and leaves things.

    Every attempt has paths of its own: a trainer that outlives a killed server by a moment disturbs nobody.
    """

    job: FineTune
    base: str
    """The base model under the job's, such as ``"ada"``."""
    start: str
    """What the training starts from: the name of a base model, or the path of a fine-tuned model's weights."""
    training_path: Path
    validation_path: Path | None
    job_path: Path
    """For the trainer's orders."""
    model_path: Path
    results_path: Path


def new_id(prefix: str) -> str:
    """Return a fresh id: `prefix` and 24 random letters and digits."""
    return prefix + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(24))


def now() -> int:
    """Return the Unix time in whole seconds."""
    return int(time.time())


def _transaction(
    method: Callable[Concatenate[Store, P], T],
) -> Callable[Concatenate[Store, P], Coroutine[Any, Any, T]]:  # Any: as `async def` has it.
    """Make `method` a coroutine that runs on the database's own thread, as one transaction."""

    async def run(self: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await in_thread(
            self._database_thread, lambda: self._commit(functools.partial(method, self, *args, **kwargs))
        )

    functools.update_wrapper(run, method)
    return run


class Store:
    """Everything that the server remembers. Every coroutine does its blocking work on a thread.

    There is one thread for the database: transactions happen one after the other, in the order they were asked for.

    Args:
        folder: Where it is kept; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.on_change: Callable[[Collection[str]], None] = lambda _jobs: None
        """Called on the event loop with the ids of the jobs that a transaction changed, once it is committed."""
        self._files, self._models, self._runs = (folder / part for part in PARTS)
        self._folder = Folder(folder)
        self._database_thread = ThreadPoolExecutor(1, thread_name_prefix="aiofinetune-database")
        self._file_threads = ThreadPoolExecutor(4, thread_name_prefix="aiofinetune-files")
        self._resources = contextlib.ExitStack()
        self._changed: set[str] = set()
        self._examples: dict[str, int] = {}
        """How many examples a file holds, for those that jobs were created with."""

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        """Open the folder, and close it in the end.

        Raises:
            ConfigurationError: It cannot be used: another server has it, another version made it, a part of it is
                missing or damaged, or the system refuses it.
        """
        self._loop = asyncio.get_running_loop()
        try:
            await in_thread(self._database_thread, self._open)
            yield self
        finally:
            await in_thread(self._database_thread, self._resources.close)
            # Nothing waits on these threads any more, so joining them takes no time.
            self._database_thread.shutdown()
            self._file_threads.shutdown()

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Run a blocking `call` on one of the threads for files."""
        return await in_thread(self._file_threads, call)

    # Files

    @contextlib.asynccontextmanager
    async def receive_file(self) -> AsyncIterator[Incoming]:
        """Take in a file piece by piece; unless `keep_file` was called, nothing is left of it."""
        incoming = Incoming(new_id("file-"), self._files)
        try:
            await self.in_thread(incoming.open)
            yield incoming
        finally:
            await self.in_thread(incoming.discard)

    async def keep_file(self, incoming: Incoming, filename: str, purpose: str) -> File:
        """Make a file that was received whole known by its id."""
        await self.in_thread(incoming.seal)
        file = _file(incoming.id, filename, purpose, incoming.size, now())
        try:
            await self._adopt(incoming, file)
        except Exception:
            # A full disk may have no room for the row, but keep the file.
            await self.in_thread(incoming.unsettle)
            raise
        return file

    @_transaction
    def _adopt(self, incoming: Incoming, file: File) -> None:
        incoming.settle()
        self._insert_file(file)

    @_transaction
    def files(self, purpose: str | None) -> tuple[File, ...]:
        """Return the files, oldest first; of one `purpose` only if it is given."""
        rows = self._db.execute(
            "SELECT id, filename, purpose, bytes, created_at FROM files WHERE purpose = coalesce(?, purpose)"
            " ORDER BY number",
            (purpose,),
        )
        return tuple(_file(*row) for row in rows)

    @_transaction
    def file(self, file_id: str) -> File:
        """Return one file, or refuse with 404."""
        return self._file(file_id)

    def file_path(self, file_id: str) -> Path:
        """Where the bytes of a file are, which must be known."""
        return self._files / file_id

    @contextlib.asynccontextmanager
    async def reading(self, file_id: str) -> AsyncIterator[BinaryIO]:
        """Open a file that is known; refuse with 404 if it has been deleted since."""
        try:
            handle = await self.in_thread(lambda: self.file_path(file_id).open("rb"))
        except FileNotFoundError:
            raise _no_file(file_id) from None
        try:
            yield handle
        finally:
            await self.in_thread(handle.close)

    async def delete_file(self, file_id: str) -> None:
        """Delete a file; refuse while a job that is not over needs it."""
        await self._forget_file(file_id)
        self._examples.pop(file_id, None)
        await self.in_thread(functools.partial(self.file_path(file_id).unlink, missing_ok=True))

    @_transaction
    def _forget_file(self, file_id: str) -> None:
        self._file(file_id)
        self._refuse_if_needed("file", file_id)
        self._db.execute("DELETE FROM files WHERE id = ?", (file_id,))

    # Models

    @_transaction
    def models(self) -> tuple[Model, ...]:
        """Return the base models, then the fine-tuned ones, oldest first."""
        rows = self._db.execute("SELECT id, created FROM models ORDER BY number")
        return (*map(_base_model, BASE_MODELS), *(Model(name, created, ORGANIZATION) for name, created in rows))

    @_transaction
    def model(self, name: str) -> Model:
        """Return one model, or refuse with 404."""
        if name in BASE_MODELS:
            return _base_model(name)
        row = self._db.execute("SELECT created FROM models WHERE id = ?", (name,)).fetchone()
        if row is None:
            raise _no_model(name)
        return Model(name, row[0], ORGANIZATION)

    @_transaction
    def weights_path(self, name: str) -> Path | None:
        """Return where the weights of a model are, None for a base model's; refuse with 404."""
        return None if name in BASE_MODELS else self._weights(name)[1]

    async def delete_model(self, name: str) -> None:
        """Delete a fine-tuned model; refuse while a job that is not over trains it further."""
        weights = await self._forget_model(name)
        await self.in_thread(functools.partial(weights.unlink, missing_ok=True))

    @_transaction
    def _forget_model(self, name: str) -> Path:
        if name in BASE_MODELS:
            raise Refused(403, f"'{name}' is a base model; only fine-tuned models can be deleted", param="model")
        _, weights = self._weights(name)
        self._refuse_if_needed("model", name)
        self._db.execute("DELETE FROM models WHERE id = ?", (name,))
        return weights

    # Jobs, as clients see them

    async def create_job(self, request: FineTuneRequest) -> FineTune:
        """Put a job at the end of the queue; refuse if its model or one of its files is not there."""
        await self._check_request(request)
        return await self._add_job(request, await self._count_examples(request.training_file))

    @_transaction
    def _check_request(self, request: FineTuneRequest) -> tuple[str, File, File | None]:
        return self._needs(request)

    async def _count_examples(self, file_id: str) -> int:
        """Return how many examples a file holds; 0 if it has been deleted since."""
        count = self._examples.get(file_id)
        if count is None:
            try:
                count = await self.in_thread(functools.partial(_count_lines, self.file_path(file_id)))
            except FileNotFoundError:
                return 0
            self._examples[file_id] = count
        return count

    @_transaction
    def _add_job(self, request: FineTuneRequest, examples: int) -> FineTune:
        model, training, validation = self._needs(request)
        created_at = now()
        job = FineTune(
            id=new_id("ft-"),
            status=Status.PENDING,
            model=model,
            created_at=created_at,
            updated_at=created_at,
            training_files=(training,),
            validation_files=(validation,) if validation else (),
            hyperparams=_hyperparams(request, examples),
            organization_id=ORGANIZATION,
        )
        self._db.execute(
            "INSERT INTO jobs (id, status, model, training_file, validation_file, suffix, record)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (job.id, job.status, model, training.id, request.validation_file, request.suffix, _record(job)),
        )
        self._say(job.id, f"Created fine-tune: {job.id}")
        self._say(job.id, "Fine-tune costs $0.00")
        self._announce_queue()
        return self._with_events(job)

    @_transaction
    def jobs(self) -> tuple[FineTune, ...]:
        """Return the jobs without their events, oldest first."""
        return tuple(_job(*row) for row in self._db.execute("SELECT record FROM jobs ORDER BY number"))

    @_transaction
    def job(self, job_id: str) -> FineTune:
        """Return one job with its events, or refuse with 404."""
        return self._with_events(self._job(job_id))

    @_transaction
    def events(self, job_id: str, start: int = 0, count: int | None = None) -> tuple[tuple[FineTuneEvent, ...], str]:
        """Return a job's events from the position `start` on, and its status at that moment; refuse with 404."""
        return self._events(job_id, start, count), self._job(job_id).status

    @_transaction
    def cancel_job(self, job_id: str) -> FineTune:
        """Cancel a job and return it; refuse if it has succeeded or failed. Once more does no harm."""
        job = self._job(job_id)
        if not job.is_terminal:
            job = self._update(attrs.evolve(job, status=Status.CANCELLED))
            self._say(job_id, "Fine-tune cancelled")
            self._announce_queue()
        elif job.status != Status.CANCELLED:
            raise Refused(
                400, f"fine-tune {job_id} is over ({job.status}); only a pending or running one can be cancelled"
            )
        return self._with_events(job)

    # Jobs, as the queue sees them

    @_transaction
    def take_next_job(self) -> Run | None:
        """Set the oldest pending job running; None if there is none."""
        row = self._db.execute(
            "SELECT id FROM jobs WHERE status = ? ORDER BY number LIMIT 1", (Status.PENDING,)
        ).fetchone()
        if row is None:
            return None
        job = self._update(attrs.evolve(self._job(row[0]), status=Status.RUNNING))
        self._say(job.id, "Fine-tune started")
        model = job.model or _DEFAULT_MODEL
        base, start = (model, model) if model in BASE_MODELS else self._weights(model)
        return Run(
            job=job,
            base=base,
            start=str(start),
            training_path=self.file_path(job.training_files[0].id),
            validation_path=self.file_path(job.validation_files[0].id) if job.validation_files else None,
            job_path=self._runs / f"{new_id('run-')}.json",
            model_path=self._models / f"{new_id('model-')}.npz",
            results_path=self.file_path(new_id("file-")),
        )

    @_transaction
    def note_event(self, job_id: str, message: str) -> None:
        """Add an event to a running job."""
        if self._running_job(job_id):
            self._say(job_id, message)

    @_transaction
    def note_success(self, run: Run) -> None:
        """Make the model and the results of a running job known, and the job succeeded."""
        if (job := self._running_job(run.job.id)) is None:
            return
        for folder in (self._models, self._files):
            _sync_folder(folder)
        results = _file(
            run.results_path.name, "compiled_results.csv", RESULTS_PURPOSE, run.results_path.stat().st_size, now()
        )
        self._insert_file(results)
        model = self._new_model_name(run)
        self._db.execute(
            "INSERT INTO models (id, base, created, weights) VALUES (?, ?, ?, ?)",
            (model, run.base, now(), run.model_path.name),
        )
        self._update(attrs.evolve(job, status=Status.SUCCEEDED, fine_tuned_model=model, result_files=(results,)))
        self._say(job.id, f"Uploaded model: {model}")
        self._say(job.id, f"Uploaded result file: {results.id}")
        self._say(job.id, "Fine-tune succeeded")
        self._announce_queue()

    @_transaction
    def note_failure(self, job_id: str, reason: str) -> None:
        """Make a running job failed."""
        if job := self._running_job(job_id):
            self._update(attrs.evolve(job, status=Status.FAILED))
            self._say(job_id, reason, level="error")
            self._say(job_id, "Fine-tune failed")
            self._announce_queue()

    @_transaction
    def put_back(self, reason: str) -> None:
        """Put jobs whose training broke off back into the queue, and say why."""
        self._put_back(reason)

    @_transaction
    def clear_run(self, run: Run) -> None:
        """Remove what an attempt left, but for the model and the results of one that succeeded."""
        made = () if self._job(run.job.id).status == Status.SUCCEEDED else (run.model_path, run.results_path)
        for path in (run.job_path, *made):
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.partial").unlink(missing_ok=True)

    # On the database's thread

    def _open(self) -> None:
        self._resources.enter_context(self._folder.locked())
        is_new = self._folder.check()
        try:
            for folder in (self._files, self._models, self._runs):
                folder.mkdir(mode=0o700, exist_ok=True)
            self._db = sqlite3.connect(self._folder.database, isolation_level=None)
            self._resources.callback(self._db.close)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._commit(functools.partial(self._prepare, is_new=is_new))
            self._folder.note_place()
            known = {name for (name,) in self._db.execute("SELECT id FROM files UNION SELECT weights FROM models")}
            self._folder.set_aside(known)
            self._folder.report_missing(known)
        except (OSError, sqlite3.Error) as error:
            raise self._folder.unusable(error) from error

    def _prepare(self, *, is_new: bool) -> None:
        if is_new:
            for statement in _SCHEMA:
                self._db.execute(statement)
        # Folders of before have none; they are of the same version, for all else is as it was.
        self._db.execute("CREATE TABLE IF NOT EXISTS commits (count INTEGER NOT NULL)")
        self._db.execute("INSERT INTO commits SELECT 0 WHERE NOT EXISTS (SELECT * FROM commits)")
        self._put_back("the server was restarted")

    def _put_back(self, reason: str) -> None:
        for (job_id,) in self._db.execute("SELECT id FROM jobs WHERE status = ?", (Status.RUNNING,)).fetchall():
            self._update(attrs.evolve(self._job(job_id), status=Status.PENDING))
            self._say(job_id, f"Fine-tune interrupted: {reason}. It will start again from the beginning")
            self._db.execute("UPDATE jobs SET queue = NULL WHERE id = ?", (job_id,))
        self._announce_queue()

    def _commit(self, call: Callable[[], T]) -> T:
        self._changed = set()
        self._db.execute("BEGIN IMMEDIATE")
        changes, count = self._db.total_changes, None
        try:
            result = call()
            if self._db.total_changes > changes:
                self._folder.check_place()
                ((count,),) = self._db.execute("UPDATE commits SET count = count + 1 RETURNING count").fetchall()
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        if count is not None:
            self._folder.keep_count(count)
        if self._changed:
            self._loop.call_soon_threadsafe(self._tell, frozenset(self._changed))
        return result

    def _tell(self, jobs: Collection[str]) -> None:
        self.on_change(jobs)

    def _file(self, file_id: str) -> File:
        row = self._db.execute(
            "SELECT id, filename, purpose, bytes, created_at FROM files WHERE id = ?", (file_id,)
        ).fetchone()
        if row is None:
            raise _no_file(file_id)
        return _file(*row)

    def _insert_file(self, file: File) -> None:
        self._db.execute(
            "INSERT INTO files (id, filename, purpose, bytes, created_at) VALUES (?, ?, ?, ?, ?)",
            (file.id, file.filename, file.purpose, file.bytes, file.created_at),
        )

    def _needs(self, request: FineTuneRequest) -> tuple[str, File, File | None]:
        """Return what a job is made of: its model, training file and validation file."""
        model = request.model or _DEFAULT_MODEL
        if model not in BASE_MODELS:
            try:
                self._weights(model)
            except Refused as refused:
                raise Refused(400, refused.message, param="model", code=refused.code) from None
        training = self._data_file("training_file", request.training_file)
        validation = request.validation_file and self._data_file("validation_file", request.validation_file)
        return model, training, validation or None

    def _data_file(self, param: str, file_id: str) -> File:
        try:
            file = self._file(file_id)
        except Refused as refused:
            raise Refused(400, refused.message, param=param) from None
        if file.purpose != PURPOSE:
            raise Refused(400, f"file {file_id} has the purpose '{file.purpose}', not '{PURPOSE}'", param=param)
        return file

    def _refuse_if_needed(self, kind: str, name: str) -> None:
        row = self._db.execute(
            "SELECT id FROM jobs WHERE status IN (?, ?) AND ? IN (training_file, validation_file, model)",
            (Status.PENDING, Status.RUNNING, name),
        ).fetchone()
        if row is not None:
            raise Refused(409, f"{kind} {name} is needed by fine-tune {row[0]}, which is not over; cancel that first")

    def _weights(self, name: str) -> tuple[str, Path]:
        """Return the base of a fine-tuned model and where its weights are."""
        row = self._db.execute("SELECT base, weights FROM models WHERE id = ?", (name,)).fetchone()
        if row is None:
            raise _no_model(name)
        return row[0], self._models / row[1]

    def _new_model_name(self, run: Run) -> str:
        (suffix,) = self._db.execute("SELECT suffix FROM jobs WHERE id = ?", (run.job.id,)).fetchone()
        slug = re.sub(r"[^a-z0-9]+", "-", (suffix or "").lower()).strip("-")
        time_of_name = dt.datetime.now(dt.UTC)
        while True:
            name = f"{run.base}:ft-local{':' if slug else ''}{slug}-{time_of_name:%Y-%m-%d-%H-%M-%S}"
            if self._db.execute("SELECT 1 FROM models WHERE id = ?", (name,)).fetchone() is None:
                return name
            time_of_name += dt.timedelta(seconds=1)

    def _job(self, job_id: str) -> FineTune:
        row = self._db.execute("SELECT record FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise Refused(404, f"No such fine-tune: {job_id}", param="fine_tune_id")
        return _job(*row)

    def _running_job(self, job_id: str) -> FineTune | None:
        """Return the job unless it is over, by a cancellation that its trainer has not noticed yet."""
        job = self._job(job_id)
        return job if job.status == Status.RUNNING else None

    def _with_events(self, job: FineTune) -> FineTune:
        return attrs.evolve(job, events=self._events(job.id))

    def _events(self, job_id: str, start: int = 0, count: int | None = None) -> tuple[FineTuneEvent, ...]:
        rows = self._db.execute(
            "SELECT message, level, created_at FROM events WHERE job = ? AND position >= ? ORDER BY position LIMIT ?",
            (job_id, start, -1 if count is None else count),
        )
        return tuple(FineTuneEvent(*row) for row in rows)

    def _update(self, job: FineTune) -> FineTune:
        job = attrs.evolve(job, updated_at=now())
        self._db.execute("UPDATE jobs SET status = ?, record = ? WHERE id = ?", (job.status, _record(job), job.id))
        self._changed.add(job.id)
        return job

    def _say(self, job_id: str, message: str, level: str = "info") -> None:
        self._db.execute(
            "INSERT INTO events (job, position, created_at, level, message)"
            " SELECT ?, coalesce(max(position) + 1, 0), ?, ?, ? FROM events WHERE job = ?",
            (job_id, now(), level, message, job_id),
        )
        self._changed.add(job_id)

    def _announce_queue(self) -> None:
        """Tell pending jobs how many are ahead of them: those that are new, and those near the front that moved up."""
        moved = self._db.execute(
            "SELECT id, place FROM (SELECT id, queue, row_number() OVER (ORDER BY number) - 1"
            " + (SELECT count(*) FROM jobs WHERE status = ?) AS place FROM jobs WHERE status = ?)"
            " WHERE queue IS NULL OR (queue > place AND place <= ?)",
            (Status.RUNNING, Status.PENDING, _NEAR),
        )
        for job_id, place in moved.fetchall():
            self._say(job_id, f"Fine-tune enqueued. Queue number: {place}")
            self._db.execute("UPDATE jobs SET queue = ? WHERE id = ?", (place, job_id))


class Incoming:
    """A file on its way in. All but `size` and `id` is for the store, and blocks."""

    def __init__(self, file_id: str, folder: Path) -> None:
        self.id = file_id
        self.size = 0
        self._path = folder / file_id
        self._partial = folder / f"{file_id}.partial"
        self._handle: BinaryIO | None = None

    def open(self) -> None:
        """Make the temporary file."""
        self._handle = self._partial.open("xb")

    def write(self, piece: bytes) -> None:
        """Add a piece."""
        assert self._handle is not None  # noqa: S101  # `open` comes first.
        self._handle.write(piece)
        self.size += len(piece)

    def seal(self) -> None:
        """Bring what was written to the disk."""
        assert self._handle is not None  # noqa: S101  # `open` comes first.
        self._handle.flush()
        os.fsync(self._handle.fileno())

    def settle(self) -> None:
        """Give the file its final name, for good."""
        self._partial.replace(self._path)
        _sync_folder(self._path.parent)

    def unsettle(self) -> None:
        """Remove the file though it has its final name."""
        self._path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Close the temporary file, and remove it if it still has its temporary name."""
        if self._handle is not None:
            try:
                with contextlib.suppress(OSError):  # What is removed need not be written.
                    self._handle.close()
            finally:
                self._partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, as POSIX has it: the file's own fsync does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file(file_id: str, filename: str, purpose: str, size: int, created_at: int) -> File:
    return File(file_id, filename, purpose, size, created_at, status="processed")


def _no_file(file_id: str) -> Refused:
    return Refused(404, f"No such File object: {file_id}", param="id")


def _base_model(name: str) -> Model:
    return Model(name, owned_by="aiofinetune")


def _no_model(name: str) -> Refused:
    return Refused(404, f"The model '{name}' does not exist", param="model", code="model_not_found")


def _record(job: FineTune) -> bytes:
    return structuring.dumps({key: value for key, value in structuring.write_reply(job).items() if key != "events"})


def _job(record: bytes) -> FineTune:
    return structuring.read_reply(record, FineTune)


def _count_lines(path: Path) -> int:
    """Count the lines of a file that are not blank: each is an example, or fails the job."""
    with path.open("rb") as file:
        # A line too long for an example counts for several, and is not held in memory.
        return sum(1 for line in iter(functools.partial(file.readline, MAX_LINE_BYTES), b"") if not line.isspace())


def _hyperparams(request: FineTuneRequest, examples: int) -> Hyperparams:
    """Return what a job is trained with (reference: create fine-tune); what has no default stays unset."""
    weight, multiplier = request.prompt_loss_weight, request.learning_rate_multiplier
    batch_size = request.batch_size or batch_size_of(examples)
    return Hyperparams(
        n_epochs=request.n_epochs or _DEFAULT_N_EPOCHS,
        batch_size=batch_size,
        learning_rate_multiplier=learning_rate_multiplier_of(batch_size) if multiplier is None else multiplier,
        prompt_loss_weight=_DEFAULT_PROMPT_LOSS_WEIGHT if weight is None else weight,
        compute_classification_metrics=request.compute_classification_metrics,
        classification_n_classes=request.classification_n_classes,
        classification_positive_class=request.classification_positive_class,
        classification_betas=request.classification_betas,
    )
