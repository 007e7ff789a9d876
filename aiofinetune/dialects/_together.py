"""Together: jobs under the path of the reference, in a form of their own.

The sources are Together's own API description (https://github.com/togethercomputer/openapi, version 2.0.0) and its
client, together 3.1.1, which goes before the description where the two differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from aiofinetune._other_models import Checkpoint, Metrics, PriceEstimate, Upload
from aiofinetune.dialects._dialect import Dialect, Endpoints, Follows, Object, Uploads
from aiofinetune.dialects._requests import Endpoint
from aiofinetune.models import (
    Deleted,
    File,
    FineTune,
    FineTuneEvent,
    Listing,
    Model,
    Rows,
    Status,
)

if TYPE_CHECKING:
    from aiofinetune.data import Rules

_STATUSES: Final[Mapping[str, str]] = {
    "queued": Status.PENDING,
    # The training is over then, but there is no model yet.
    "compressing": Status.RUNNING,
    "uploading": Status.RUNNING,
    # It may still become "completed".
    "cancel_requested": Status.RUNNING,
    "completed": Status.SUCCEEDED,
    "error": Status.FAILED,
    "user_error": Status.FAILED,
}
"""The service's words for a job's status, where they differ from the reference's."""
_FILE_STATUSES: Final[Mapping[str, str]] = {
    "PENDING": "pending",
    "QUEUED": "pending",
    "RUNNING": "running",
    "COMPLETED": "processed",
    "FAILED": "error",
    "INVALID_FORMAT": "error",
}
_METHODS: Final[Mapping[str, str]] = MappingProxyType({"supervised": "sft", "preference": "dpo"})
_METHOD_OF: Final = {service: ours for ours, service in _METHODS.items()}
_NANODOLLARS: Final = 1e9
"""The number of the units in which a job says its price that make a dollar. The client's command line says so."""
_FIGURES: Final[Mapping[str, str]] = {
    "train/loss": "training_loss",
    "train/token_accuracy": "training_token_accuracy",
    "eval/loss": "validation_loss",
    "eval/token_accuracy": "validation_token_accuracy",
}
"""The figures that the reference has too, by the service's names. Its description names the first one only."""
_STEPS: Final = ("train/global_step", "eval/global_step", "global_step", "step")
"""The names of the step that the figures belong to, the description's own first."""

LACKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "learning_rate_multiplier": (
            "the nearest is learning_rate, the rate itself: the service does not say what a multiple would be of"
        ),
        "prompt_loss_weight": (
            "the nearest is train_on_inputs, whether prompts count as much as completions or not at all:"
            " method=Method('supervised', {'train_on_inputs': False})"
        ),
        **dict.fromkeys(
            (
                "compute_classification_metrics",
                "classification_n_classes",
                "classification_positive_class",
                "classification_betas",
            ),
            "the nearest are the losses of results()",
        ),
        "metadata": "the nearest is suffix, a text in the tuned model's name",
    }
)
"""The parameters of the reference that this API does not have, and the nearest that it has."""


# Requests


def encode(parameters: Object) -> dict[str, object]:
    """Arrange a job's parameters: the seed and the method have other names."""
    body = {name: value for name, value in parameters.items() if name not in ("seed", "method")}
    if "seed" in parameters:
        body["random_seed"] = parameters["seed"]
    if isinstance(method := parameters.get("method"), Mapping):
        name = _METHODS[method["type"]]
        # Supervised training must say this; "auto" is what the service does by default.
        required = {"train_on_inputs": "auto"} if name == "sft" else {}
        body["training_method"] = {"method": name, **required, **(method.get("hyperparameters") or {})}
    return body


# Replies


def read_job(value: object) -> object:
    """Put a job into the form of the reference."""
    if not isinstance(value, dict):
        return value
    word, events = value.get("status"), _events(value.get("events"))
    status = _STATUSES.get(word, word) if isinstance(word, str) else word
    progress, price, method = value.get("progress"), value.get("total_price"), value.get("training_method")
    return {
        **value,
        "status": status,
        "service_status": word if status != word else None,
        # The name is chosen when the job is made, but there is no model of it before the job succeeds.
        "fine_tuned_model": value.get("model_output_name") if status == Status.SUCCEEDED else None,
        "training_files": _listed(value.get("training_file")),
        "validation_files": _listed(value.get("validation_file")),
        "hyperparams": {name: value.get(name) for name in ("n_epochs", "batch_size", "learning_rate")},
        "trained_tokens": value.get("token_count"),
        "seed": value.get("random_seed"),
        "suffix": value.get("suffix"),
        "method": _method(method),
        "price": price / _NANODOLLARS if isinstance(price, int | float) else None,
        "seconds_remaining": _seconds_remaining(progress),
        "events": events,
        "error": _failure(events) if status == Status.FAILED else None,
        "metadata": None,
    }


def _listed(file: object) -> list[object]:
    return [file] if file else []


