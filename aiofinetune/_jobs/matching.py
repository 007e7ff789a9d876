"""Find the job or file in a service's list that a call made before its reply was lost. Pure functions, no I/O.

No service is known to honour an idempotency key, so after a lost reply the service's list is the only evidence. Where
jobs have metadata, each attempt carries a random key there, and the job that shows it is the attempt's. Some gateways
drop metadata, so a job without a key may be anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from aiofinetune.dialects._dialect import KEY_NAME
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
    key: str | None = None,
    *,
    has_echoed: bool = False,
) -> Verdict:
    """Return the job of a list that a create made, if the list shows which one it is.

    Args:
        jobs: The service's list.
        request: The request of the create.
        since: The service's time when the request was first sent, in Unix seconds; None if unknown.
        lost: Every request of the session whose reply was lost and whose job is not found yet, including `request`.
        claimed: The ids of jobs that belong to calls of the session.
        astray: The number of seconds by which `since` may be too late.
        key: The key that the create carried; None if it carried none.
        has_echoed: Whether the list has shown the key of a job that was made through this base URL.
    """
    jobs = tuple(jobs)
    keyed = tuple(job for job in jobs if key is not None and key_of(job) == key)
    if len(keyed) == 1 and keyed[0].id not in claimed:
        return Verdict(job=keyed[0])
    if keyed:
        return Verdict(unclear=keyed)
    others = [job for job in jobs if job.id not in claimed and not is_anothers(job, request, key)]
    if key is not None and has_echoed:
        # The job of this create would show its key, so one that does not fit is not it, and none is taken for it. Yet
        # something may have begun to drop metadata, so one that fits keeps the create from being sent again.
        since = None if since is None else min(since, since - astray + CLOCK_SLACK)
        return Verdict(unclear=tuple(job for job in others if is_ours(job, request, since)))
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


def has_metadata(job: FineTune, metadata: Mapping[str, str]) -> bool:
    """Return whether a job shows all of some metadata."""
    return metadata.items() <= (job.metadata or {}).items()


def key_of(job: FineTune) -> str | None:
    """Return the key that a job shows; None if it shows none."""
    return None if job.metadata is None else job.metadata.get(KEY_NAME)


_KEY: Final = re.compile("[0-9a-f]{32}")
"""The form of the keys that creates carry."""


def shows_key(job: FineTune) -> bool:
    """Return whether a job shows the key of a create as it was sent. A gateway may cut it, or change its case."""
    return _KEY.fullmatch(key_of(job) or "") is not None


def is_anothers(job: FineTune, request: FineTuneRequest, key: str | None) -> bool:
    """Return whether a job shows the key of another create. A text that is no key may be this one's, changed."""
    if job.metadata is None:
        return False
    own = key if key is not None else (request.metadata or {}).get(KEY_NAME)
    return shows_key(job) and key_of(job) != own


def _is_near(job: FineTune, request: FineTuneRequest, since: float | None) -> bool:
    files = {file.id for file in job.training_files}
    return (since is None or _is_since(job, since - CLOCK_SLACK)) and (not files or request.training_file in files)


def _is_since(job: FineTune, since: float) -> bool:
    """Return whether a job was made at `since` or later; also True if the service does not say when."""
    return job.created_at is None or job.created_at >= since


def is_ours(job: FineTune, request: FineTuneRequest, since: float | None, key: str | None = None) -> bool:
    """Return whether a job that a broken reply to a create named matches the request, as far as the service says."""
    if key is not None and key_of(job) == key:
        return True
    return not is_anothers(job, request, key) and _is_near(job, request, since) and fits(job, request)


def fits(job: FineTune, request: FineTuneRequest) -> bool:
    """Return whether a job matches `request`, as far as the list says.

    A parameter that the request leaves to the service matches any value, and so does a field that the list leaves out.
    """
    return (
        _files_fit(job, request)
        and _model_fits(job.model, request.model)
        and all(
            value in _LEFT_TO_SERVICE or getattr(job.hyperparams, name, None) in (None, *_LEFT_TO_SERVICE, value)
            for name, value in request.given().items()
        )
        and _suffix_fits(job, request.suffix)
        and (None in (job.seed, request.seed) or job.seed == request.seed)
        and (job.method is None or request.method is None or job.method.type == request.method.type)
        and (job.metadata is None or has_metadata(job, request.metadata or {}))
    )


_LEFT_TO_SERVICE: Final = ("auto", "max")
"""The words in place of a value that the service chooses."""
_SNAPSHOT: Final = r"-\d{4}(-\d{2}-\d{2})?"
"""What a service adds to a model's name: the date of the version that it chose."""


def _model_fits(model: str | None, asked: str | None) -> bool:
    if model is None or asked is None or model == asked:
        return True
    return model.startswith(asked) and re.fullmatch(_SNAPSHOT, model[len(asked) :]) is not None


def _files_fit(job: FineTune, request: FineTuneRequest) -> bool:
    training, validation = [file.id for file in job.training_files], [file.id for file in job.validation_files]
    if not training and not validation:
        # Some lists leave out the files.
        return True
    return training in ([], [request.training_file]) and validation == (
        [request.validation_file] if request.validation_file else []
    )


def _suffix_fits(job: FineTune, suffix: str | None) -> bool:
    """Return whether a job may be one with this suffix: it shows this one, or its model's name contains it.

    Services change the spelling of a suffix, so only its letters and digits are compared.
    """
    if job.suffix is not None:
        return job.suffix == (suffix or "") or _letters(job.suffix) == _letters(suffix or "") != ""
    if job.fine_tuned_model is None or suffix is None:
        return True
    return _letters(suffix) in _letters(job.fine_tuned_model)


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


def has_reached(jobs: Sequence[FineTune], before: float) -> bool:
    """Return whether a list that has its newest jobs first has come to jobs that were made before a time.

    The order is not assumed: a list in any other order never has.

    Args:
        jobs: The jobs of the pages that were read so far.
        before: The service's time, in Unix seconds.
    """
    times = [job.created_at for job in jobs if job.created_at is not None]
    return bool(times) and times[-1] < before and times[0] > times[-1] and times == sorted(times, reverse=True)
