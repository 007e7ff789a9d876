"""The store's attempts to train its jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from aiofinetune import structuring
from aiofinetune._sqlite import transaction
from aiofinetune.local._machines import Machine, Resources, fits
from aiofinetune.local._open_models import OpenModel
from aiofinetune.local._store.database import StoreDatabase, new_id, now
from aiofinetune.local._store.files import FileStore
from aiofinetune.local._store.folder import Folder
from aiofinetune.local._store.jobs import DEFAULT_MODEL, JOBS_PREFIX, JobStore
from aiofinetune.local._store.models import Checkpoint, ModelStore
from aiofinetune.local._store.refused import Refused
from aiofinetune.models import FineTune, Status

RESULTS_PURPOSE: Final = "fine-tune-results"

DEFAULT_SEED: Final = 0
"""The seed of a job that has none of its own. The same data and parameters give the same model."""

MOST_LOSSES: Final = 10
"""The attempts in a row that end with their workers, and get no further than those before, after which the job fails.

A job that kills its workers must not go on doing so, and one that is only unlucky must not fail: where workers die so
often that three attempts of ten are lost, ten in a row are six in a million."""

_KEPT_EPOCHS: Final = 2
"""With the last epoch these are three, as many as OpenAI keeps. The reference cannot show them."""

_PREFIX: Final = "attempt-"

_OLDEST: Final = "SELECT id, model FROM jobs WHERE status = 'pending' ORDER BY number LIMIT 1"
# By the first job of each model: thousands may wait for a resource while each create looks for a job that can start.
_OLDEST_OF_OTHERS: Final = """
    WITH RECURSIVE models (name) AS (
        SELECT min(model) FROM jobs WHERE status = 'pending' UNION ALL
        SELECT (SELECT min(model) FROM jobs WHERE status = 'pending' AND model > name) FROM models WHERE name NOT NULL)
    SELECT id, model FROM jobs WHERE number = (SELECT min(
        (SELECT min(number) FROM jobs WHERE status = 'pending' AND model = name))
        FROM models WHERE name NOT IN (SELECT value FROM json_each(?)))"""


@attrs.frozen
class Attempt:
    """One attempt to train a job, and the paths that its trainer reads and writes.

    Every attempt has paths of its own, because the trainer of a killed server may run for a moment longer.
    """

    id: str
    job: FineTune
    base: str
    """The base of the job's model, such as ``"ada"``."""
    start: str
    """The model to start from: the name of a base model, or the path of a fine-tuned model's weights."""
    training_path: Path
    validation_path: Path | None
    job_path: Path
    """The file with the trainer's input."""
    model_path: Path
    results_path: Path
    started_at: int
    """When the attempt started, in Unix seconds."""
    seed: int = DEFAULT_SEED
    kept_epochs: int = 0
    """The number of epochs before the last at whose ends the model is kept as well."""
    needs: Mapping[str, int] = attrs.field(factory=dict)
    """The amount of each resource that it needs, such as ``{"gpu": 1}``."""
    open_model: OpenModel | None = None
    """The base, if it is an open model; None if it is built in."""
    is_resumed: bool = False
    """Whether the attempt has been running on another machine since before the server was restarted."""

    def checkpoint_path(self, epoch: int) -> Path:
        """Return the path of the model at the end of an epoch before the last."""
        # Earlier servers move a file that they do not know aside if its name begins with "model-".
        return self.model_path.with_name(f"{_checkpoint_name(self.model_path)}.epoch{epoch}{self.model_path.suffix}")

    def checkpoint_paths(self) -> dict[int, Path]:
        """Return the paths of the models at the ends of the kept epochs before the last, by epoch."""
        n_epochs = self.job.hyperparams.n_epochs
        assert isinstance(n_epochs, int)  # noqa: S101  # The server's jobs have numbers.
        kept = range(max(1, n_epochs - self.kept_epochs), n_epochs)
        return {epoch: self.checkpoint_path(epoch) for epoch in kept}


