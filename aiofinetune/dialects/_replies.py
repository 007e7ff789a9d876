"""Read replies that report a success. Pure functions, no I/O."""

from __future__ import annotations

from typing import TypeVar

from aiofinetune import structuring
from aiofinetune.dialects._error_replies import error_of, error_words, error_words_of_success, printable
from aiofinetune.dialects._requests import Endpoint, Reply
from aiofinetune.errors import APIError, FineTuneError, ProtocolViolation
from aiofinetune.models import Deleted, Listing

T = TypeVar("T")


def decode(endpoint: Endpoint[T], reply: Reply, noted: structuring.Noted | None = None) -> T:
    """Decode the reply to a call.

    Args:
        endpoint: The endpoint that was called.
        reply: The reply.
        noted: Called with each field that is read as absent because its value does not fit.

    Raises:
        APIError: The service answered with an error.
        ProtocolViolation: The reply is neither an error nor what the endpoint promises.
    """
    if not 200 <= reply.status < 300:
        raise error_of(reply)
    try:
        result = structuring.read_reply(reply.body, endpoint.result, noted, endpoint.translate)
    except ProtocolViolation as violation:
        _check_for_error(reply, violation)
        raise
    if isinstance(result, Listing) and not result.data:
        # Because `data` may be missing, an error in a successful reply would pass for an empty list.
        _check_for_error(reply)
    return result


def _check_for_error(reply: Reply, violation: ProtocolViolation | None = None) -> None:
    """Raise the error in the body of a successful reply, if it holds one.

    It is not raised as an `APIError`, because by its status the request was accepted and may have had its effect.
    """
    words = error_words_of_success(reply.body)
    if words is not None:
        message = f"the service answered {reply.status}, but with an error: {words.message}"
        raise ProtocolViolation(message) from violation


def decode_deleted(reply: Reply, name: str) -> Deleted:
    """Decode the reply to a DELETE. A 2xx status means success, unless the body says otherwise.

    Services answer 204 without a body, ``{}``, ``null`` or the object that was deleted (RFC 9110, section 9.3.5).

    Raises:
        APIError: The service answered with an error, or with ``"deleted": false``.
        ProtocolViolation: The body of a successful reply holds an error or a page.
    """
    if not 200 <= reply.status < 300:
        raise error_of(reply)
    try:
        value = structuring.read_json(reply.body)
    except ProtocolViolation:
        if reply.body.lstrip().startswith(b"<"):
            # This is a page of a proxy, for example to sign in.
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
    """Return what is wrong with the reply to an accepted create that names no job.

    Args:
        reply: The received part of the reply.
        failure: The error in reading it, which is returned if the reply does not say more.
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
