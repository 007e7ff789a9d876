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

_COMPRESSIONS: Final = frozenset(
    {"aes128gcm", "br", "compress", "dcb", "dcz", "exi", "pack200-gzip", "x-compress", "zstd"}
)
"""The registered encodings (IANA, HTTP Content Coding Registry) that are not."""


def encoding_of(headers: Mapping[str, str]) -> str:
    """The encoding of a body, by its ``Content-Encoding`` (RFC 9110, section 8.4).

    Some services name there what is no encoding: nothing, ``none``, a character set. That leaves a body as it is.
    """
    named = headers.get("Content-Encoding", "").lower().split(",")
    known = [name for each in named if (name := each.strip()) in (ENCODINGS | _COMPRESSIONS) - {"identity"}]
    return ", ".join(known) or "identity"


def decompressor(encoding: str, start: bytes = b"") -> zlib._Decompress:
    """What undoes a body's encoding (RFC 9110, section 8.4.1).

    Args:
        encoding: As `encoding_of` gives it.
        start: The body's first bytes: some servers send ``deflate`` without zlib's wrapper, as RFC 9110 warns.

    Raises:
        ProtocolViolation: An encoding that was not asked for.
    """
    match encoding.strip().lower():
        case "gzip" | "x-gzip":
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        case "deflate":
            # The lower half of zlib's first byte is 8 (RFC 1950, section 2.2), and no bare deflate begins so. Nor does
            # that of JSON begin as JSON itself, which is here under a wrong name.
            is_bare = start and start[0] & 0x0F != 8 and start[:1] not in (b"{", b"[")
            return zlib.decompressobj(wbits=-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS)
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
        raise APIError(reply.status, message, request_id=_printable(reply.headers.get("x-request-id")))
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
    words = error_words(reply.body)
    if words is None:
        message = (
            f"the body is not the API's JSON: {structuring.excerpt(reply.body)}" if reply.body else "with an empty body"
        )
        return kind(reply.status, message, request_id=request_id, retry_after=retry_after)
    if kind is RateLimited:
        kind = _kind_of_limit(*words)
    return kind(reply.status, *words, request_id, retry_after)


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
