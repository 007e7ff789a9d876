"""The store's jobs, with their events and places in the queue."""

from __future__ import annotations

from typing import Final

import attrs

from aiofinetune import structuring
from aiofinetune._sqlite import transaction
from aiofinetune.local._engines.defaults import batch_size_of, learning_rate_multiplier_of
from aiofinetune.local._store.database import StoreDatabase, new_id, now
from aiofinetune.local._store.files import PURPOSE, FileStore
from aiofinetune.local._store.models import BASE_MODELS, ORGANIZATION, ModelStore
from aiofinetune.local._store.refused import Refused
from aiofinetune.models import File, FineTune, FineTuneEvent, FineTuneRequest, Hyperparams, Status

DEFAULT_MODEL: Final = "curie"
_DEFAULT_N_EPOCHS: Final = 4
_DEFAULT_PROMPT_LOSS_WEIGHT: Final = 0.01

_NEAR: Final = 10
"""The largest queue number that a job announces when it moves up. Otherwise 1,000 jobs would have 500,000 events."""


class JobStore:
    """The jobs. The events of a job report each change, and a job that is over never changes again.

    Args:
        database: The store's database.
        files: The files that jobs train on.
        models: The models that jobs start from.
    """

    def __init__(self, database: StoreDatabase, files: FileStore, models: ModelStore) -> None:
        self.database = database
        self._files = files
        self._models = models

    async def create(self, request: FineTuneRequest) -> FineTune:
        """Add a job to the end of the queue; refuse if its model or one of its files does not exist."""
        await self._check(request)
        return await self._add(request, await self._files.count_examples(request.training_file))

    @transaction
    def _check(self, request: FineTuneRequest) -> None:
        self._needs(request)

    @transaction
    def _add(self, request: FineTuneRequest, examples: int) -> FineTune:
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
        self.database.execute(
            "INSERT INTO jobs (id, status, model, training_file, validation_file, suffix, record)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (job.id, job.status, model, training.id, request.validation_file, request.suffix, _record(job)),
        )
        self.say(job.id, f"Created fine-tune: {job.id}")
        self.say(job.id, "Fine-tune costs $0.00")
        # The new job is one of the active ones, and all others are ahead of it.
        ((active,),) = self.database.execute("SELECT count FROM active")
        self.announce_place(job.id, active - 1)
        return self._with_events(job)

    def _needs(self, request: FineTuneRequest) -> tuple[str, File, File | None]:
        """Return the model, the training file and the validation file of a job; refuse if one does not exist."""
        model = request.model or DEFAULT_MODEL
        if model not in BASE_MODELS:
            try:
                self._models.find(model)
            except Refused as refused:
                raise Refused(400, refused.message, param="model", code=refused.code) from None
        training = self._data_file("training_file", request.training_file)
        validation = request.validation_file and self._data_file("validation_file", request.validation_file)
        return model, training, validation or None

    def _data_file(self, param: str, file_id: str) -> File:
        try:
            file = self._files.find(file_id)
        except Refused as refused:
            raise Refused(400, refused.message, param=param) from None
        if file.purpose != PURPOSE:
            raise Refused(400, f"file {file_id} has the purpose '{file.purpose}', not '{PURPOSE}'", param=param)
        return file

    @transaction
    def list(self) -> list[tuple[str, bytes]]:
        """Return the id of each job and its JSON without events, oldest first."""
        # The records are not decoded: for thousands of jobs, that takes longer than everything else in a reply.
        return self.database.execute("SELECT id, record FROM jobs ORDER BY number").fetchall()

    @transaction
    def get(self, job_id: str) -> FineTune:
        """Return one job with its events, or refuse with 404."""
        return self._with_events(self.find(job_id))

    @transaction
    def events(self, job_id: str, start: int = 0, count: int | None = None) -> tuple[tuple[FineTuneEvent, ...], str]:
        """Return a job's events from position `start` on, and its status at that moment; refuse with 404."""
        return self._events(job_id, start, count), self.find(job_id).status

    @transaction
    def cancel(self, job_id: str) -> FineTune:
        """Cancel a job and return it; refuse if it has succeeded or failed. Cancelling it again changes nothing."""
        job = self.find(job_id)
        if not job.is_terminal:
            job = self.update(attrs.evolve(job, status=Status.CANCELLED))
            self.say(job_id, "Fine-tune cancelled")
            self.announce_moves()
        elif job.status != Status.CANCELLED:
            raise Refused(
                400, f"fine-tune {job_id} is over ({job.status}); only a pending or running one can be cancelled"
            )
        return self._with_events(job)

    # In a transaction

    def find(self, job_id: str) -> FineTune:
        """Return one job without its events, or refuse with 404."""
        row = self.database.execute("SELECT record FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise Refused(404, f"No such fine-tune: {job_id}", param="fine_tune_id")
        return _job(*row)

    def update(self, job: FineTune) -> FineTune:
        """Store a changed job with the time of this update, and return it."""
        job = attrs.evolve(job, updated_at=now())
        self.database.execute("UPDATE jobs SET status = ?, record = ? WHERE id = ?", (job.status, _record(job), job.id))
        self.database.changed_jobs.add(job.id)
        return job

    def say(self, job_id: str, message: str, level: str = "info") -> None:
        """Add an event to a job."""
        self.database.execute(
            "INSERT INTO events (job, position, created_at, level, message)"
            " SELECT ?, coalesce(max(position) + 1, 0), ?, ?, ? FROM events WHERE job = ?",
            (job_id, now(), level, message, job_id),
        )
        self.database.changed_jobs.add(job_id)

    def announce_place(self, job_id: str, place: int) -> None:
        """Add an event to a pending job that says how many jobs are ahead of it."""
        self.say(job_id, f"Fine-tune enqueued. Queue number: {place}")
        self.database.execute("UPDATE jobs SET queue = ? WHERE id = ?", (place, job_id))

    def announce_moves(self) -> None:
        """Announce their new places to the pending jobs near the front of the queue that have moved up."""
        # Running jobs are older than pending ones, so they are ahead of all of them.
        ((running,),) = self.database.execute("SELECT count(*) FROM jobs WHERE status = ?", (Status.RUNNING,))
        front = self.database.execute(
            "SELECT id, queue FROM jobs WHERE status = ? ORDER BY number LIMIT ?",
            (Status.PENDING, max(0, _NEAR + 1 - running)),
        )
        for place, (job_id, announced) in enumerate(front.fetchall(), running):
            if place < announced:
                self.announce_place(job_id, place)

    def drop_unset_hyperparams(self) -> None:
        """Remove the hyperparameters that are null from the records of jobs: lists show the records as they are.

        Earlier versions of the server wrote null for each hyperparameter that was not set.
        """
        changed = []
        for job_id, record in self.database.execute("SELECT id, record FROM jobs"):
            job = structuring.loads(record)
            hyperparams = job.get("hyperparams")
            if isinstance(hyperparams, dict) and None in hyperparams.values():
                job["hyperparams"] = {name: value for name, value in hyperparams.items() if value is not None}
                changed.append((structuring.dumps(job), job_id))
        for parameters in changed:
            self.database.execute("UPDATE jobs SET record = ? WHERE id = ?", parameters)

    def _with_events(self, job: FineTune) -> FineTune:
        return attrs.evolve(job, events=self._events(job.id))

    def _events(self, job_id: str, start: int = 0, count: int | None = None) -> tuple[FineTuneEvent, ...]:
        rows = self.database.execute(
            "SELECT message, level, created_at FROM events WHERE job = ? AND position >= ? ORDER BY position LIMIT ?",
            (job_id, start, -1 if count is None else count),
        )
        return tuple(FineTuneEvent(*row) for row in rows)


def _record(job: FineTune) -> bytes:
    return structuring.dumps({key: value for key, value in structuring.write_reply(job).items() if key != "events"})


def _job(record: bytes) -> FineTune:
    return structuring.read_reply(record, FineTune)


def _hyperparams(request: FineTuneRequest, examples: int) -> Hyperparams:
    """Return a job's hyperparameters (reference: create fine-tune); those without a default stay unset."""
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
