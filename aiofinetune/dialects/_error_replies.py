"""Read replies that report an error, and choose the exception to raise. No I/O."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from aiofinetune import structuring
from aiofinetune.dialects._requests import Reply
from aiofinetune.errors import (
    APIError,
    AuthenticationFailed,
    BadRequest,
    Conflict,
    NotFound,
    PermissionDenied,
    ProtocolViolation,
    QuotaExceeded,
    RateLimited,
    ServerError,
    TooManyJobs,
)

_ERROR_OF_STATUS: Final[Mapping[int, type[APIError]]] = {
    400: BadRequest,
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    422: BadRequest,
    429: RateLimited,
}


_OF_ANY_SERVER: Final = (404, 405, 501)
"""The statuses with which a server answers that does not know the API's paths or methods. Others with a body that is
not the API's JSON, such as 502, may come from a proxy before the service."""


def error_of(reply: Reply) -> APIError:
    """Return the error for a reply with an error status, whatever its body is."""
    kind = _ERROR_OF_STATUS.get(reply.status, ServerError if reply.status >= 500 else APIError)
    request_id = printable(reply.headers.get("x-request-id"))
    if 300 <= reply.status < 400:
        # Not shortened (aiohttp limits its length): a key that is cut in half would not be recognised and removed.
        location = printable(reply.headers.get("location"))
        why = (
            f"the redirect to {location!r} is not followed, because it leads to another origin (which must not get the"
            " key), changes the method, or answers an upload; if the API is there, set base_url accordingly"
            if location
            else "the redirect does not say where to (it has no Location); check base_url"
        )
        return APIError(reply.status, why, request_id=request_id)
    retry_after = retry_after_of(reply.headers, now=server_time(reply) or time.time())
    words = error_words(reply.body)
    if words is None:
        message = (
            f"the body is not the API's JSON: {structuring.excerpt(reply.body)}" if reply.body else "the body is empty"
        )
        is_foreign = bool(reply.body) and reply.status in _OF_ANY_SERVER
        return kind(reply.status, message, request_id=request_id, retry_after=retry_after, is_foreign=is_foreign)
    if kind is RateLimited:
        kind = _kind_of_limit(*words)
    return kind(reply.status, *words, request_id, retry_after)


def printable(value: str | None) -> str | None:
    """Return a header's text, with question marks for bytes that are not UTF-8.

    aiohttp keeps such bytes as surrogates, which cannot be printed.
    """
    return None if value is None else value.encode(errors="replace").decode()


def _kind_of_limit(message: str, kind: str | None, _param: str | None, code: str | None) -> type[RateLimited]:
    """Return the kind of limit that a 429 reports, judging by the messages of known services.

    An unknown limit counts as throttling.
    """
    names = f"{kind} {code}".lower()
    words = message.lower()
    if "quota" in names or "billing" in names or "daily" in names or "quota" in words or " per day" in words:
        return QuotaExceeded
    is_about_jobs = "job" in words or "fine-tun" in words or "job" in names
    if is_about_jobs and any(word in words for word in ("active", "concurrent", "running", "in progress")):
        return TooManyJobs
    return RateLimited


def server_time(reply: Reply) -> float | None:
    """Return the service's Unix time when it replied (RFC 9110, section 6.6.1); None if the reply does not say."""
    try:
        return email.utils.parsedate_to_datetime(reply.headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):
        return None


class Words(NamedTuple):
    """The fields of an error, each with a limited length."""

    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None


MAX_WORDS: Final = 2000
"""The number of characters that are kept of each field of an error: people read them, and a page would be too long."""


_NESTS: Final = ("error", "detail", "errors")
"""The keys that hold an error in a body: those of the reference, FastAPI and JSON:API."""


_TEXTS: Final = ("title", "message", "msg", "error_description", "description", "reason")
"""The other keys that hold the text of an error: those of RFC 9457, the reference, OAuth (RFC 6749, section 5.2) and
others."""


