"""What a server was asked: every request, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import attrs

from aiofinetune.testing._endpoints import STREAMS, check_endpoint


@attrs.define(eq=False)
class Asked:
    """One request.

    Its text is short, for a comparison or a failed assertion: ``"POST /fine-tunes"``.
    """

    endpoint: str
    """The endpoint's name, such as ``"create"``; ``"unknown"`` if the server has no such path."""
    method: str
    path: str
    """The path after ``/v1``, such as ``"/fine-tunes"``."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """The headers but for the key, by their names in lower case."""
    json: object = None
    """The JSON of the body; None if there is none, and for forms."""
    status: int | None = None
    """The status of the reply; None if there was none."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def __repr__(self) -> str:
        body = "" if self.json is None else f" {self.json!r}"
        return f"<{self.endpoint}: {self}{body} -> {self.status or 'no reply'}>"

    @property
    def is_stream(self) -> bool:
        """Whether it asks for an event stream."""
        body = self.json if isinstance(self.json, dict) else {}
        asks = self.query.get("stream", "").lower() == "true" or body.get("stream") is True
        return asks and self.endpoint in STREAMS


class Requests(Sequence[Asked]):
    """The requests of a server, oldest first. A request is there before its reply is sent."""

    def __init__(self, items: Sequence[Asked] = ()) -> None:
        self._items = list(items)

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self._items))}]"

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Asked]:
        return iter(tuple(self._items))

    @overload
    def __getitem__(self, index: int) -> Asked: ...

    @overload
    def __getitem__(self, index: slice) -> Requests: ...

    def __getitem__(self, index: int | slice) -> Asked | Requests:
        return Requests(self._items[index]) if isinstance(index, slice) else self._items[index]

    @property
    def endpoints(self) -> list[str]:
        """The names of the endpoints, such as ``["upload", "create"]``."""
        return [asked.endpoint for asked in self]

    def to(self, endpoint: str) -> Requests:
        """Return the requests to one endpoint.

        Raises:
            ConfigurationError: No endpoint has that name.
        """
        check_endpoint(endpoint)
        return Requests([asked for asked in self if asked.endpoint == endpoint])

    def only(self, endpoint: str) -> Asked:
        """Return the only request to an endpoint.

        Raises:
            AssertionError: There is none, or another one; the message has all requests.
        """
        found = self.to(endpoint)
        if len(found) != 1:
            raise AssertionError(f"expected one request to {endpoint!r}, got {len(found)} among {self!r}")
        return found[0]

    def add(self, asked: Asked) -> Asked:
        """Add a request."""
        self._items.append(asked)
        return asked
