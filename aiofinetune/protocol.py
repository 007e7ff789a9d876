"""The endpoints as data, and the pure functions that build a request and read its reply. No I/O.

Source of every path and shape: the API reference's fine-tunes, files, models and completions pages, in their last
published form (https://github.com/openai/openai-openapi, version 2.0.0).
"""

from __future__ import annotations

import email.utils
import ipaddress
import math
import time
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote, urldefrag, urlencode, urljoin, urlsplit

from aiofinetune import structuring
from aiofinetune.errors import (
    APIError,
    AuthenticationFailed,
    BadRequest,
    ConfigurationError,
    Conflict,
    FineTuneError,
    NotFound,
    PermissionDenied,
    ProtocolViolation,
    QuotaExceeded,
    RateLimited,
    RequestInvalid,
    ServerError,
    TooManyJobs,
)
from aiofinetune.models import Deleted, File, FineTune, FineTuneEvent, Listing, Model, Rows

T = TypeVar("T")

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"

HEADERS: Final[Mapping[str, str]] = {"Accept": "application/json", "Accept-Encoding": "gzip, deflate"}
"""Of every request that does not say otherwise."""

STREAM_HEADERS: Final[Mapping[str, str]] = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
"""Of an event stream: a compressed one comes in lumps."""

MOST_REPLY_BYTES: Final = 256 << 20
"""The longest JSON reply that is read: a list of some 250,000 jobs."""

MOST_ERROR_BYTES: Final = 64 << 10
"""What is read of an error's body; a proxy's HTML page may be longer, and its start says enough."""


def check_base_url(base_url: str, *, allow_plain_http: bool) -> str:
    """Give a base URL without the slash at its end.

    Raises:
        ConfigurationError: It is no http(s) URL, holds more than scheme, host, port and path, or would carry the key
            in plain text to another machine.
    """
    if not is_http_url(base_url):
        shown = "one with a user in it" if "@" in base_url else repr(base_url)
        raise ConfigurationError(f"base_url: expected a URL such as {DEFAULT_BASE_URL!r}, got {shown}")
    parts = urlsplit(base_url)
    if parts.username is not None or "?" in base_url or "#" in base_url:
        raise ConfigurationError("base_url: holds a user, a query or a fragment; give scheme, host and path alone")
    if parts.scheme == "http" and not allow_plain_http and not is_loopback(parts.hostname or ""):
        raise ConfigurationError(
            f"base_url: {base_url!r} would carry the key in plain text; use https, or pass allow_plain_http=True"
        )
    return base_url.rstrip("/")


def is_http_url(url: str) -> bool:
    """Whether a text is a whole http(s) URL of printable ASCII."""
    try:
        parts = urlsplit(url)
        has_host = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
    return has_host and url.isascii() and not any(character <= " " for character in url)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself (RFC 6761, section 6.3, for names)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".").rpartition(".")[2] == "localhost"


class Endpoint(NamedTuple, Generic[T]):
    """One endpoint of the API.

    Args:
        method: The HTTP method.
        path: Below the base URL; ``{}`` stands for an id.
        result: The class of the reply.
        idempotent: Whether sending it twice does the same as sending it once.
    """

    method: str
    path: str
    result: type[T]
    idempotent: bool = True


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


class Request(NamedTuple):
    """One HTTP request, ready to be sent.

    Args:
        method: The HTTP method.
        url: Absolute, percent-encoded.
        headers: Those of this request alone, besides or in place of those of every request.
        body: The JSON to send, if any.
    """

    method: str
    url: str
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes | None = None

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return f"{self.method} {self.url}"


