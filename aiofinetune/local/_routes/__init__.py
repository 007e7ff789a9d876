"""The routes of the embedded server, one module for each part of the API: what is read, answered and refused.

The reference's fine-tunes and ``/fine_tuning/jobs`` are two faces of the same jobs; all other routes serve both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Paths = Mapping[str, Mapping[str, Handler]]
"""The handlers of each path, by method."""


class Routes(Protocol):
    """The routes of a part of the API."""

    def paths(self) -> Paths:
        """Return the handlers of each path."""
        ...  # Without this, Pyright takes the method for one that returns None.


def token_of(request: web.Request) -> str:
    """Return the token of ``Authorization: Bearer TOKEN``; "" if there is no such header."""
    # The name of a scheme may be in any case (RFC 9110, section 11.1).
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.lstrip(" ") if scheme.lower() == "bearer" else ""
