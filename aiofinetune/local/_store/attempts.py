"""The store's attempts to train its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from aiofinetune._sqlite import transaction
from aiofinetune.local._store.database import StoreDatabase, new_id
from aiofinetune.local._store.files import FileStore
from aiofinetune.local._store.folder import Folder
from aiofinetune.local._store.jobs import DEFAULT_MODEL, JOBS_PREFIX, JobStore
from aiofinetune.local._store.models import BASE_MODELS, Checkpoint, ModelStore
from aiofinetune.models import FineTune, Status

RESULTS_PURPOSE: Final = "fine-tune-results"

DEFAULT_SEED: Final = 0
"""The seed of a job that has none of its own. The same data and parameters give the same model."""

_KEPT_EPOCHS: Final = 2
"""With the last epoch these are three, as many as OpenAI keeps. Only the jobs API can show them."""


@attrs.frozen
class Attempt:
    """One attempt to train a job, and the paths that its trainer reads and writes.

    Every attempt has paths of its own, because the trainer of a killed server may run for a moment longer.
    """

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
    seed: int = DEFAULT_SEED
    kept_epochs: int = 0
    """The number of epochs before the last at whose ends the model is kept as well."""

    def checkpoint_path(self, epoch: int) -> Path:
        """Return the path of the model at the end of an epoch before the last."""
        # Earlier servers move a file that they do not know aside if its name begins with "model-".
        return self.model_path.with_name(f"{_checkpoint_name(self.model_path)}.epoch{epoch}.npz")

    def checkpoint_paths(self) -> dict[int, Path]:
        """Return the paths of the models at the ends of the kept epochs before the last, by epoch."""
        n_epochs = self.job.hyperparams.n_epochs
        assert isinstance(n_epochs, int)  # noqa: S101  # The server's jobs have numbers.
        kept = range(max(1, n_epochs - self.kept_epochs), n_epochs)
        return {epoch: self.checkpoint_path(epoch) for epoch in kept}


def _checkpoint_name(model_path: Path) -> str:
    return f"checkpoint-{model_path.stem.removeprefix('model-')}"


class AttemptStore:
    """The attempts. The model and the results of an attempt are stored if the job succeeds, and removed otherwise.

    Nothing is stored for an attempt whose job is over: the job was cancelled, and its trainer has not ended yet.

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
    def take_next(self) -> Attempt | None:
        """Start an attempt of the oldest pending job and return it; None if there is no pending job."""
        row = self.database.execute(
            "SELECT id, seed FROM jobs WHERE status = ? ORDER BY number LIMIT 1", (Status.PENDING,)
        ).fetchone()
        if row is None:
            return None
        job = self._jobs.update(attrs.evolve(self._jobs.find(row[0]), status=Status.RUNNING))
        self._jobs.say(job.id, "Fine-tune started")
        model = job.model or DEFAULT_MODEL
        base, start = (model, model) if model in BASE_MODELS else self._models.find(model)
        return Attempt(
            job=job,
            base=base,
            start=str(start),
            training_path=self._files.path(job.training_files[0].id),
            validation_path=self._files.path(job.validation_files[0].id) if job.validation_files else None,
            job_path=self._folder.runs / f"{new_id('run-')}.json",
            model_path=self._folder.models / f"{new_id('model-')}.npz",
            results_path=self._files.path(new_id("file-")),
            seed=DEFAULT_SEED if row[1] is None else row[1],
            kept_epochs=_KEPT_EPOCHS if job.id.startswith(JOBS_PREFIX) else 0,
        )

    @transaction
    def note_validated(self, job_id: str) -> None:
        """Note that the trainer of a running job has read and checked its files."""
        self.database.execute(
            "UPDATE jobs SET is_validated = TRUE WHERE id = ? AND status = ?", (job_id, Status.RUNNING)
        )

    @transaction
    def note_epoch(self, job_id: str, epoch: int, n_epochs: int, estimated_finish: int) -> None:
        """Add an event to a running job that says how many epochs are complete, and note when it may finish."""
        if self._running_job(job_id):
            self.database.execute("UPDATE jobs SET estimated_finish = ? WHERE id = ?", (estimated_finish, job_id))
            self._jobs.say(job_id, f"Completed epoch {epoch}/{n_epochs}")

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
        if (job := self._running_job(attempt.job.id)) is None:
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
    def note_failure(self, job_id: str, reason: str, param: str | None = None) -> None:
        """Mark a running job as failed; `param` is the parameter to blame, such as ``"training_file"``."""
        if job := self._running_job(job_id):
            self._jobs.update(attrs.evolve(job, status=Status.FAILED))
            self.database.execute("UPDATE jobs SET failed_param = ? WHERE id = ?", (param, job_id))
            self._jobs.say(job_id, reason, level="error")
            self._jobs.say(job_id, "Fine-tune failed")
            self._jobs.announce_moves()

    @transaction
    def put_back(self, reason: str) -> None:
        """Put jobs whose training was interrupted back into the queue, with an event that says why."""
        self.put_all_back(reason)

    @transaction
    def clear(self, attempt: Attempt) -> None:
        """Remove the files of an attempt, except for the model and the results if it succeeded."""
        has_succeeded = self._jobs.find(attempt.job.id).status == Status.SUCCEEDED
        kept = attempt.model_path.parent.glob(f"{_checkpoint_name(attempt.model_path)}.epoch*.npz")
        made = () if has_succeeded else (attempt.model_path, attempt.results_path, *kept)
        for path in (attempt.job_path, *made):
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.partial").unlink(missing_ok=True)

    # In a transaction

    def put_all_back(self, reason: str) -> None:
        """Put the running jobs back into the queue, with an event that says why."""
        rows = self.database.execute("SELECT id FROM jobs WHERE status = ? ORDER BY number DESC", (Status.RUNNING,))
        # Only jobs that were paused meanwhile may be older, so the others keep their places.
        for (job_id,) in rows.fetchall():
            self._jobs.update(attrs.evolve(self._jobs.find(job_id), status=Status.PENDING))
            self._jobs.say(job_id, f"Fine-tune interrupted: {reason}. It will start again from the beginning")
            self._jobs.announce_place(job_id, self._jobs.place_of(job_id))

    def _running_job(self, job_id: str) -> FineTune | None:
        """Return the job if it is running; otherwise None."""
        job = self._jobs.find(job_id)
        return job if job.status == Status.RUNNING else None
