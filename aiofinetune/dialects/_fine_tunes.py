"""The endpoints as data, and the pure functions that build a request and read its reply. No I/O.

Source of every path and shape: the API reference's fine-tunes, files, models and completions pages, in their last
published form (https://github.com/openai/openai-openapi, version 2.0.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from aiofinetune import structuring
from aiofinetune.dialects._error_replies import error_of, error_words, error_words_of_success, printable
from aiofinetune.dialects._requests import Endpoint, Reply
from aiofinetune.errors import (
    APIError,
    FineTuneError,
    NotFound,
    ProtocolViolation,
)
from aiofinetune.models import Deleted, File, FineTune, FineTuneEvent, Listing, Model, Rows

T = TypeVar("T")


DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"


HEADERS: Final[Mapping[str, str]] = {"Accept": "application/json", "Accept-Encoding": "gzip, deflate"}
"""Of every request that does not say otherwise."""


STREAM_HEADERS: Final[Mapping[str, str]] = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
"""Of an event stream: a compressed one comes in lumps."""


CREATE_FINE_TUNE = Endpoint("POST", "/fine-tunes", FineTune, idempotent=False)


LIST_FINE_TUNES = Endpoint("GET", "/fine-tunes", Listing[FineTune])


LIST_FINE_TUNE_ROWS = Endpoint("GET", "/fine-tunes", Rows)


RETRIEVE_FINE_TUNE = Endpoint("GET", "/fine-tunes/{}", FineTune)


CANCEL_FINE_TUNE = Endpoint("POST", "/fine-tunes/{}/cancel", FineTune)


LIST_FINE_TUNE_EVENTS = Endpoint("GET", "/fine-tunes/{}/events", Listing[FineTuneEvent])


STREAM_FINE_TUNE_EVENTS = Endpoint("GET", "/fine-tunes/{}/events?stream=true", FineTuneEvent)


LIST_MODELS = Endpoint("GET", "/models", Listing[Model])


RETRIEVE_MODEL = Endpoint("GET", "/models/{}", Model)


DELETE_MODEL = Endpoint("DELETE", "/models/{}", Deleted)


UPLOAD_FILE = Endpoint("POST", "/files", File, idempotent=False)


LIST_FILES = Endpoint("GET", "/files", Listing[File])


RETRIEVE_FILE = Endpoint("GET", "/files/{}", File)


DOWNLOAD_FILE = Endpoint("GET", "/files/{}/content", bytes)


DELETE_FILE = Endpoint("DELETE", "/files/{}", Deleted)


def decode(endpoint: Endpoint[T], reply: Reply, noted: structuring.Noted | None = None) -> T:
    """Read the reply of a call.

    Args:
        endpoint: What was called.
        reply: What came.
        noted: Is called with each field that was read as absent since it does not fit.

    Raises:
        APIError: The service answered with an error.
        ProtocolViolation: It answered with something that is neither an error nor what the endpoint promises.
    """
    if not 200 <= reply.status < 300:
        raise error_of(reply)
    try:
        result = structuring.read_reply(reply.body, endpoint.result, noted)
    except ProtocolViolation as violation:
        _check_for_error(reply, violation)
        raise
    if isinstance(result, Listing) and not result.data:
        # Where `data` may be missing, an error looks like an empty list.
        _check_for_error(reply)
    return result


def _check_for_error(reply: Reply, violation: ProtocolViolation | None = None) -> None:
    """Raise what a body that came with a success says went wrong.

    Not as an `APIError`: by its status the request was accepted, and may have had its effect.
    """
    words = error_words_of_success(reply.body)
    if words is not None:
        message = f"the service answered {reply.status}, but with an error: {words.message}"
        raise ProtocolViolation(message) from violation


def decode_deleted(reply: Reply, name: str) -> Deleted:
    """Read the reply to a DELETE: any success is one, whatever its body, unless that denies it.

    Services answer 204 without a body, ``{}``, ``null`` or the object that was deleted (RFC 9110, section 9.3.5).

    Raises:
        APIError: The service answered with an error, or with ``"deleted": false``.
        ProtocolViolation: With an error in the body of a success, or a page answered in its place.
    """
    if not 200 <= reply.status < 300:
        raise error_of(reply)
    try:
        value = structuring.read_json(reply.body)
    except ProtocolViolation:
        if reply.body.lstrip().startswith(b"<"):
            # A proxy's page, such as one to sign in.
            raise
        value = None
    if not isinstance(value, dict):
        return Deleted(name, deleted=True)
    if "deleted" in value and value["deleted"] in (False, "false"):
        message = words.message if (words := error_words(reply.body)) else f"the service did not delete {name}"
        raise APIError(reply.status, message, request_id=printable(reply.headers.get("x-request-id")))
    if value.get("deleted") is not True:
        _check_for_error(reply)
    given = {key: text for key in ("id", "object") if isinstance(text := value.get(key), str)}
    return Deleted(given.get("id") or name, deleted=True, object=given.get("object", ""))


def unreadable(reply: Reply, failure: FineTuneError) -> FineTuneError:
    """What is wrong with the reply to an accepted create that names no job: the service's words where it has any.

    Args:
        reply: The reply, as far as it came.
        failure: What kept it from being read.
    """
    words = error_words_of_success(reply.body)
    if words is not None:
        return APIError(reply.status, *words)
    kind = reply.headers.get("content-type", "").lower()
    if "html" in kind or reply.body[:200].lstrip().lower().startswith((b"<!doctype", b"<html")):
        page = structuring.excerpt(reply.body)
        return ProtocolViolation(f"status {reply.status} with an HTML page, so a proxy may have answered: {page}")
    if not reply.body and isinstance(failure, ProtocolViolation):
        return ProtocolViolation(f"status {reply.status} with an empty body")
    return failure


def explained(error: NotFound, endpoint: Endpoint[T]) -> NotFound:
    """What a 404 of the reference's own service means, where it is the one that retired the endpoint."""
    if not endpoint.path.startswith("/fine-tunes"):
        return error
    message = (
        f"{error.message}. api.openai.com retired the fine-tunes API on 2024-01-04: set base_url (OPENAI_BASE_URL) to a"
        " service that still speaks it, or run the embedded server ('aiofinetune serve')"
    )
    return NotFound(error.status, message, *error.args[2:])
