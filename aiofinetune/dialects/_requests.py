"""A call as data: its endpoint, the request that is sent, and the reply. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import urlencode

from aiofinetune._urls import path_segment, resolve_within_origin

T = TypeVar("T")


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
    url = base_url + endpoint.path.format(*map(path_segment, ids))
    if query:
        url += "?" + urlencode(query)
    if body is not None:
        headers = {"Content-Type": "application/json", **headers}
    return Request(endpoint.method, url, headers, body)


def redirected(request: Request, reply: Reply) -> Request | None:
    """The request that a reply's redirect asks for, or None if it is not one to follow.

    Followed are redirects within one origin that keep the method (RFC 9110, section 15.4). Another origin never
    gets the key, and a POST never becomes a GET: both show up as an `APIError` with the redirect's status.
    """
    location = reply.headers.get("location")
    keeps_method = reply.status in (307, 308) or (reply.status in (301, 302, 303) and request.method == "GET")
    if location is None or not keeps_method:
        return None
    url = resolve_within_origin(request.url, location)
    return None if url is None else request._replace(url=url)
