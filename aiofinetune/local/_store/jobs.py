"""The store's jobs, with their events and places in the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from aiofinetune import structuring
from aiofinetune._sqlite import transaction
from aiofinetune.data._defaults import batch_size_of, learning_rate_multiplier_of
from aiofinetune.local._engines.training_files import COMPLETION_BYTES
from aiofinetune.local._store.database import StoreDatabase, new_id, now
from aiofinetune.local._store.files import PURPOSE, FileStore
from aiofinetune.local._store.models import ORGANIZATION, ModelStore
from aiofinetune.local._store.refused import PAUSED, Refused
from aiofinetune.models import File, FineTune, FineTuneEvent, FineTuneRequest, Hyperparams, Status

DEFAULT_MODEL: Final = "curie"
JOBS_PREFIX: Final = "ftjob-"
"""What the ids of jobs that were created through the jobs API begin with."""
_DEFAULT_N_EPOCHS: Final = 4
_DEFAULT_PROMPT_LOSS_WEIGHT: Final = 0.01

_NEAR: Final = 10
"""The largest queue number that a job announces when it moves up. Otherwise 1,000 jobs would have 500,000 events."""


@attrs.frozen
class Extras:
    """The parameters of a job that only the jobs API and the Together API have."""

    suffix: str | None = None
    """It may be longer than the reference's suffix."""
    seed: int | None = None
    metadata: Mapping[str, str] | None = None
    asked: Mapping[str, object] | None = None
    """What was asked for through the Together API, which shows it again; None if the job came through another one."""


