"""Replies that say what went wrong: which exception a status stands for, in the words of the service. No I/O."""

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


def error_of(reply: Reply) -> APIError:
    """The error that a reply with an error's status stands for, whatever its body is."""
    kind = _ERROR_OF_STATUS.get(reply.status, ServerError if reply.status >= 500 else APIError)
    request_id = printable(reply.headers.get("x-request-id"))
    if 300 <= reply.status < 400:
        # Whole, as aiohttp bounds it: of a key that a cut halves, the rest would show.
        location = printable(reply.headers.get("location")) or "nowhere"
        return APIError(
            reply.status,
            f"a redirect to {location!r} that is not followed: to another origin, which must not get the key, or with"
            " another method, or of an upload. If the API lives there, give it as base_url",
            request_id=request_id,
        )
    retry_after = retry_after_of(reply.headers, now=server_time(reply) or time.time())
    words = error_words(reply.body)
    if words is None:
        message = (
            f"the body is not the API's JSON: {structuring.excerpt(reply.body)}" if reply.body else "with an empty body"
        )
        return kind(reply.status, message, request_id=request_id, retry_after=retry_after)
    if kind is RateLimited:
        kind = _kind_of_limit(*words)
    return kind(reply.status, *words, request_id, retry_after)


def printable(value: str | None) -> str | None:
    """A header's text; bytes that are no UTF-8, which aiohttp keeps as halves of pairs, as question marks."""
    return None if value is None else value.encode(errors="replace").decode()


def _kind_of_limit(message: str, kind: str | None, _param: str | None, code: str | None) -> type[RateLimited]:
    """Which limit a 429 speaks of, by what services are known to say; a limit unknown is taken for throttling."""
    names = f"{kind} {code}".lower()
    words = message.lower()
    if "quota" in names or "billing" in names or "daily" in names or "quota" in words or " per day" in words:
        return QuotaExceeded
    if "job" in words and any(word in words for word in ("active", "concurrent", "running", "in progress")):
        return TooManyJobs
    return RateLimited


def server_time(reply: Reply) -> float | None:
    """The Unix time at the service when it replied (RFC 9110, section 6.6.1), or None if it does not say."""
    try:
        return email.utils.parsedate_to_datetime(reply.headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):
        return None


class Words(NamedTuple):
    """What a service says went wrong, each a text of a bounded length."""

    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None


MAX_WORDS: Final = 2000
"""Characters of each text of an error that are kept: they are for people, not for pages."""


_NESTS: Final = ("error", "detail", "errors")
"""Where a body keeps its error: the reference's envelope, FastAPI's, JSON:API's."""


_TEXTS: Final = ("title", "message", "msg", "error_description", "description", "reason")
"""What holds an error's text, besides those: RFC 9457, the reference, OAuth (RFC 6749, section 5.2) and others."""


def error_words(body: bytes) -> Words | None:
    """What the body of an error says, in any of the shapes that services use; None where it is no error's JSON."""
    try:
        value = structuring.read_json(body)
    except ProtocolViolation:
        return None
    if isinstance(value, list):
        # As Google's services send it: the envelope, in a list.
        value = next((item for item in value if isinstance(item, dict)), None)
    if not isinstance(value, dict) or all(value.get(name) in (None, "", []) for name in (*_NESTS, *_TEXTS)):
        return None
    return _words_of(value)


def error_words_of_success(body: bytes) -> Words | None:
    """What a body that came with a success says went wrong; None where it holds no error.

    A job may hold the error that it failed with: this is for a body that is not what the endpoint promises.
    """
    try:
        value = structuring.read_json(body)
    except ProtocolViolation:
        return None
    if not isinstance(value, dict) or not (value.get("error") or value.get("object") == "error"):
        return None
    return _words_of(value)


_MAX_NESTING: Final = 5


def _words_of(error: object) -> Words:
    """Read an error that may hold others: the texts of all, and the type, param and code nearest to them."""
    fields: dict[str, str] = {}
    message = "; ".join(dict.fromkeys(_texts_of(error, fields, _MAX_NESTING)))
    return Words(_bounded(message) or "no message", *map(fields.get, ("type", "param", "code")))


def _texts_of(error: object, fields: dict[str, str], depth: int) -> list[str]:
    """Give an error's texts, the innermost first, and put its type, param and code into `fields`."""
    match error:
        case str():
            return [error] if error.strip() else []
        case bool() | None:
            return []
        case int() | float():
            return [str(error)]
        case list() if depth > 0:
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
        # FastAPI's, of one field: ["body", "training_file"].
        where = ".".join(map(str, place))
        texts = [f"{where}: {text}" for text in texts]
    if not texts:
        rest = {name: value for name, value in error.items() if name not in (*_NESTS, *_TEXTS, "type", "param", "code")}
        texts = [str(rest)[:MAX_WORDS]] if any(value is not None for value in rest.values()) else []
    return texts


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_WORDS else text[: MAX_WORDS - 1] + "…"


def retry_after_of(headers: Mapping[str, str], *, now: float) -> float | None:
    """Seconds that a service asks to wait: by the milliseconds that some send, else by ``Retry-After``.

    Azure sends ``retry-after-ms`` and ``x-ms-retry-after-ms`` besides ``Retry-After``, which only holds whole seconds.
    A header that makes no sense counts as missing.

    Args:
        headers: A reply's, looked up in any case.
        now: The Unix time, for a date.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        milliseconds = _number(headers.get(name))
        if milliseconds is not None:
            return max(0.0, milliseconds / 1000)
    return parse_retry_after(headers.get("retry-after"), now=now)


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds to wait by a ``Retry-After`` header, which holds seconds or a date (RFC 9110, section 10.2.3).

    Args:
        value: The header, or None where there is none.
        now: The Unix time, for a date.

    Returns:
        0 or more; None where the header is missing or makes no sense.
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
    """A header's number; None where there is none, or one without an end."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if number < math.inf else None
