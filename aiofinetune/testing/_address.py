"""Where the servers of all tests of a run are found."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator
from typing import NamedTuple

_HOST = "127.0.0.1"


class Address(NamedTuple):
    """The address of the tests' servers, and the key that they expect."""

    port: int
    api_key: str

    @property
    def base_url(self) -> str:
        """The URL of the API, such as ``http://127.0.0.1:40123/v1``."""
        return f"http://{_HOST}:{self.port}/v1"


@contextlib.contextmanager
def reserved_address() -> Iterator[Address]:
    """Return a context manager that reserves a free port for servers that listen on it one after the other."""
    with socket.socket() as holder:
        # A bound socket that does not listen keeps the port from other programs, but not from a server of this user
        # that sets this option too, as asyncio's do (socket(7), SO_REUSEADDR).
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((_HOST, 0))
        yield Address(holder.getsockname()[1], f"testing-{secrets.token_urlsafe(12)}")