class Reply(NamedTuple):
    """One HTTP reply, read whole. Header names are looked up in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def build(
    endpoint: Endpoint[T],
    base_url: str,
    *ids: str,
    query: Mapping[str, str] | None = None,
    body: bytes | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Request:
    """Build the request of a call.

    Args:
        endpoint: What is called.
        base_url: Without a slash at its end.
        ids: What stands in the path's places, percent-encoded here so that none can reach another path.
        query: Parameters of the URL.
        body: JSON.
        headers: Besides, or in place of, those of every request.

    Raises:
        RequestInvalid: An id that no encoding makes safe.
    """
    url = base_url + endpoint.path.format(*map(_path_segment, ids))
    if query:
        url += "?" + urlencode(query)
    if body is not None:
        headers = {"Content-Type": "application/json", **headers}
    return Request(endpoint.method, url, headers, body)


def _path_segment(name: str) -> str:
    """Percent-encode an id as one segment of a path (RFC 3986, section 3.3)."""
    if not isinstance(name, str):
        raise RequestInvalid("id", f"expected text such as 'ft-abc123', got {name!r}; pass the object's .id")
    if name.strip(".") == "":
        # "." and ".." mean another path to proxies even when encoded (RFC 3986, section 5.2.4).
        raise RequestInvalid("id", f"{name!r} is not the id of anything")
    try:
        return quote(name, safe="")
    except UnicodeEncodeError:
        raise RequestInvalid("id", f"{name!r} is not valid Unicode") from None


def multipart(purpose: str, filename: str, boundary: str) -> tuple[bytes, bytes]:
    """What goes before and after a file's bytes to make a form of `purpose` and `file` (RFC 7578).

    Args:
        purpose: What the file is for.
        filename: The name that the service will know it by; quotes and line breaks in it are percent-encoded, as
            browsers do (https://html.spec.whatwg.org/multipage/form-control-infrastructure.html#multipart-form-data).
        boundary: A line that the file does not hold; random.
    """
    escaped = filename.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    head = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="purpose"\r\n'
        "\r\n"
        f"{purpose}\r\n"
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="file"; filename="{escaped}"\r\n'
        "Content-Type: application/octet-stream\r\n"
        "\r\n"
    )
    return head.encode(errors="replace"), f"\r\n--{boundary}--\r\n".encode()


def redirected(request: Request, reply: Reply) -> Request | None:
    """The request that a reply's redirect asks for, or None if it is not one to follow.

    Followed are redirects within one origin that keep the method (RFC 9110, section 15.4). Another origin never
    gets the key, and a POST never becomes a GET: both show up as an `APIError` with the redirect's status.
    """
    location = reply.headers.get("location")
    keeps_method = reply.status in (307, 308) or (reply.status in (301, 302, 303) and request.method == "GET")
    if location is None or not keeps_method:
        return None
    try:
        # Encoded first: what is compared is what is sent.
        url = urldefrag(quote(urljoin(request.url, location), safe=_URL_CHARACTERS)).url
        same_origin = _origin(url) == _origin(request.url)
    except ValueError:
        return None
    return request._replace(url=url) if same_origin else None


_URL_CHARACTERS: Final = ":/?#[]@!$&'()*+,;=%-._~"
"""Reserved and unreserved characters (RFC 3986, section 2), and the percent sign of what is encoded already."""


def _origin(url: str) -> tuple[object, ...]:
    """Scheme, host and port (RFC 6454), and the user that aiohttp would make a header of."""
    parts = urlsplit(url)
    return parts.scheme, parts.username, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


ENCODINGS: Final = frozenset({"identity", "gzip", "x-gzip", "deflate"})
"""The encodings of a body that are understood."""


def decompressor(encoding: str) -> zlib._Decompress:
    """What undoes a body's ``Content-Encoding`` (RFC 9110, section 8.4.1).

    Raises:
        ProtocolViolation: An encoding that was not asked for.
    """
    match encoding.strip().lower():
        case "gzip" | "x-gzip":
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        case "deflate":
            return zlib.decompressobj()
        case other:
            raise ProtocolViolation(f"the reply has the Content-Encoding {other[:40]!r}, which was not asked for")


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
    except ProtocolViolation as misfit:
        if (error := _error_object(reply.body)) is None:
            raise
        raise APIError(reply.status, *_error_fields(error)) from misfit
    if isinstance(result, Listing) and not result.data and (error := _error_object(reply.body)) is not None:
        # An error that came under a good status is no empty list.
        raise APIError(reply.status, *_error_fields(error))
    return result


def unreadable(reply: Reply, failure: FineTuneError) -> FineTuneError:
    """What is wrong with the reply to an accepted create that names no job: the service's words where it has any.

    Args:
        reply: The reply, as far as it came.
        failure: What kept it from being read.
    """
    error = _error_object(reply.body)
    if error is not None:
        return APIError(reply.status, *_error_fields(error))
    kind = reply.headers.get("content-type", "").lower()
    if "html" in kind or reply.body[:200].lstrip().lower().startswith((b"<!doctype", b"<html")):
        page = structuring.excerpt(reply.body)
        return ProtocolViolation(f"status {reply.status} with an HTML page, so a proxy may have answered: {page}")
    if not reply.body and isinstance(failure, ProtocolViolation):
        return ProtocolViolation(f"status {reply.status} with an empty body")
    return failure


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
    request_id = _printable(reply.headers.get("x-request-id"))
    if 300 <= reply.status < 400:
        # Whole, as aiohttp bounds it: of a key that a cut halves, the rest would show.
        location = _printable(reply.headers.get("location")) or "nowhere"
        return APIError(
            reply.status,
            f"a redirect to {location!r} that is not followed: to another origin, which must not get the key, or with"
            " another method, or of an upload. If the API lives there, give it as base_url",
            request_id=request_id,
        )
    retry_after = retry_after_of(reply.headers, now=server_time(reply) or time.time())
    error = _error_object(reply.body)
    if error is None:
        message = (
            f"the body is not the API's JSON: {structuring.excerpt(reply.body)}" if reply.body else "with an empty body"
        )
        return kind(reply.status, message, request_id=request_id, retry_after=retry_after)
    fields = _error_fields(error)
    if kind is RateLimited:
        kind = _kind_of_limit(*fields)
    return kind(reply.status, *fields, request_id, retry_after)


def _printable(value: str | None) -> str | None:
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


def explained(error: NotFound, endpoint: Endpoint[T]) -> NotFound:
    """What a 404 of the reference's own service means, where it is the one that retired the endpoint."""
    if not endpoint.path.startswith("/fine-tunes"):
        return error
    message = (
        f"{error.message}. api.openai.com retired the fine-tunes API on 2024-01-04: set base_url (OPENAI_BASE_URL) to a"
        " service that still speaks it, or run the embedded server ('aiofinetune serve')"
    )
    return NotFound(error.status, message, *error.args[2:])


def server_time(reply: Reply) -> float | None:
    """The Unix time at the service when it replied (RFC 9110, section 6.6.1), or None if it does not say."""
    try:
        return email.utils.parsedate_to_datetime(reply.headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):
        return None


def stream_error_of(data: bytes) -> APIError | None:
    """The error that a stream carries in place of an event, if what is no event is one."""
    try:
        event = structuring.read_json(data)
    except ProtocolViolation:
        return None
    if isinstance(event, dict) and "message" not in event and isinstance(event.get("error"), dict | str):
        error = event["error"]
        return APIError(200, *_error_fields(error if isinstance(error, dict) else {"message": error}))
    return None


def _error_object(body: bytes) -> dict[str, object] | None:
    """The ``error`` of the reference's envelope; some hosts send a bare text, or name it ``detail`` or ``message``."""
    try:
        value = structuring.read_json(body)
    except ProtocolViolation:
        return None
    if not isinstance(value, dict):
        return None
    error = value.get("error", value.get("detail"))
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {"message": error}
    return value if isinstance(value.get("message"), str) else None


def _error_fields(error: Mapping[str, object]) -> tuple[str, str | None, str | None, str | None]:
    """Message, type, param and code, each a bounded text: the message of an error is for people, not for pages."""
    texts = {name: str(error[name])[:2000] for name in ("type", "param", "code") if error.get(name) is not None}
    message = str(error.get("message") or "no message")[:2000]
    return message, texts.get("type"), texts.get("param"), texts.get("code")


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
