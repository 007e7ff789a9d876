"""The API that OpenAI has today, ``/v1/fine_tuning/jobs``, which Azure, Nebius and gateways speak too.

The source of every path and object is OpenAI's own contract (https://github.com/openai/openai-openapi, commit
f85dbe22). Where services that speak it send other forms, the code says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from aiofinetune._other_models import Checkpoint, Upload, UploadPart
from aiofinetune.dialects._dialect import Dialect, Endpoints, Follows, Object, Recognises, Uploads
from aiofinetune.dialects._fine_tunes import DEFAULT_BASE_URL
from aiofinetune.dialects._long_list import has_more
from aiofinetune.dialects._requests import Endpoint
from aiofinetune.models import FineTune, FineTuneEvent, Listing, Rows, Status

_STATUSES: Final[Mapping[str, str]] = {
    "validating_files": Status.PENDING,
    "queued": Status.PENDING,
    # A paused job goes on later, so it has not ended.
    "pausing": Status.PENDING,
    "paused": Status.PENDING,
    "resuming": Status.PENDING,
    # Seen at Azure.
    "created": Status.PENDING,
    "cancelling": Status.RUNNING,
    "canceled": Status.CANCELLED,
}
"""The services' words for a job's status, where they differ from the reference's."""
METHODS: Final[Mapping[str, str]] = MappingProxyType(
    {"supervised": "supervised", "preference": "dpo", "reinforcement": "reinforcement"}
)
_METHOD_OF: Final = {service: ours for ours, service in METHODS.items()}
_HYPERPARAMETERS: Final = ("n_epochs", "batch_size", "learning_rate_multiplier", "learning_rate")
LACKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "prompt_loss_weight": "only the completions, or the assistant's messages, are trained on",
        **dict.fromkeys(
            (
                "compute_classification_metrics",
                "classification_n_classes",
                "classification_positive_class",
                "classification_betas",
            ),
            "the nearest are the losses and token accuracies of the results file",
        ),
        "learning_rate": "the nearest is learning_rate_multiplier, a multiple of the pretraining rate",
    }
)
"""The parameters of the reference that this API does not have, and the nearest that it has."""


def encode(parameters: Object) -> dict[str, object]:
    """Arrange a job's parameters: the hyperparameters are in its method."""
    body = {name: value for name, value in parameters.items() if name not in (*_HYPERPARAMETERS, "method")}
    shared = _only(parameters, *_HYPERPARAMETERS)
    method = parameters.get("method")
    if not isinstance(method, Mapping):
        if not shared:
            return body
        method = {"type": "supervised"}
    name = METHODS[method["type"]]
    own = {**shared, **_object(method.get("hyperparameters"))}
    settings = {**({"hyperparameters": own} if own else {}), **_only(method, "grader")}
    return {**body, "method": {"type": name, **({name: settings} if settings else {})}}


def _object(value: object) -> Object:
    return value if isinstance(value, Mapping) else {}


def _only(values: Object, *names: str) -> dict[str, object]:
    return {name: values[name] for name in names if values.get(name) is not None}


def read_job(value: object) -> object:
    """Put a job into the form of the reference."""
    if not isinstance(value, dict):
        return value
    word, method = value.get("status"), _method(value.get("method"))
    job = {
        **value,
        "training_files": _listed(value.get("training_file")),
        "validation_files": _listed(value.get("validation_file")),
        # The method holds them too, and the older field only of supervised jobs.
        "hyperparams": value.get("hyperparameters") or (method or {}).get("hyperparameters"),
        "error": _failure(value.get("error")),
        "method": method,
        "service_status": None,
    }
    if isinstance(word, str) and word in _STATUSES:
        job |= {"status": _STATUSES[word], "service_status": word}
    return job


def _listed(file: object) -> list[object]:
    return [file] if file else []


def _failure(error: object) -> object:
    """Return an error in the form of the contract; some services send an empty one with a job that has not failed."""
    if isinstance(error, dict):
        return error if error.get("message") or error.get("code") else None
    return {"message": error} if isinstance(error, str) and error else None


def _method(method: object) -> dict[str, object] | None:
    if not isinstance(method, dict) or not isinstance(kind := method.get("type"), str):
        return None
    settings = _object(method.get(kind))
    return {"type": _METHOD_OF.get(kind, kind), **_only(settings, "hyperparameters", "grader")}


def each(translate: Callable[[object], object]) -> Callable[[object], object]:
    """Return a function that puts the rows of a list into the form of the reference."""

    def read_page(value: object) -> object:
        if not isinstance(value, dict) or not isinstance(rows := value.get("data"), list):
            return value
        return {**value, "data": [translate(row) for row in rows], "has_more": has_more(value, len(rows))}

    return read_page


def _unchanged(row: object) -> object:
    return row


def _fits(job: Object) -> bool:
    return job.get("object") == "fine_tuning.job"


_JOBS: Final = "/fine_tuning/jobs"
_EACH: Final = each(_unchanged)


class JobsEndpoints(Endpoints):
    """The endpoints of OpenAI's API."""

    __slots__ = ()

    create_fine_tune = Endpoint("POST", _JOBS, FineTune, idempotent=False, translate=read_job)
    list_fine_tunes = Endpoint("GET", _JOBS, Listing[FineTune], translate=each(read_job), is_paged=True)
    list_rows = Endpoint("GET", _JOBS, Rows, translate=each(read_job), is_paged=True)
    retrieve_fine_tune = Endpoint("GET", _JOBS + "/{}", FineTune, translate=read_job)
    cancel_fine_tune = Endpoint("POST", _JOBS + "/{}/cancel", FineTune, translate=read_job)
    list_fine_tune_events = Endpoint(
        "GET", _JOBS + "/{}/events", Listing[FineTuneEvent], translate=_EACH, is_paged=True
    )
    pause_fine_tune: Endpoint[FineTune] | None = Endpoint("POST", _JOBS + "/{}/pause", FineTune, translate=read_job)
    resume_fine_tune: Endpoint[FineTune] | None = Endpoint("POST", _JOBS + "/{}/resume", FineTune, translate=read_job)
    list_checkpoints = Endpoint("GET", _JOBS + "/{}/checkpoints", Listing[Checkpoint], translate=_EACH, is_paged=True)
    # An upload or a part that was made twice is of no consequence: only the parts that are named at the end count.
    begin_upload = Endpoint("POST", "/uploads", Upload)
    upload_part = Endpoint("POST", "/uploads/{}/parts", UploadPart)
    complete_upload = Endpoint("POST", "/uploads/{}/complete", Upload, idempotent=False)


JOBS: Final = Dialect(
    name="jobs",
    about="OpenAI today, and gateways such as LiteLLM and Portkey",
    base_url=DEFAULT_BASE_URL,
    endpoints=JobsEndpoints(),
    lacks=LACKS,
    methods=METHODS,
    takes_auto=True,
    needs_model=True,
    encode=encode,
    has_pages=True,
    page_size=100,
    newest_first=True,
    uploads=Uploads.PARTS,
    max_form=512 << 20,
    follows=Follows.CURSOR,
    recognises=Recognises.METADATA,
    filters_metadata=True,
    job_object="fine_tuning.job",
    fits=_fits,
    missing=MappingProxyType(
        {
            "completions of the model": "chat models answer at /chat/completions",
            "graders, checkpoint permissions": "the service's own client has them",
        }
    ),
)