def _method(method: object) -> dict[str, object] | None:
    if not isinstance(method, dict) or not isinstance(kind := method.get("method"), str):
        return None
    rest = {name: value for name, value in method.items() if name != "method" and value is not None}
    return {"type": _METHOD_OF.get(kind, kind), "hyperparameters": rest or None}


def _seconds_remaining(progress: object) -> object:
    if not isinstance(progress, dict) or progress.get("estimate_available") is not True:
        return None
    seconds = progress.get("seconds_remaining")
    return round(seconds) if isinstance(seconds, float) and abs(seconds) < 1e15 else seconds


def _failure(events: object) -> dict[str, object] | None:
    """Return why a job failed, which only its events say."""
    for event in reversed(events if isinstance(events, list) else []):
        if isinstance(event, dict) and str(event.get("type")).lower() in ("job_error", "job_user_error"):
            return {"message": event.get("message"), "code": str(event["type"]).lower()}
    return None


def _events(events: object) -> object:
    """Put events into the form of the reference, and into the order in which they happened."""
    if not isinstance(events, list):
        return events
    read = [_event(event) for event in events]
    # No document says the order of a list. Here the times still have their milliseconds.
    times = [event.get("created_at") for event in read if isinstance(event, dict)]
    if len(times) > 1 and _is_later(times[0], times[-1]):
        read.reverse()
    return read


def _event(event: object) -> object:
    if not isinstance(event, dict):
        return event
    level = str(event.get("level") or "info").lower()
    # The older levels are "legacy_info", "legacy_iwarning" and "legacy_ierror".
    known = next((word for word in ("warning", "error", "info") if level.endswith(word)), level)
    # An event may have no message, but it always has a type.
    message = event.get("message") or event.get("type")
    return {**event, "level": known, "message": message, "id": None}


def _is_later(one: object, other: object) -> bool:
    try:
        return datetime.fromisoformat(str(one)) > datetime.fromisoformat(str(other))
    except (ValueError, TypeError):
        return False


def read_events(value: object) -> object:
    """Put a list of events into the form of the reference."""
    return {**value, "data": _events(value.get("data"))} if isinstance(value, dict) else value


def _each(translate: Callable[[object], object]) -> Callable[[object], object]:
    """Return a function that puts the rows of a list into the form of the reference; a list is whole here."""

    def read_list(value: object) -> object:
        if not isinstance(value, dict) or not isinstance(rows := value.get("data"), list):
            return value
        return {**value, "data": [translate(row) for row in rows]}

    return read_list


def read_file(value: object) -> object:
    """Put a file into the form of the reference, with the report of what the service found in it."""
    if not isinstance(value, dict):
        return value
    word = value.get("processing_status")
    if word is None and value.get("Processed") is True:
        # The description has this flag only, which the client does not know.
        word = "COMPLETED"
    status = _FILE_STATUSES.get(word, word.lower()) if isinstance(word, str) else None
    return {**value, "status": status, "status_details": _report(word, value.get("validation_report"))}


def _report(word: object, report: object) -> str | None:
    if not isinstance(report, dict):
        return None
    error = report.get("error")
    if report.get("valid") is False or error:
        return f"{report.get('error_type') or word}: {error or 'the service does not say why'}"
    found = [f"{report['nlines']} lines"] if isinstance(report.get("nlines"), int) else []
    if isinstance(kind := report.get("dataset_format"), str):
        found.append(kind.lower())
    return ", ".join(found) or None


def read_checkpoint(value: object) -> object:
    """Put a checkpoint into the form of OpenAI's."""
    if not isinstance(value, dict):
        return value
    step, path = value.get("step"), value.get("path")
    name = value.get("object_id") or path or (f"step-{step}" if isinstance(step, int) else None)
    return {
        "id": name,
        "created_at": value.get("created_at"),
        "fine_tuned_model_checkpoint": value.get("object_name") or path,
        "step_number": step,
    }


def read_metrics(value: object) -> object:
    """Put the figures of a job under the reference's names."""
    rows = value.get("metrics") if isinstance(value, dict) else None
    return {"rows": [_figures(row) for row in rows]} if isinstance(rows, list) else value


def _figures(row: object) -> object:
    if not isinstance(row, dict):
        return row
    step = next((name for name in _STEPS if name in row), None)
    named = {_FIGURES.get(name, name): figure for name, figure in row.items() if name != step}
    return named if step is None else {"step": row[step], **named}


def read_models(value: object) -> object:
    """Put the list of models into the form of the reference: here it is the whole reply."""
    return {"data": value} if isinstance(value, list) else value


def read_estimate(value: object) -> object:
    """Put a price estimate into a form with plain names."""
    if not isinstance(value, dict):
        return value
    return {
        "price": value.get("estimated_total_price"),
        "is_allowed": value.get("allowed_to_proceed"),
        "limit": value.get("user_limit"),
        "training_tokens": value.get("estimated_train_token_count"),
        "validation_tokens": value.get("estimated_eval_token_count"),
        "reason": value.get("unavailable_reason"),
    }