def _checkpoint_name(model_path: Path) -> str:
    return f"checkpoint-{model_path.stem.removeprefix('model-')}"


@attrs.frozen
class RemoteAttempt:
    """What the store knows of an attempt on another machine."""

    job_id: str
    token: bytes
    """The SHA-256 of its token."""
    runner: str | None
    """What the process that runs it calls itself; None if none has called yet."""
    is_over: bool


class AttemptStore:
    """The attempts. The model and the results of an attempt are stored if the job succeeds, and removed otherwise.

    Nothing is stored for an attempt unless its job is running under that attempt. If the job was cancelled, or another
    attempt has started, the trainer has only not ended yet.

    Args:
        database: The store's database.
        folder: The store's folder.
        files: The files, to which the results are added.
        models: The models, to which the tuned models are added.
        jobs: The jobs to train.
    """

    def __init__(
        self, database: StoreDatabase, folder: Folder, files: FileStore, models: ModelStore, jobs: JobStore
    ) -> None:
        self.database = database
        self._folder = folder
        self._files = files
        self._models = models
        self._jobs = jobs

    @transaction
    def take_next(
        self, machines: Sequence[Machine] = (), needs: Mapping[str, Resources] | None = None
    ) -> Attempt | None:
        """Start an attempt of the oldest pending job whose resources are free; None if there is no such job.

        A resource that an older job waits for is not given to a younger one, on any machine where the older one fits.

        Args:
            machines: What each machine has, and has free.
            needs: The amount of each resource that a job needs, by its base model.
        """
        left = [dict(machine.free) for machine in machines]
        for job_id, needed in self._first_of_each_model(needs or {}):
            if not needed or any(fits(needed, amounts) for amounts in left):
                return attrs.evolve(self._begin(job_id), needs=needed)
            for machine, amounts in zip(machines, left, strict=True):
                if fits(needed, machine.has):
                    amounts.update(dict.fromkeys(needed, 0))
        return None

    @transaction
    def unfit(self, machines: Sequence[Machine], needs: Mapping[str, Resources]) -> Mapping[str, Resources]:
        """Return what the first job of each model needs, by job, if no machine has it."""
        return {
            job_id: needed
            for job_id, needed in self._first_of_each_model(needs)
            if needed and not any(fits(needed, machine.has) for machine in machines)
        }

    @transaction
    def note_unfit(self, job_id: str, words: str) -> None:
        """Add an event to a job that waits for what no machine has, if it is still pending."""
        if self._jobs.find(job_id).status == Status.PENDING:
            self._jobs.say(job_id, words, level="warn")

    def _first_of_each_model(self, needs: Mapping[str, Resources]) -> Iterator[tuple[str, Resources]]:
        """Yield the oldest pending job of each model, oldest first, and what it needs."""
        waiting = list[str]()
        while row := self._oldest_pending(waiting):
            job_id, model = row
            try:
                base = self._models.origin(model).base
            except Refused as refused:
                self._fail_without_base(job_id, refused)
                continue
            yield job_id, needs.get(base, {})
            waiting.append(model)

    def _oldest_pending(self, waiting: Sequence[str]) -> tuple[str, str] | None:
        """Return the id and the model of the oldest pending job, but for those of the models that wait."""
        statement, more = (_OLDEST_OF_OTHERS, (structuring.dumps(waiting).decode(),)) if waiting else (_OLDEST, ())
        row: tuple[str, str] | None = self.database.execute(statement, more).fetchone()
        return row

    def _begin(self, job_id: str) -> Attempt:
        job = self._jobs.update(attrs.evolve(self._jobs.find(job_id), status=Status.RUNNING))
        attempt_id = new_id(_PREFIX)
        self.database.execute("UPDATE jobs SET attempt = ? WHERE id = ?", (attempt_id, job_id))
        self._jobs.say(job.id, "Fine-tune started")
        return self._attempt(attempt_id, job, now())

    @transaction
    def note_validated(self, attempt: Attempt) -> None:
        """Note that the trainer of an attempt has read and checked its files."""
        if self._running_job(attempt):
            self.database.execute("UPDATE jobs SET is_validated = TRUE WHERE id = ?", (attempt.job.id,))

    @transaction
    def note_epoch(self, attempt: Attempt, epoch: int, n_epochs: int, estimated_finish: int) -> None:
        """Add an event to a running job that says how many epochs are complete, and note when it may finish.

        After a restart of the server, an attempt on another machine reports again what it has reported before; that
        adds no events.
        """
        if self._running_job(attempt) is None:
            return
        known = self.database.execute("SELECT epoch FROM remote_attempts WHERE id = ?", (attempt.id,)).fetchone()
        if known is not None and epoch <= known[0]:
            return
        self.database.execute("UPDATE remote_attempts SET epoch = ? WHERE id = ?", (epoch, attempt.id))
        self.database.execute("UPDATE jobs SET estimated_finish = ? WHERE id = ?", (estimated_finish, attempt.job.id))
        self._jobs.say(attempt.job.id, f"Completed epoch {epoch}/{n_epochs}")

    @transaction
    def note_success(
        self, attempt: Attempt, trained_tokens: int | None = None, checkpoints: Sequence[Checkpoint] = ()
    ) -> None:
        """Store the model and the results of a running job, and mark the job as succeeded.

        Args:
            attempt: The attempt.
            trained_tokens: The number of tokens that it trained on, over all epochs.
            checkpoints: The models at the ends of the last epochs, oldest first.
        """
        if (job := self._running_job(attempt)) is None:
            return
        (suffix,) = self.database.execute("SELECT suffix FROM jobs WHERE id = ?", (job.id,)).fetchone()
        results = self._files.add(attempt.results_path, "compiled_results.csv", RESULTS_PURPOSE)
        model = self._models.add(attempt.model_path, attempt.base, suffix)
        for checkpoint in checkpoints:
            is_last = checkpoint.weights == attempt.model_path
            self._models.add_checkpoint(job.id, model, attempt.base, checkpoint, is_last=is_last)
        self._jobs.update(attrs.evolve(job, status=Status.SUCCEEDED, fine_tuned_model=model, result_files=(results,)))
        self.database.execute("UPDATE jobs SET trained_tokens = ? WHERE id = ?", (trained_tokens, job.id))
        self._jobs.say(job.id, f"Uploaded model: {model}")
        self._jobs.say(job.id, f"Uploaded result file: {results.id}")
        self._jobs.say(job.id, "Fine-tune succeeded")
        self._jobs.announce_moves()

    @transaction
    def note_failure(self, attempt: Attempt, reason: str, param: str | None = None) -> None:
        """Mark a running job as failed; `param` is the parameter to blame, such as ``"training_file"``."""
        if job := self._running_job(attempt):
            self._fail(job, reason, param)

    @transaction
    def put_back(self, attempt: Attempt, reason: str, *, by_job: bool = False) -> None:
        """Put a job whose training was interrupted back into the queue, with an event that says why.

        Args:
            attempt: The attempt that was interrupted.
            reason: The reason.
            by_job: Whether the job itself may be the reason. After `MOST_LOSSES` such interruptions in a row, with no
                epoch more than before, it fails.
        """
        if (job := self._running_job(attempt)) is None:
            return
        if by_job and self._count_loss(attempt) >= MOST_LOSSES:
            lost = f"{MOST_LOSSES} attempts in a row ended with their workers and got no further than those before"
            self._fail(job, f"{lost}. The last: {reason}", None)
        else:
            self._put_back(job.id, reason)

    @transaction
    def clear(self, attempt: Attempt) -> None:
        """Remove the files of an attempt that is over, except for the model and the results if it succeeded.

        An attempt that goes on on another machine keeps its files.
        """
        job = self._jobs.find(attempt.job.id)
        if self._running_job(attempt) and self._remote(attempt.id):
            return
        # By their names: to look for them would read the folder, which has the models of all jobs.
        kept = attempt.checkpoint_paths().values()
        has_succeeded = job.status == Status.SUCCEEDED and self._is_latest(attempt)
        made = () if has_succeeded else (attempt.model_path, attempt.results_path, *kept)
        for path in (attempt.job_path, *made):
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.partial").unlink(missing_ok=True)

    # Attempts on other machines

    @transaction
    def add_remote(self, attempt: Attempt, token: bytes) -> None:
        """Note that an attempt runs on another machine, under the token with this SHA-256."""
        self.database.execute(
            "INSERT INTO remote_attempts (id, job, token, started_at) VALUES (?, ?, ?, ?)",
            (attempt.id, attempt.job.id, token, attempt.started_at),
        )

    @transaction
    def remote(self, attempt_id: str) -> RemoteAttempt | None:
        """Return what is known of an attempt on another machine; None if there is none with this id."""
        return self._remote(attempt_id)

    @transaction
    def note_runner(self, attempt: Attempt, runner: str, where: str) -> bool:
        """Note which process runs an attempt, and where, with an event; return False if another one already does."""
        cursor = self.database.execute(
            "UPDATE remote_attempts SET runner = ? WHERE id = ? AND runner IS NULL", (runner, attempt.id)
        )
        if cursor.rowcount and self._running_job(attempt):
            self._jobs.say(attempt.job.id, f"Training on {where}")
        remote = self._remote(attempt.id)
        return remote is not None and remote.runner == runner

    @transaction
    def resumable(self, needs: Mapping[str, Mapping[str, int]]) -> Sequence[Attempt]:
        """Return the attempts that have been running on other machines since before the server was started.

        Args:
            needs: The amount of each resource that a job needs, by its base model.
        """
        rows = self.database.execute(
            "SELECT remote_attempts.id, jobs.id, started_at FROM jobs JOIN remote_attempts"
            " ON jobs.attempt = remote_attempts.id WHERE status = ? ORDER BY number",
            (Status.RUNNING,),
        )
        found = []
        for attempt_id, job_id, started_at in rows.fetchall():
            try:
                attempt = self._attempt(attempt_id, self._jobs.find(job_id), started_at)
            except Refused as refused:
                self._fail_without_base(job_id, refused)
            else:
                found.append(attrs.evolve(attempt, needs=needs.get(attempt.base, {}), is_resumed=True))
        return found

    # In a transaction

    def put_all_back(self, reason: str, *, keeps_remote: bool) -> None:
        """Put the running jobs back into the queue, with an event that says why.

        Args:
            reason: The reason.
            keeps_remote: Whether attempts on other machines go on. Those that no process there has begun do not: it is
                not known whether their command was ever started.
        """
        rows = self.database.execute(
            "SELECT id FROM jobs WHERE status = ? AND NOT (? AND EXISTS"
            " (SELECT * FROM remote_attempts WHERE id = jobs.attempt AND runner IS NOT NULL)) ORDER BY number DESC",
            (Status.RUNNING, keeps_remote),
        )
        # Only jobs that were paused meanwhile may be older, so the others keep their places.
        for (job_id,) in rows.fetchall():
            self._put_back(job_id, reason)

    def is_remote_running(self, name: str) -> bool | None:
        """Return whether an attempt on another machine runs; None if there is none with this name in its id."""
        remote = self._remote(_PREFIX + name)
        return None if remote is None else not remote.is_over

    def is_latest_of_a_job(self, name: str) -> bool:
        """Return whether the attempt with this name in its id is the latest one of a job."""
        return self.database.execute("SELECT 1 FROM jobs WHERE attempt = ?", (_PREFIX + name,)).fetchone() is not None

    def _count_loss(self, attempt: Attempt) -> int:
        """Count the loss of an attempt's worker; return how many it has been in a row without an epoch more."""
        ((losses, furthest),) = self.database.execute(
            "SELECT losses, furthest FROM jobs WHERE id = ?", (attempt.job.id,)
        ).fetchall()
        known = self.database.execute("SELECT epoch FROM remote_attempts WHERE id = ?", (attempt.id,)).fetchone()
        epoch = known[0] if known else 0
        losses = 0 if epoch > furthest else losses + 1
        self.database.execute(
            "UPDATE jobs SET losses = ?, furthest = ? WHERE id = ?", (losses, max(epoch, furthest), attempt.job.id)
        )
        return losses

    def _put_back(self, job_id: str, reason: str) -> None:
        self._jobs.update(attrs.evolve(self._jobs.find(job_id), status=Status.PENDING))
        self._jobs.say(job_id, f"Fine-tune interrupted: {reason}. It will start again from the beginning")
        self._jobs.announce_place(job_id, self._jobs.place_of(job_id))

    def _attempt(self, attempt_id: str, job: FineTune, started_at: int) -> Attempt:
        # All names follow from the id, so that an attempt is found again after a restart.
        name = attempt_id.removeprefix(_PREFIX)
        origin = self._models.origin(job.model or DEFAULT_MODEL)
        row = self.database.execute("SELECT seed, asked IS NOT NULL FROM jobs WHERE id = ?", (job.id,)).fetchone()
        seed, keeps_epochs = row[0], row[1] or job.id.startswith(JOBS_PREFIX)
        return Attempt(
            id=attempt_id,
            job=job,
            base=origin.base,
            start=str(origin.weights or origin.base),
            open_model=origin.open_model,
            training_path=self._files.path(job.training_files[0].id),
            validation_path=self._files.path(job.validation_files[0].id) if job.validation_files else None,
            job_path=self._folder.runs / f"run-{name}.json",
            model_path=self._folder.models / f"model-{name}.{'safetensors' if origin.open_model else 'npz'}",
            results_path=self._files.path(f"file-{name}"),
            started_at=started_at,
            seed=DEFAULT_SEED if seed is None else seed,
            kept_epochs=_KEPT_EPOCHS if keeps_epochs else 0,
        )

    def _fail(self, job: FineTune, reason: str, param: str | None) -> None:
        self._jobs.update(attrs.evolve(job, status=Status.FAILED))
        self.database.execute("UPDATE jobs SET failed_param = ? WHERE id = ?", (param, job.id))
        self._jobs.say(job.id, reason, level="error")
        self._jobs.say(job.id, "Fine-tune failed")
        self._jobs.announce_moves()

    def _fail_without_base(self, job_id: str, refused: Refused) -> None:
        """Mark a job as failed whose base model the server was started without."""
        job = self._jobs.find(job_id)
        reason = f"{refused.message}. An open model must be given with --model NAME=PATH whenever the server is started"
        self._fail(job, reason, "model")

    def _running_job(self, attempt: Attempt) -> FineTune | None:
        """Return the job if it is running under this attempt; otherwise None."""
        job = self._jobs.find(attempt.job.id)
        return job if job.status == Status.RUNNING and self._is_latest(attempt) else None

    def _is_latest(self, attempt: Attempt) -> bool:
        latest = self.database.execute("SELECT attempt FROM jobs WHERE id = ?", (attempt.job.id,)).fetchone()
        return latest is not None and latest[0] == attempt.id

    def _remote(self, attempt_id: str) -> RemoteAttempt | None:
        row = self.database.execute(
            "SELECT remote_attempts.job, token, runner, NOT (status = ? AND jobs.attempt = remote_attempts.id)"
            " FROM remote_attempts JOIN jobs ON jobs.id = remote_attempts.job WHERE remote_attempts.id = ?",
            (Status.RUNNING, attempt_id),
        ).fetchone()
        return None if row is None else RemoteAttempt(row[0], row[1], row[2], bool(row[3]))