@attrs.frozen
class JobRow:
    """A job with all that the jobs API and the Together API show of it."""

    job: FineTune
    """The job without its events. If it is paused, it is pending."""
    is_paused: bool
    is_validated: bool
    """Whether its trainer has read and checked the files."""
    suffix: str | None
    seed: int | None
    metadata: Mapping[str, str] | None
    estimated_finish: int | None
    trained_tokens: int | None
    failed_param: str | None
    failure: str | None
    """Why it failed."""
    asked: Mapping[str, object] | None = None


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

    async def create(self, request: FineTuneRequest, extras: Extras | None = None) -> FineTune:
        """Add a job to the end of the queue; refuse if its model or a file does not exist, or a file is wrong.

        Args:
            request: The parameters of the reference.
            extras: The others, if the job is created through the jobs API. Its suffix replaces that of `request`.
        """
        is_built_in = await self._check(request)
        # The limit of an open model is in its own tokens, which only its trainer counts.
        limit = COMPLETION_BYTES if is_built_in else None
        examples = await self._files.count_examples(request.training_file, "training", limit)
        if request.validation_file:
            await self._files.count_examples(request.validation_file, "validation", limit)
        return await self._add(request, examples, extras)

    @transaction
    def _check(self, request: FineTuneRequest) -> bool:
        """Refuse a job whose model or file does not exist; return whether its base model is built in."""
        model, _, _ = self._needs(request)
        return self._models.origin(model).open_model is None

    @transaction
    def _add(self, request: FineTuneRequest, examples: int, extras: Extras | None = None) -> FineTune:
        model, training, validation = self._needs(request)
        created_at = now()
        job = FineTune(
            id=new_id("ft-" if extras is None or extras.asked is not None else JOBS_PREFIX),
            status=Status.PENDING,
            model=model,
            created_at=created_at,
            updated_at=created_at,
            training_files=(training,),
            validation_files=(validation,) if validation else (),
            hyperparams=_hyperparams(request, examples),
            organization_id=ORGANIZATION,
        )
        extras = extras or Extras(suffix=request.suffix)
        self.database.execute(
            "INSERT INTO jobs"
            " (id, status, model, training_file, validation_file, suffix, seed, metadata, asked, record)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(job.id, job.status, model, training.id, request.validation_file, extras.suffix, extras.seed),
                *(
                    None if each is None else structuring.dumps(each).decode()
                    for each in (extras.metadata, extras.asked)
                ),
                _record(job),
            ),
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
        try:
            self._models.origin(model)
        except Refused as refused:
            message = f"{refused.message}; the base models are {', '.join(self._models.bases)}"
            raise Refused(400, message, param="model", code=refused.code) from None
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
    def row(self, job_id: str) -> JobRow:
        """Return one job with all that the jobs API shows, or refuse with 404."""
        return self._row(job_id)

    @transaction
    def rows(
        self, after: str | None, count: int, metadata: Mapping[str, str] | None, *, without_metadata: bool = False
    ) -> Sequence[JobRow]:
        """Return jobs with all that the jobs API shows, latest first.

        Args:
            after: The id of the job before the first one to return; refuse with 400 if it does not exist.
            count: The most jobs to return.
            metadata: The keys and values that the jobs' metadata must contain.
            without_metadata: Whether to return only jobs that have no metadata.
        """
        conditions, parameters = ["TRUE"], list[object]()
        if after is not None:
            found = self.database.execute("SELECT number FROM jobs WHERE id = ?", (after,)).fetchone()
            if found is None:
                raise Refused(400, "after: expected the id of a job", param="after")
            conditions.append("number < ?")
            parameters += found
        for item in (metadata or {}).items():
            conditions.append("EXISTS (SELECT * FROM json_each(jobs.metadata) WHERE key = ? AND value = ?)")
            parameters += item
        if without_metadata:
            conditions.append("metadata IS NULL")
        selected = f"{_ROW} WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT ?"
        return [_job_row(*row) for row in self.database.execute(selected, (*parameters, count))]

    @transaction
    def latest_events(self, job_id: str, before: int | None, count: int) -> Sequence[tuple[int, FineTuneEvent]]:
        """Return events of a job with their positions, at most `count`, latest first; refuse with 404.

        Args:
            job_id: The job.
            before: The position after the first one to return; None for the latest events.
            count: The most events to return.
        """
        self.find(job_id)
        rows = self.database.execute(
            "SELECT position, message, level, created_at FROM events"
            " WHERE job = ? AND position < coalesce(?, position + 1) ORDER BY position DESC LIMIT ?",
            (job_id, before, count),
        )
        return [(position, FineTuneEvent(*event)) for position, *event in rows]

    @transaction
    def pause(self, job_id: str) -> JobRow:
        """Pause a job and return it; refuse if it is over. Pausing it again changes nothing."""
        row = self._row(job_id)
        _refuse_if_over(row.job, "paused")
        if row.is_paused:
            return row
        self.update(attrs.evolve(row.job, status=Status.PENDING), PAUSED)
        was_running = row.job.status == Status.RUNNING
        self.say(job_id, "Fine-tune paused" + (". It will start again from the beginning" if was_running else ""))
        self.announce_moves()
        return self._row(job_id)

    @transaction
    def resume(self, job_id: str) -> JobRow:
        """Put a paused job back into the queue and return it; refuse if it is over.

        Its place is that of its age. Resuming a job that is not paused changes nothing.
        """
        row = self._row(job_id)
        _refuse_if_over(row.job, "resumed")
        if not row.is_paused:
            return row
        self.update(row.job)
        self.say(job_id, "Fine-tune resumed")
        self.announce_place(job_id, self.place_of(job_id))
        return self._row(job_id)

    @transaction
    def events(
        self, job_id: str, start: int = 0, count: int | None = None
    ) -> tuple[tuple[FineTuneEvent, ...], str, str | None]:
        """Return a job's events from position `start` on; refuse with 404.

        Returns:
            The events, and at that moment the job's status and the id of its latest attempt.
        """
        job = self.find(job_id)
        (attempt,) = self.database.execute("SELECT attempt FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return self._events(job_id, start, count), job.status, attempt

    @transaction
    def cancel(self, job_id: str) -> FineTune:
        """Cancel a job and return it; refuse if it has succeeded or failed. Cancelling it again changes nothing."""
        job = self.find(job_id)
        if not job.is_terminal:
            job = self.update(attrs.evolve(job, status=Status.CANCELLED))
            self.say(job_id, "Fine-tune cancelled")
            self.announce_moves()
        elif job.status != Status.CANCELLED:
            _refuse_if_over(job, "cancelled")
        return self._with_events(job)

    @transaction
    def delete(self, job_id: str) -> None:
        """Delete a job that is over, and its events; its model and its files stay."""
        job = self.find(job_id)
        if not job.is_terminal:
            raise Refused(400, f"fine-tune {job_id} is not over ({job.status}); cancel it first")
        for statement in ("DELETE FROM jobs WHERE id = ?", "DELETE FROM events WHERE job = ?"):
            self.database.execute(statement, (job_id,))

    # In a transaction

    def find(self, job_id: str) -> FineTune:
        """Return one job without its events, or refuse with 404."""
        row = self.database.execute("SELECT record FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise _no_job(job_id)
        return _job(*row)

    def update(self, job: FineTune, status: str | None = None) -> FineTune:
        """Store a job whose status has changed, with the time of this update, and return it.

        Args:
            job: The changed job.
            status: The status in the database; by default, that of the job.
        """
        job = attrs.evolve(job, updated_at=now())
        self.database.execute(
            "UPDATE jobs SET status = ?, record = ?, is_validated = NULL, estimated_finish = NULL WHERE id = ?",
            (status or job.status, _record(job), job.id),
        )
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

    def place_of(self, job_id: str) -> int:
        """Return how many jobs are ahead of a pending job: those that run, and older pending ones."""
        ((place,),) = self.database.execute(
            "SELECT (SELECT count(*) FROM jobs WHERE status = ?) + (SELECT count(*) FROM jobs"
            " WHERE status = ? AND number < (SELECT number FROM jobs WHERE id = ?))",
            (Status.RUNNING, Status.PENDING, job_id),
        )
        return int(place)

    def announce_moves(self) -> None:
        """Announce their new places to the pending jobs near the front of the queue that have moved up."""
        # Running jobs are ahead of all pending ones.
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

    def _row(self, job_id: str) -> JobRow:
        row = self.database.execute(f"{_ROW} WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise _no_job(job_id)
        return _job_row(*row)

    def _with_events(self, job: FineTune) -> FineTune:
        return attrs.evolve(job, events=self._events(job.id))

    def _events(self, job_id: str, start: int = 0, count: int | None = None) -> tuple[FineTuneEvent, ...]:
        rows = self.database.execute(
            "SELECT message, level, created_at FROM events WHERE job = ? AND position >= ? ORDER BY position LIMIT ?",
            (job_id, start, -1 if count is None else count),
        )
        return tuple(FineTuneEvent(*row) for row in rows)


_ROW: Final = """SELECT record, status, is_validated, suffix, seed, metadata, estimated_finish, trained_tokens,
    failed_param, asked, CASE WHEN status = 'failed' THEN (SELECT message FROM events
    WHERE job = jobs.id AND level = 'error' ORDER BY position DESC LIMIT 1) END FROM jobs"""


def _job_row(
    record: bytes,
    status: str,
    is_validated: int | None,
    suffix: str | None,
    seed: int | None,
    metadata: str | None,
    estimated_finish: int | None,
    trained_tokens: int | None,
    failed_param: str | None,
    asked: str | None,
    failure: str | None,
) -> JobRow:
    return JobRow(
        job=_job(record),
        is_paused=status == PAUSED,
        is_validated=bool(is_validated),
        suffix=suffix,
        seed=seed,
        metadata=None if metadata is None else structuring.loads(metadata.encode()),
        estimated_finish=estimated_finish,
        trained_tokens=trained_tokens,
        failed_param=failed_param,
        failure=failure,
        asked=None if asked is None else structuring.loads(asked.encode()),
    )


def _no_job(job_id: str) -> Refused:
    return Refused(404, f"No such fine-tune: {job_id}", param="fine_tune_id")


def _refuse_if_over(job: FineTune, done: str) -> None:
    if job.is_terminal:
        raise Refused(400, f"fine-tune {job.id} is over ({job.status}), so it cannot be {done}")


def _record(job: FineTune) -> bytes:
    return structuring.dumps({key: value for key, value in structuring.write_reply(job).items() if key != "events"})


def _job(record: bytes) -> FineTune:
    return structuring.read_reply(record, FineTune)


def _hyperparams(request: FineTuneRequest, examples: int) -> Hyperparams:
    """Return a job's hyperparameters (reference: create fine-tune); those without a default stay unset."""
    weight = request.prompt_loss_weight
    multiplier = None if request.learning_rate_multiplier == "auto" else request.learning_rate_multiplier
    rate = request.learning_rate
    # "auto" leaves the choice to the server, as None does.
    batch_size = request.batch_size if isinstance(request.batch_size, int) else batch_size_of(examples)
    return Hyperparams(
        n_epochs=request.n_epochs if isinstance(request.n_epochs, int) else _DEFAULT_N_EPOCHS,
        batch_size=batch_size,
        learning_rate_multiplier=multiplier
        if isinstance(multiplier, int | float)
        else (learning_rate_multiplier_of(batch_size) if rate is None else None),
        learning_rate=rate,
        prompt_loss_weight=_DEFAULT_PROMPT_LOSS_WEIGHT if weight is None else weight,
        compute_classification_metrics=request.compute_classification_metrics,
        classification_n_classes=request.classification_n_classes,
        classification_positive_class=request.classification_positive_class,
        classification_betas=request.classification_betas,
    )
