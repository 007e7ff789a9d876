"""What a batch reports: how each entry ended, and how far the batch is."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import attrs

from aiofinetune.errors import FineTuneError
from aiofinetune.models import FineTune, FineTuneRequest

OutcomeStatus: TypeAlias = Literal["succeeded", "failed", "cancelled", "rejected", "uncertain", "vanished"]
"""How an entry ended; see `Outcome.status`."""


def parameters_of(request: FineTuneRequest | None, job: FineTune | None) -> dict[str, object]:
    """Return the parameters of a job by the request's names: those that were asked for, then those of the job itself.

    Args:
        request: What was asked for, if it is known.
        job: The job, if there is one. Its model and its hyperparameters are known, and its files if no request is.
    """
    found: dict[str, object] = {}
    if request is not None:
        found = request.given()
    elif job is not None:
        files = {"training_file": job.training_files, "validation_file": job.validation_files}
        found = {name: some[0].id for name, some in files.items() if some}
    if job is not None:
        for name, value in {"model": job.model, **attrs.asdict(job.hyperparams)}.items():
            if value not in (None, "auto") and found.get(name, "auto") == "auto":
                found[name] = value
    return found


def seconds_of(job: FineTune | None, sent_at: float | None, ended_at: float | None) -> float | None:
    """Return how long a job took, in seconds; None if that is not known.

    Args:
        job: The job as it ended, if it is known. What it says of its own times counts, in whole seconds.
        sent_at: The Unix time at which its request was sent.
        ended_at: The Unix time at which its end was seen, which at a service without streams is some seconds later.
    """
    if job is not None and job.created_at is not None and job.finished_at is not None:
        return float(max(0, job.finished_at - job.created_at))
    return None if sent_at is None or ended_at is None else round(ended_at - sent_at, 3)


@attrs.frozen
class Wait:
    """What a batch waits for, besides its jobs. Times are by the event loop's clock, in seconds."""

    kind: Literal["throttled", "full", "unreachable"]
    """The service asks to slow down, takes no more jobs until one ends, or does not answer as it should."""
    since: float
    until: float | None
    """When the batch tries again; None if it depends on a job's end."""
    error: FineTuneError
    """What failed."""

    @property
    def why(self) -> str:
        """What the service said, or what failed, in words."""
        return str(self.error)


@attrs.frozen
class ActiveJob:
    """A job of a batch that has not ended."""

    label: str
    request: FineTuneRequest
    """The request as passed by the caller; its files may be local paths."""
    job_id: str
    sent_at: float | None
    """The Unix time at which the request was sent."""
    message: str = ""
    """The last event's message, for people; "" if none is known."""


@attrs.frozen
class Outcome:
    """How one entry of a batch ended."""

    label: str
    status: OutcomeStatus
    """How the entry ended, in one word.

    - ``"succeeded"``: the job made a model;
    - ``"failed"``: the job failed;
    - ``"cancelled"``: the job was cancelled;
    - ``"rejected"``: no job was made, because the service refused the create or it could not be sent;
    - ``"uncertain"``: it is not known whether a job was made, or the job cannot be read;
    - ``"vanished"``: a job was made, but the service no longer knows it.
    """
    request: FineTuneRequest
    """The request as passed by the caller; its files may be local paths."""
    job_id: str | None
    """The job's id; None if no job was made, or the id is not known."""
    job: FineTune | None
    """The job as it ended; None if no job was made, the service no longer knows it, or it cannot be read."""
    error: FineTuneError | None
    """Why there is no tuned model, or no results file; None if nothing failed."""
    sent_at: float | None
    """The Unix time at which the request was sent."""
    ended_at: float
    """The Unix time at which its end was seen."""
    figures: Mapping[str, float] = attrs.field(factory=dict)
    """The last value of each column of the results file, if results are downloaded; NaN or infinite if it diverged."""
    attempt: int = 1
    """The number of the attempt that ended: 1, and one more for each retry or changed request under the label."""
    is_replayed: bool = False
    """Whether an earlier run with the same journal knew the outcome already."""

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters by name: those of the request, and those that the service chose for the others."""
        return parameters_of(self.request, self.job)

    @property
    def seconds(self) -> float | None:
        """How long the job took, by its own times if it says them, or else by when its end was seen."""
        return seconds_of(self.job, self.sent_at, self.ended_at)

    def summary(self) -> dict[str, object]:
        """Return a summary of the outcome as a JSON object, in which a figure that is NaN or infinite is null."""
        return {
            "label": self.label,
            "status": self.status,
            "job": self.job_id,
            "model": None if self.job is None else self.job.fine_tuned_model,
            "parameters": self.parameters,
            "seconds": self.seconds,
            "figures": {name: it if math.isfinite(it) else None for name, it in self.figures.items()},
            "error": None if self.error is None else str(self.error),
        }


@attrs.frozen
class Progress:
    """The progress of a batch."""

    seen: int = 0
    """The number of entries that were read."""
    active: int = 0
    """The number of this batch's jobs that have not ended, or whose ends are being handled."""
    settling: int = 0
    """The number of those whose ends are being recorded, or whose results are being downloaded."""
    others: int = 0
    """The number of other programs' jobs that had not ended at the last look."""
    # The number of entries that ended with each `Outcome.status`.
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: int = 0
    uncertain: int = 0
    vanished: int = 0
    replayed: int = 0
    """The number of ended entries whose outcome an earlier run knew already."""
    unsaved: int = 0
    """The number of those that succeeded, and whose results files were wanted and not saved."""
    followed_by: str = "streams"
    """How jobs are followed: ``"streams"``, or ``"list"`` if there are many."""
    started_at: float = attrs.field(factory=time.monotonic)
    """When the batch was constructed, on the clock of `time.monotonic`."""
    waits: tuple[Wait, ...] = ()
    """What the batch waits for at the moment, besides its jobs."""

    @property
    def ended(self) -> int:
        """The number of entries that have ended."""
        return sum(getattr(self, status) for status in get_args(OutcomeStatus))

    @property
    def ended_per_minute(self) -> float:
        """The average number of entries that have ended per minute in this run."""
        return 60 * (self.ended - self.replayed) / max(1e-9, time.monotonic() - self.started_at)


class BatchStopped(FineTuneError):
    """A batch ended before all its requests were sent; the cause, if there is one, is chained.

    The journal records what was sent. To continue, run the batch again with the same journal.
    """

    outcomes: tuple[Outcome, ...] = ()
    """The outcomes of the requests that were sent, if `Batch.run` raises the error."""
