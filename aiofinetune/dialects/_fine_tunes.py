"""The reference: the fine-tunes API, ``/v1/fine-tunes``, as data and pure functions.

The source of every path and object is the API reference: its pages on fine-tunes, files, models and completions, in
their last published form (https://github.com/openai/openai-openapi, version 2.0.0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiofinetune.dialects._dialect import Dialect, Endpoints, Object
from aiofinetune.dialects._requests import Endpoint
from aiofinetune.errors import APIError, NotFound
from aiofinetune.models import FineTune, FineTuneEvent, Listing, Rows

if TYPE_CHECKING:
    from aiofinetune.data import Rules

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"


def _explain(error: APIError, endpoint: Endpoint[Any]) -> APIError:
    """Return a 404 of the reference's own service with advice, if the service has retired the endpoint."""
    if not isinstance(error, NotFound) or not endpoint.path.startswith("/fine-tunes"):
        return error
    message = (
        f"{error.message}. api.openai.com retired the fine-tunes API on 2024-01-04: set base_url (OPENAI_BASE_URL) to a"
        " service that still has it, run the embedded server ('aiofinetune serve'), or pass dialect=\"jobs\""
        " (AIOFINETUNE_DIALECT=jobs) for the API that replaced it, /v1/fine_tuning/jobs"
    )
    return NotFound(error.status, message, *error.args[2:])


def _fits(job: Object) -> bool:
    return job.get("object") == "fine-tune" or "hyperparams" in job


def _rules() -> Rules:
    from aiofinetune.data import FINE_TUNES as rules  # noqa: N811, PLC0415  # a twentieth of the import time

    return rules


class _Endpoints(Endpoints):
    __slots__ = ()

    create_fine_tune = Endpoint("POST", "/fine-tunes", FineTune, idempotent=False)
    list_fine_tunes = Endpoint("GET", "/fine-tunes", Listing[FineTune])
    list_rows = Endpoint("GET", "/fine-tunes", Rows)
    retrieve_fine_tune = Endpoint("GET", "/fine-tunes/{}", FineTune)
    cancel_fine_tune = Endpoint("POST", "/fine-tunes/{}/cancel", FineTune)
    list_fine_tune_events = Endpoint("GET", "/fine-tunes/{}/events", Listing[FineTuneEvent])
    stream_fine_tune_events = Endpoint("GET", "/fine-tunes/{}/events?stream=true", FineTuneEvent)


FINE_TUNES: Final = Dialect(
    name="fine-tunes",
    about="the reference: self-hosted services, the embedded server",
    base_url=DEFAULT_BASE_URL,
    endpoints=_Endpoints(),
    lacks={
        "learning_rate": "the nearest is learning_rate_multiplier, a multiple of the pretraining rate",
        "seed": "it has no counterpart",
        "metadata": "the nearest is suffix, a text in the tuned model's name",
        "method": "every job is supervised",
    },
    max_suffix=40,
    fits=_fits,
    explain=_explain,
    rules=_rules,
)
