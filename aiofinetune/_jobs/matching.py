"""Which job or file of a service's list a call made whose reply was lost. Pure functions, no I/O.

No service is known to honour an idempotency key. When the reply to a create is lost, the service's list is all that is
left to go by.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Final, NamedTuple

from aiofinetune.models import File, FineTune, FineTuneRequest

CLOCK_SLACK: Final = 5.0
"""Seconds by which the clocks of one service's machines may differ: the one that dates replies, and the one that dates
jobs. The client's own clock plays no part."""


class Verdict(NamedTuple):
    """What the service's list says of a create whose reply was lost.

    Args:
        job: The job that it made.
        unclear: Jobs that it may have made, or something else may have.
    Neither: the list holds no trace of it.
    """

    job: FineTune | None = None
    unclear: tuple[FineTune, ...] = ()


def judge(
    jobs: Iterable[FineTune],
    request: FineTuneRequest,
    since: float | None,
    lost: Sequence[FineTuneRequest],
    claimed: Container[str],
    astray: float = 0.0,
) -> Verdict:
    """Say which job of a list a create made, if the list can tell.

    Args:
        jobs: The service's list.
        request: What was asked for.
        since: The service's time when it was first sent, in Unix seconds; None where that is unknown.
        lost: Every request of the session whose reply was lost and which is not found yet, `request` among them.
        claimed: Ids of jobs that belong to calls of the session.
        astray: Seconds by which `since` may be too late.
    """
    others = [job for job in jobs if job.id not in claimed]
    near = sorted((job for job in others if _is_near(job, request, since)), key=lambda job: job.created_at or 0)
    fitting = [job for job in near if fits(job, request)]
    if fitting:
        equal = sum(other == request for other in lost)
        is_contested = any(other != request and fits(job, other) for other in lost for job in fitting)
        # A job that fits only because the list does not say what would tell it from others is no proof.
        plain = [job for job in fitting if job.training_files and job.created_at is not None]
        if plain and since is not None and not is_contested and len(fitting) <= equal:
            return Verdict(job=plain[0])
        return Verdict(unclear=tuple(fitting))
    # A service may have changed a parameter: a job that nothing else of this session explains may be the one.
    unclear = [job for job in near if not any(fits(job, other) for other in lost)]
    if since is not None:
        unclear += [job for job in others if _is_since(job, since - astray) and fits(job, request)]
    return Verdict(unclear=tuple(unclear))


def _is_near(job: FineTune, request: FineTuneRequest, since: float | None) -> bool:
    files = {file.id for file in job.training_files}
    return (since is None or _is_since(job, since - CLOCK_SLACK)) and (not files or request.training_file in files)


def _is_since(job: FineTune, since: float) -> bool:
    """Whether a job was made at `since` or later, or the service does not say when."""
    return job.created_at is None or job.created_at >= since


def is_ours(job: FineTune, request: FineTuneRequest, since: float | None) -> bool:
    """Whether a job whose id a create's broken reply named is what was asked for, as far as the service says."""
    return _is_near(job, request, since) and fits(job, request)


def fits(job: FineTune, request: FineTuneRequest) -> bool:
    """Whether a listed job is what `request` asks for, as far as the list says.

    What the request leaves to the service fits anything, and so does what the service does not say.
    """
    return (
        _files_fit(job, request)
        and (request.model is None or job.model in (None, request.model))
        and all(
            getattr(job.hyperparams, name, None) in (None, "auto", value) for name, value in request.given().items()
        )
        and _suffix_fits(job.fine_tuned_model, request.suffix)
    )


def _files_fit(job: FineTune, request: FineTuneRequest) -> bool:
    training, validation = [file.id for file in job.training_files], [file.id for file in job.validation_files]
    if not training and not validation:
        # The list does not say.
        return True
    return training in ([], [request.training_file]) and validation == (
        [request.validation_file] if request.validation_file else []
    )


def _suffix_fits(fine_tuned_model: str | None, suffix: str | None) -> bool:
    """Whether a model's name could hold a suffix; services spell it in their own way, so only what all keep counts."""
    if fine_tuned_model is None or suffix is None:
        return True
    return _letters(suffix) in _letters(fine_tuned_model)


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isascii() and character.isalnum())


def find_file(
    files: Iterable[File], name: str, size: int | None, purpose: str, since: float | None, claimed: Container[str]
) -> File | None:
    """Give the file of a list that an upload made, if there is just one that it can be.

    Args:
        files: The service's list.
        name: The name that was sent.
        size: The bytes that were sent; None where they were not counted to the end.
        purpose: What for.
        since: The service's time when it was first sent, in Unix seconds; None where that is unknown.
        claimed: Ids of files that belong to calls of the session.
    """
    if since is None:
        return None
    found = [
        file
        for file in files
        if file.id not in claimed
        and (file.filename, file.bytes, file.purpose) == (name, size, purpose)
        and file.created_at is not None
        and file.created_at >= since - CLOCK_SLACK
    ]
    return found[0] if len(found) == 1 else None
