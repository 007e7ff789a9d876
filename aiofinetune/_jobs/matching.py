"""Find the job or file in a service's list that a call made before its reply was lost. Pure functions, no I/O.

No service is known to honour an idempotency key, so after a lost reply the service's list is the only evidence.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Final, NamedTuple

from aiofinetune.models import File, FineTune, FineTuneRequest

CLOCK_SLACK: Final = 5.0
"""The number of seconds by which a service's own clocks may differ: the one that dates replies and the one that dates
jobs. The client's clock is not compared with them."""


class Verdict(NamedTuple):
    """What the service's list says about a create whose reply was lost.

    If both are empty, the list holds no job of the create.

    Args:
        job: The job that the create made.
        unclear: Jobs that the create may have made.
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
    """Return the job of a list that a create made, if the list shows which one it is.

    Args:
        jobs: The service's list.
        request: The request of the create.
        since: The service's time when the request was first sent, in Unix seconds; None if unknown.
        lost: Every request of the session whose reply was lost and whose job is not found yet, including `request`.
        claimed: The ids of jobs that belong to calls of the session.
        astray: The number of seconds by which `since` may be too late.
    """
    others = [job for job in jobs if job.id not in claimed]
    near = sorted((job for job in others if _is_near(job, request, since)), key=lambda job: job.created_at or 0)
    fitting = [job for job in near if fits(job, request)]
    if fitting:
        equal = sum(other == request for other in lost)
        is_contested = any(other != request and fits(job, other) for other in lost for job in fitting)
        # A job that fits only because the list leaves out its file or its time is no proof.
        plain = [job for job in fitting if job.training_files and job.created_at is not None]
        if plain and since is not None and not is_contested and len(fitting) <= equal:
            # Equal requests are interchangeable: if there are no more jobs than lost requests, each may take one.
            return Verdict(job=plain[0])
        return Verdict(unclear=tuple(fitting))
    # A service may change a parameter, so a job that no lost request explains may still be this one.
    unclear = [job for job in near if not any(fits(job, other) for other in lost)]
    if since is not None:
        # This machine's clock may have been set: a job that fits, but seems too old, may still be this one.
        unclear += [job for job in others if _is_since(job, since - astray) and fits(job, request)]
    return Verdict(unclear=tuple(unclear))


def _is_near(job: FineTune, request: FineTuneRequest, since: float | None) -> bool:
    files = {file.id for file in job.training_files}
    return (since is None or _is_since(job, since - CLOCK_SLACK)) and (not files or request.training_file in files)


def _is_since(job: FineTune, since: float) -> bool:
    """Return whether a job was made at `since` or later; also True if the service does not say when."""
    return job.created_at is None or job.created_at >= since


def is_ours(job: FineTune, request: FineTuneRequest, since: float | None) -> bool:
    """Return whether a job that a broken reply to a create named matches the request, as far as the service says."""
    return _is_near(job, request, since) and fits(job, request)


def fits(job: FineTune, request: FineTuneRequest) -> bool:
    """Return whether a job matches `request`, as far as the list says.

    A parameter that the request leaves to the service matches any value, and so does a field that the list leaves out.
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
        # Some lists leave out the files.
        return True
    return training in ([], [request.training_file]) and validation == (
        [request.validation_file] if request.validation_file else []
    )


def _suffix_fits(fine_tuned_model: str | None, suffix: str | None) -> bool:
    """Return whether a model's name may contain a suffix.

    Services change the spelling of a suffix, so only its letters and digits are compared.
    """
    if fine_tuned_model is None or suffix is None:
        return True
    return _letters(suffix) in _letters(fine_tuned_model)


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isascii() and character.isalnum())


def find_file(
    files: Iterable[File], name: str, size: int | None, purpose: str, since: float | None, claimed: Container[str]
) -> File | None:
    """Return the file of a list that an upload made, if exactly one file matches.

    Args:
        files: The service's list.
        name: The name that was sent.
        size: The number of bytes that were sent; None if it is unknown.
        purpose: The purpose that was sent.
        since: The service's time when the upload was first sent, in Unix seconds; None if unknown.
        claimed: The ids of files that belong to calls of the session.
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
