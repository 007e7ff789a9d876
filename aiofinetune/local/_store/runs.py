"""The store's runs. Each run is one attempt to train a job."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs

from aiofinetune._sqlite import transaction
from aiofinetune.local._store.database import StoreDatabase, new_id
from aiofinetune.local._store.files import FileStore
from aiofinetune.local._store.folder import Folder
from aiofinetune.local._store.jobs import DEFAULT_MODEL, JobStore
from aiofinetune.local._store.models import BASE_MODELS, ModelStore
from aiofinetune.models import FineTune, Status

RESULTS_PURPOSE: Final = "fine-tune-results"


@attrs.frozen
class Run:
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


class RunStore:
    """The runs. The model and the results of a run are stored if the job succeeds, and removed otherwise.

    Nothing is stored for a run whose job is over: the job was cancelled, and its trainer has not ended yet.

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
    def take_next(self) -> Run | None:
        """Start a run of the oldest pending job and return it; None if there is no pending job."""
        row = self.database.execute(
            "SELECT id FROM jobs WHERE status = ? ORDER BY number LIMIT 1", (Status.PENDING,)
        ).fetchone()
        if row is None:
            return None
        job = self._jobs.update(attrs.evolve(self._jobs.find(row[0]), status=Status.RUNNING))
        self._jobs.say(job.id, "Fine-tune started")
        model = job.model or DEFAULT_MODEL
        base, start = (model, model) if model in BASE_MODELS else self._models.find(model)
        return Run(
            job=job,
            base=base,
            start=str(start),
            training_path=self._files.path(job.training_files[0].id),
            validation_path=self._files.path(job.validation_files[0].id) if job.validation_files else None,
            job_path=self._folder.runs / f"{new_id('run-')}.json",
            model_path=self._folder.models / f"{new_id('model-')}.npz",
            results_path=self._files.path(new_id("file-")),
        )

    @transaction
    def note_event(self, job_id: str, message: str) -> None:
        """Add an event to a running job."""
        if self._running_job(job_id):
            self._jobs.say(job_id, message)

    @transaction
    def note_success(self, run: Run) -> None:
        """Store the model and the results of a running job, and mark the job as succeeded."""
        if (job := self._running_job(run.job.id)) is None:
            return
        (suffix,) = self.database.execute("SELECT suffix FROM jobs WHERE id = ?", (job.id,)).fetchone()
        results = self._files.add(run.results_path, "compiled_results.csv", RESULTS_PURPOSE)
        model = self._models.add(run.model_path, run.base, suffix)
        self._jobs.update(attrs.evolve(job, status=Status.SUCCEEDED, fine_tuned_model=model, result_files=(results,)))
        self._jobs.say(job.id, f"Uploaded model: {model}")
        self._jobs.say(job.id, f"Uploaded result file: {results.id}")
        self._jobs.say(job.id, "Fine-tune succeeded")
        self._jobs.announce_moves()

    @transaction
    def note_failure(self, job_id: str, reason: str) -> None:
        """Mark a running job as failed."""
        if job := self._running_job(job_id):
            self._jobs.update(attrs.evolve(job, status=Status.FAILED))
            self._jobs.say(job_id, reason, level="error")
            self._jobs.say(job_id, "Fine-tune failed")
            self._jobs.announce_moves()

    @transaction
    def put_back(self, reason: str) -> None:
        """Put jobs whose training was interrupted back into the queue, with an event that says why."""
        self.put_all_back(reason)

    @transaction
    def clear(self, run: Run) -> None:
        """Remove the files of an attempt, except for the model and the results if it succeeded."""
        has_succeeded = self._jobs.find(run.job.id).status == Status.SUCCEEDED
        made = () if has_succeeded else (run.model_path, run.results_path)
        for path in (run.job_path, *made):
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.partial").unlink(missing_ok=True)

    # In a transaction

    def put_all_back(self, reason: str) -> None:
        """Put the running jobs back into the queue, with an event that says why."""
        rows = self.database.execute("SELECT id FROM jobs WHERE status = ? ORDER BY number", (Status.RUNNING,))
        # They are older than all pending jobs, so they go back to the front, and the others keep their places.
        for place, (job_id,) in enumerate(rows.fetchall()):
            self._jobs.update(attrs.evolve(self._jobs.find(job_id), status=Status.PENDING))
            self._jobs.say(job_id, f"Fine-tune interrupted: {reason}. It will start again from the beginning")
            self._jobs.announce_place(job_id, place)

    def _running_job(self, job_id: str) -> FineTune | None:
        """Return the job if it is running; otherwise None."""
        job = self._jobs.find(job_id)
        return job if job.status == Status.RUNNING else None