def error_words(body: bytes) -> Words | None:
    """Return the fields of an error's body, in any form that services use; None if it is not an error's JSON."""
    try:
        value = structuring.read_json(body)
    except ProtocolViolation:
        return None
    if isinstance(value, list):
        # Google's services send the envelope in a list.
        value = next((item for item in value if isinstance(item, dict)), None)
    if not isinstance(value, dict) or all(value.get(name) in (None, "", []) for name in (*_NESTS, *_TEXTS)):
        return None
    return _words_of(value)


def error_words_of_success(body: bytes) -> Words | None:
    """Return the fields of an error in the body of a successful reply; None if the body holds no error.

    Use this only for a body that does not fit its endpoint, because a valid job may hold the error that it failed with.
    """
    try:
        value = structuring.read_json(body)
    except ProtocolViolation:
        return None
    if not isinstance(value, dict) or not (value.get("error") or value.get("object") == "error"):
        return None
    return _words_of(value)


_MAX_NESTING: Final = 5
"""How deep to look for texts: an error's JSON may be nested without limit."""


def _words_of(error: object) -> Words:
    """Read an error that may hold others: join the texts of all, and take the innermost type, param and code."""
    fields: dict[str, str] = {}
    message = "; ".join(dict.fromkeys(_texts_of(error, fields, _MAX_NESTING)))
    return Words(_bounded(message) or "no message", *map(fields.get, ("type", "param", "code")))


def _texts_of(error: object, fields: dict[str, str], depth: int) -> list[str]:
    """Return the texts of an error, the innermost first, and put its type, param and code into `fields`."""
    match error:
        case str():
            return [error] if error.strip() else []
        case bool() | None:
            return []
        case int() | float():
            return [str(error)]
        case list() if depth > 0:
            # The type, param and code of one error among several must not pass for those of all.
            return [text for item in error for text in _texts_of(item, fields if len(error) == 1 else {}, depth - 1)]
        case dict() if depth > 0:
            return _texts_of_object(error, fields, depth)
        case _:
            return [str(error)[:MAX_WORDS]]


def _texts_of_object(error: dict[str, object], fields: dict[str, str], depth: int) -> list[str]:
    texts = [text for name in (*_NESTS, *_TEXTS) for text in _texts_of(error.get(name), fields, depth - 1)]
    for name in ("type", "param", "code"):
        if error.get(name) is not None:
            fields.setdefault(name, _bounded(str(error[name])))
    if isinstance(place := error.get("loc"), list) and place:
        # FastAPI names the field at fault by a path such as ["body", "training_file"].
        where = ".".join(map(str, place))
        texts = [f"{where}: {text}" for text in texts]
    if not texts:
        rest = {name: value for name, value in error.items() if name not in (*_NESTS, *_TEXTS, "type", "param", "code")}
        texts = [str(rest)[:MAX_WORDS]] if any(value is not None for value in rest.values()) else []
    return texts


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_WORDS else text[: MAX_WORDS - 1] + "…"


def retry_after_of(headers: Mapping[str, str], *, now: float) -> float | None:
    """Return the number of seconds that a service asks the client to wait, or None.

    Azure sends ``retry-after-ms`` and ``x-ms-retry-after-ms`` in addition to ``Retry-After``, which holds only whole
    seconds. The milliseconds take precedence. An invalid header counts as missing.

    Args:
        headers: The headers of a reply; their names are case-insensitive.
        now: The Unix time, to compare a date with.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        milliseconds = _number(headers.get(name))
        if milliseconds is not None:
            return max(0.0, milliseconds / 1000)
    return parse_retry_after(headers.get("retry-after"), now=now)


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Read a ``Retry-After`` header, which holds seconds or a date (RFC 9110, section 10.2.3).

    Args:
        value: The header; None if it is missing.
        now: The Unix time, to compare a date with.

    Returns:
        The number of seconds to wait, 0 or more; None if the header is missing or invalid.
    """
    if value is None:
        return None
    seconds = _number(value)
    if seconds is None:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds)


def _number(value: str | None) -> float | None:
    """Return the number in a header; None if there is none, or if it is inf or NaN."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if number < math.inf else None
