"""A call as data: its endpoint, its request and its reply. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlencode

from aiofinetune._urls import path_segment, resolve_within_origin

T = TypeVar("T")

HEADERS: Final[Mapping[str, str]] = MappingProxyType({"Accept": "application/json", "Accept-Encoding": "gzip, deflate"})
"""The default headers of a request."""
STREAM_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
)
"""The headers of an event stream. It is not compressed, because compression would delay events."""


class Endpoint(NamedTuple, Generic[T]):
    """One endpoint of the API.

    Args:
        method: The HTTP method.
        path: The path below the base URL; ``{}`` stands for an id.
        result: The class of the reply.
        idempotent: Whether sending it twice has the same effect as sending it once.
        translate: Puts the JSON of a reply into the form of the reference; None if it has that form.
        is_paged: Whether it returns a list that takes ``limit``.
    """

    method: str
    path: str
    result: type[T]
    idempotent: bool = True
    translate: Callable[[object], object] | None = None
    is_paged: bool = False


class Request(NamedTuple):
    """One HTTP request, ready to be sent.

    Args:
        method: The HTTP method.
        url: The absolute URL, percent-encoded.
        headers: Headers that are added to those of every request, or replace them.
        body: The JSON to send, if any.
    """

    method: str
    url: str
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes | None = None

    @property
    def name(self) -> str:
        """The name of the request, for an error message."""
        return f"{self.method} {self.url}"


class Reply(NamedTuple):
    """One complete HTTP reply. The names of headers are case-insensitive."""

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
        endpoint: The endpoint.
        base_url: The base URL, without a trailing slash.
        ids: The ids in the path. They are percent-encoded here, so that no id can lead to another path.
        query: The parameters of the URL.
        body: The JSON to send.
        headers: Headers that are added to those of every request, or replace them.

    Raises:
        RequestInvalid: An id cannot be encoded safely.
    """
    url = base_url + (endpoint.path.format(*map(path_segment, ids)) if ids else endpoint.path)
    if query:
        url += ("&" if "?" in url else "?") + urlencode(query)
    if body is not None:
        headers = {"Content-Type": "application/json", **headers}
    return Request(endpoint.method, url, headers, body)


def redirected(request: Request, reply: Reply) -> Request | None:
    """Return the request that a redirect leads to, or None if the reply is not a redirect that may be followed.

    Redirects are followed if they stay within the origin and keep the method (RFC 9110, section 15.4), because another
    origin must not get the key and a POST must not become a GET. Any other redirect is raised as an `APIError`.
    """
    location = reply.headers.get("location")
    keeps_method = reply.status in (307, 308) or (reply.status in (301, 302, 303) and request.method == "GET")
    if location is None or not keeps_method:
        return None
    url = resolve_within_origin(request.url, location)
    return None if url is None else request._replace(url=url)
