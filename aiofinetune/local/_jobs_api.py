"""What ``/fine_tuning/jobs`` reads and shows: the second face of the store's jobs, as pure functions.

Source: OpenAI's API description 2.3.0 (the paths under ``/fine_tuning/jobs``). A status of "paused" is not in it, but
services that can pause jobs show it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from aiofinetune import structuring
from aiofinetune.errors import RequestInvalid
from aiofinetune.local._queue import event_id
from aiofinetune.local._store.attempts import DEFAULT_SEED
from aiofinetune.local._store.jobs import Extras, JobRow
from aiofinetune.local._store.models import Checkpoint
from aiofinetune.models import FineTuneEvent, FineTuneRequest, Status

_PLAIN: Final = ("model", "training_file", "validation_file")
_OTHERS: Final = ("hyperparameters", "integrations", "metadata", "method", "seed", "suffix")
_HYPERPARAMETERS: Final = ("batch_size", "learning_rate_multiplier", "n_epochs")

_MAX_N_EPOCHS: Final = 50
_MAX_BATCH_SIZE: Final = 256
_MAX_SUFFIX: Final = 64
_MAX_SEED: Final = 2**31 - 1
_MAX_KEYS: Final = 16
_MAX_KEY: Final = 64
_MAX_VALUE: Final = 512

_FILTER: Final = re.compile(r"metadata\[(.*)\]", re.DOTALL)

_STATUSES: Final = {Status.PENDING: "queued", Status.RUNNING: "running"}

_FIGURES: Final = {
    "training_loss": "train_loss",
    "training_token_accuracy": "train_mean_token_accuracy",
    # The whole validation file is evaluated each time.
    "validation_loss": "full_valid_loss",
    "validation_token_accuracy": "full_valid_mean_token_accuracy",
}
"""What the columns of a results file are called in the metrics of a checkpoint."""


# Requests


def read_job_request(value: Mapping[str, object]) -> tuple[FineTuneRequest, Extras]:
    """Read a client's JSON object.

    Returns:
        The parameters that the reference has too, and the others.

    Raises:
        RequestInvalid: A parameter is unknown or invalid, or asks for what this server cannot do.
    """
    given = {name: item for name, item in value.items() if item is not None}
    for name in given:
        if name not in (*_PLAIN, *_OTHERS):
            raise RequestInvalid(name, "is not a parameter of this request")
    for name in ("model", "training_file"):
        if name not in given:
            raise RequestInvalid(name, "is required")
    if given.get("integrations"):
        raise RequestInvalid("integrations", "this server reports to no other service; leave it out")
    plain = {name: given[name] for name in _PLAIN if name in given}
    request = structuring.read_request(plain | _read_hyperparameters(given), FineTuneRequest)
    return request, Extras(_read_suffix(given), _read_seed(given), _read_metadata(given))


def _read_hyperparameters(given: Mapping[str, object]) -> dict[str, object]:
    """Return the hyperparameters that are numbers, from ``method`` and from where earlier clients put them."""
    old = _read_numbers(given.get("hyperparameters", {}), "hyperparameters")
    new = _read_numbers(*_supervised(given.get("method")))
    for name in old.keys() & new.keys():
        if old[name] != new[name]:
            raise RequestInvalid(f"hyperparameters.{name}", "differs from the value in method; pass only one of them")
    return old | new


def _supervised(method: object) -> tuple[object, str]:
    """Return the hyperparameters in ``method`` and the path of them."""
    where = "method.supervised.hyperparameters"
    if method is None:
        return {}, where
    given = _object(method, "method")
    kind = given.get("type")
    if kind != "supervised":
        known = {"dpo": "preference training (dpo)", "reinforcement": "reinforcement training"}
        found = known.get(kind, "this method") if isinstance(kind, str) else "a method without a type"
        raise RequestInvalid("method.type", f"this server trains only 'supervised'; it cannot do {found}")
    for name in given.keys() - {"type", "supervised"}:
        raise RequestInvalid(f"method.{name}", "this server trains only 'supervised'; leave it out")
    supervised = _object(given.get("supervised", {}), "method.supervised")
    for name in supervised.keys() - {"hyperparameters"}:
        raise RequestInvalid(f"method.supervised.{name}", "is not a parameter of this request")
    return supervised.get("hyperparameters", {}), where


def _read_numbers(value: object, where: str) -> dict[str, object]:
    given = _object(value, where)
    for name, item in given.items():
        path = f"{where}.{name}"
        if name not in _HYPERPARAMETERS:
            raise RequestInvalid(path, f"is not a parameter of this server; it has {', '.join(_HYPERPARAMETERS)}")
        if item == "auto":
            continue
        if name == "learning_rate_multiplier":
            if type(item) not in (int, float) or not item > 0:  # type: ignore[operator]  # it is a number by then
                raise RequestInvalid(path, "expected 'auto' or a number greater than 0")
            continue
        most = _MAX_N_EPOCHS if name == "n_epochs" else _MAX_BATCH_SIZE
        if not _is_whole(item, 1, most):
            raise RequestInvalid(path, f"expected 'auto' or a whole number from 1 to {most}")
    return {name: item for name, item in given.items() if item != "auto"}


def _object(value: object, where: str) -> dict[str, object]:
    """Return an object without its nulls."""
    if not isinstance(value, dict):
        raise RequestInvalid(where, "expected an object")
    return {name: item for name, item in value.items() if item is not None}


def _read_suffix(given: Mapping[str, object]) -> str | None:
    suffix = given.get("suffix")
    if suffix is not None and not (isinstance(suffix, str) and 1 <= len(suffix) <= _MAX_SUFFIX):
        raise RequestInvalid("suffix", f"expected 1 to {_MAX_SUFFIX} characters")
    return suffix


def _read_seed(given: Mapping[str, object]) -> int | None:
    seed = given.get("seed")
    if seed is not None and not _is_whole(seed, 0, _MAX_SEED):
        raise RequestInvalid("seed", f"expected a whole number from 0 to {_MAX_SEED}")
    return seed  # type: ignore[return-value]  # checked above


def _is_whole(value: object, least: int, most: int) -> bool:
    # True is an int in Python, but not in JSON.
    return type(value) is int and least <= value <= most


def _read_metadata(given: Mapping[str, object]) -> dict[str, str] | None:
    metadata = given.get("metadata")
    if metadata is None:
        return None
    if not isinstance(metadata, dict) or len(metadata) > _MAX_KEYS:
        raise RequestInvalid("metadata", f"expected an object of at most {_MAX_KEYS} keys")
    for key, value in metadata.items():
        if not 1 <= len(key) <= _MAX_KEY:
            raise RequestInvalid("metadata", f"expected keys of 1 to {_MAX_KEY} characters")
        if not isinstance(value, str) or len(value) > _MAX_VALUE:
            raise RequestInvalid(f"metadata.{key}", f"expected a string of at most {_MAX_VALUE} characters")
    return metadata


@attrs.frozen
class MetadataFilter:
    """Which jobs a list contains."""

    items: Mapping[str, str]
    """The keys and values that the metadata of a job must contain."""
    is_null: bool
    """Whether only jobs without metadata are asked for."""


def read_metadata_filter(query: Mapping[str, str]) -> MetadataFilter:
    """Read the filter of a list: ``metadata[key]=value`` for each key, or ``metadata=null``.

    Raises:
        RequestInvalid: ``metadata`` has another form.
    """
    items = {match[1]: value for name, value in query.items() if (match := _FILTER.fullmatch(name))}
    plain = query.get("metadata")
    if plain not in (None, "null") or (plain and items):
        raise RequestInvalid("metadata", "expected metadata[key]=value for each key, or metadata=null alone")
    return MetadataFilter(items, plain is not None)


# Replies


def show_job(row: JobRow) -> dict[str, object]:
    """Return a job as a JSON object."""
    job = row.job
    hyperparameters = {name: getattr(job.hyperparams, name) for name in _HYPERPARAMETERS}
    return {
        "object": "fine_tuning.job",
        "id": job.id,
        "model": job.model,
        "created_at": job.created_at,
        "finished_at": job.updated_at if job.is_terminal else None,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": job.organization_id,
        "result_files": [file.id for file in job.result_files],
        "status": _status(row),
        "validation_file": job.validation_files[0].id if job.validation_files else None,
        "training_file": job.training_files[0].id,
        "hyperparameters": hyperparameters,
        "trained_tokens": row.trained_tokens,
        "error": _error(row),
        "user_provided_suffix": row.suffix,
        "seed": DEFAULT_SEED if row.seed is None else row.seed,
        "estimated_finish": row.estimated_finish,
        "integrations": [],
        "metadata": row.metadata,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }


def _status(row: JobRow) -> str:
    if row.is_paused:
        return "paused"
    if row.job.status == Status.RUNNING and not row.is_validated:
        return "validating_files"
    return _STATUSES.get(row.job.status, row.job.status)


def _error(row: JobRow) -> dict[str, object] | None:
    if row.job.status != Status.FAILED:
        return None
    code = f"invalid_{row.failed_param}" if row.failed_param else "training_failed"
    return {"code": code, "message": row.failure or "The job failed", "param": row.failed_param}


def show_event(job_id: str, position: int, event: FineTuneEvent) -> dict[str, object]:
    """Return an event of a job as a JSON object."""
    return {
        "object": "fine_tuning.job.event",
        "id": event_id(job_id, position),
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": "message",
        "data": {},
    }


def show_checkpoint(job_id: str, checkpoint: Checkpoint) -> dict[str, object]:
    """Return a checkpoint of a job as a JSON object."""
    figures = {_FIGURES[name]: figure for name, figure in checkpoint.metrics.items() if name in _FIGURES}
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": checkpoint.id,
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": checkpoint.model,
        "fine_tuning_job_id": job_id,
        "metrics": {"step": checkpoint.step, **figures},
        "step_number": checkpoint.step,
    }


def show_page(items: Sequence[Mapping[str, object]], limit: int) -> dict[str, object]:
    """Return a page of a list as a JSON object.

    Args:
        items: The items from the first one of the page on; one more than `limit` if there are further ones.
        limit: The most items on the page.
    """
    shown = items[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > limit,
    }