def read_upload(value: object) -> object:
    """Put a multipart upload into the form of OpenAI's uploads."""
    if not isinstance(value, dict):
        return value
    parts = value.get("parts")
    return {
        "id": value.get("upload_id"),
        "status": "pending",
        "file_id": value.get("file_id"),
        "targets": [_target(part) for part in parts] if isinstance(parts, list) else None,
    }


def _target(part: object) -> object:
    """Return where to put a part. The client takes two names of each field."""
    if not isinstance(part, dict):
        return part
    return {
        "number": part.get("PartNumber", part.get("part_number")),
        "url": part.get("URL", part.get("UploadURL")),
        "headers": part.get("Headers"),
    }


def read_completed(value: object) -> object:
    """Put a complete multipart upload into the form of OpenAI's uploads: the reply is the file, or holds it."""
    if not isinstance(value, dict):
        return value
    file = value.get("file", value)
    name = file.get("id") if isinstance(file, dict) else None
    return {"id": name, "status": "completed", "file": read_file(file)}


def _fits(job: Object) -> bool:
    names = ("model_output_name", "training_type", "training_method", "n_checkpoints", "owner_address")
    is_others = "object" in job or "hyperparams" in job or "hyperparameters" in job
    has_file = isinstance(job.get("training_file"), str) and (
        "n_epochs" in job or isinstance(job.get("created_at"), str)
    )
    return not is_others and "id" in job and (has_file or any(name in job for name in names))


def _rules() -> Rules:
    from aiofinetune.data import TOGETHER as rules  # noqa: N811, PLC0415  # a twentieth of the import time

    return rules


_JOBS: Final = "/fine-tunes"


class _Endpoints(Endpoints):
    __slots__ = ()

    create_fine_tune = Endpoint("POST", _JOBS, FineTune, idempotent=False, translate=read_job)
    list_fine_tunes = Endpoint("GET", _JOBS, Listing[FineTune], translate=_each(read_job))
    list_rows = Endpoint("GET", _JOBS, Rows, translate=_each(read_job))
    retrieve_fine_tune = Endpoint("GET", _JOBS + "/{}", FineTune, translate=read_job)
    cancel_fine_tune = Endpoint("POST", _JOBS + "/{}/cancel", FineTune, translate=read_job)
    list_fine_tune_events = Endpoint("GET", _JOBS + "/{}/events", Listing[FineTuneEvent], translate=read_events)
    list_checkpoints = Endpoint("GET", _JOBS + "/{}/checkpoints", Listing[Checkpoint], translate=_each(read_checkpoint))
    list_metrics = Endpoint("GET", _JOBS + "/{}/metrics", Metrics, translate=read_metrics)
    delete_fine_tune = Endpoint("DELETE", _JOBS + "/{}", Deleted)
    estimate_price = Endpoint("POST", _JOBS + "/estimate-price", PriceEstimate, translate=read_estimate)
    list_models = Endpoint("GET", "/models", Listing[Model], translate=read_models)
    # Idempotent: what is begun twice holds nothing until its content is put.
    upload_file = Endpoint("POST", "/files", File, translate=read_file)
    list_files = Endpoint("GET", "/files", Listing[File], translate=_each(read_file))
    retrieve_file = Endpoint("GET", "/files/{}", File, translate=read_file)
    process_file = Endpoint("POST", "/files/{}/preprocess", File, translate=read_file)
    begin_upload = Endpoint("POST", "/files/multipart/initiate", Upload, translate=read_upload)
    complete_upload = Endpoint("POST", "/files/multipart/complete", Upload, translate=read_completed)
    abort_upload = Endpoint("POST", "/files/multipart/abort", Upload)


TOGETHER: Final = Dialect(
    name="together",
    about="Together AI",
    base_url="https://api.together.ai/v1",
    hosts=("api.together.ai", "api.together.xyz"),
    endpoints=_Endpoints(),
    lacks=LACKS,
    methods=_METHODS,
    takes_max=True,
    needs_model=True,
    instead_of_model="from_checkpoint",
    acts_with=MappingProxyType({"validation_file": "n_evals"}),
    max_suffix=40,
    encode=encode,
    priced=(
        *("training_file", "validation_file", "model", "n_epochs", "n_evals"),
        *("training_method", "training_type", "from_checkpoint"),
    ),
    uploads=Uploads.PRESIGNED,
    max_form=5 << 30,
    part_size=250 << 20,
    max_file=int(50.1 * (1 << 30)),
    file_header="X-Together-File-Id",
    filters_files=False,
    follows=Follows.LIST,
    fits=_fits,
    rules=_rules,
    missing=MappingProxyType(
        {
            "weights of the model": "GET /finetune/download",
            "completions of the model": "it is deployed first, by another API of Together's",
        }
    ),
)
