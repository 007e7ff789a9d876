"""Translate the many exceptions that aiohttp and sockets raise into this package's own."""

from __future__ import annotations

import os
import ssl
import traceback
from typing import Final

import aiohttp
from aiohttp.http import HttpProcessingError

from aiofinetune._secret import chain_of
from aiofinetune.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    FineTuneError,
    ProtocolViolation,
    ReplyTimeout,
)

LOST: Final = "the connection closed before the end of the body, or the body is not valid HTTP"
"""The message for a body that is cut off or garbled, because aiohttp does not always distinguish the two."""


def in_our_words(error: Exception, name: str) -> FineTuneError:
    """Return the error of this package for a failure of aiohttp or of the socket below it.

    Args:
        error: The failure.
        name: The name of the request, for the message.
    """
    # The order matters: aiohttp's classes derive from one another, and some of them from OSError or ValueError.
    match error:
        case UnicodeError() | aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            return ConnectFailed(f"{name}: could not connect: {_why_not_connected(error, name)}")
        case aiohttp.ClientHttpProxyError():
            return ConnectFailed(f"{name}: the proxy refused to connect: {error.status} {error.message}")
        case aiohttp.ClientResponseError() if isinstance(error.__cause__, HttpProcessingError):
            return ProtocolViolation(f"{name}: the head of the reply cannot be parsed as HTTP: {error.message}")
        case HttpProcessingError():
            return ConnectionLost(f"{name}: {LOST}: {error.message}")
        case TimeoutError():
            return ReplyTimeout(f"{name}: no complete reply before the timeout")
        case aiohttp.ClientError() | OSError() if not isinstance(error, aiohttp.ClientResponseError | ValueError):
            return ConnectionLost(f"{name}: the connection broke: {error or type(error).__name__}")
        case _:
            return ConfigurationError(f"{of_borrowed(error)}, at {name}")


_NO_TLS: Final = frozenset(
    {"HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "WRONG_VERSION_NUMBER"}
)
"""OpenSSL's reasons, in its different versions, for a first record that is not TLS."""


def _why_not_connected(error: Exception, name: str) -> str:
    """Return why there is no connection. aiohttp's own message is only ``[None]`` if the error has no errno."""
    cause = getattr(error, "os_error", None)
    if not isinstance(error, aiohttp.ClientConnectorError) or cause is None:
        return str(error)
    server = f"{error.host}:{error.port}"
    if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
        return f"{server} does not speak TLS on this port ({cause.reason}); is it an http:// URL?"
    if cause.strerror is not None:
        # asyncio has words of its own for errors of the system.
        known = cause.errno if cause.errno and cause.errno > 0 and not isinstance(cause, ssl.SSLError) else None
        return f"{server}: {cause.strerror if known is None else os.strerror(known)}"
    if str(cause):
        return f"{server}: {cause}"
    in_tls = " in the TLS handshake: it may not speak TLS on this port" if " https://" in name else ""
    return f"{server} closed the connection{in_tls}"


def of_borrowed(error: Exception) -> str:
    """Return the message for a failure that comes from neither the network nor the service."""
    raised = "".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, ValueError):
        # aiohttp itself raises this too, if the session has an `auth` in addition to the key.
        return f"http: aiohttp, or code in the aiohttp session, refused to send the request: {raised}"
    return f"http: code in the aiohttp session (a middleware, a trace or the connector) raised {raised}"


def cause_of(error: Exception) -> Exception | None:
    """Return the cause to chain, in which nothing shows a key or a password.

    It is not the refusal of a proxy, which shows the proxy's password. What breaks a connection loses its traceback: a
    write that fails leaves the bytes of the request, with the key, in the locals of asyncio's and aiohttp's frames.
    """
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return None
    for each in chain_of(error):
        if isinstance(each, aiohttp.ClientError | OSError):
            each.__traceback__ = None
    return error
