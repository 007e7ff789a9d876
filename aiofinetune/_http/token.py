"""Access tokens that a function of the caller's gives, in place of a key."""

from __future__ import annotations

import asyncio
import base64
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from aiofinetune import structuring
from aiofinetune._secret import Secret
from aiofinetune.errors import ConfigurationError, ConnectFailed, FineTuneError

TokenSource: TypeAlias = Callable[[], str | Awaitable[str]]
"""Returns an access token, directly or when awaited."""

_MARGIN: Final = 120.0
"""The number of seconds before its end at which a token is replaced, so that it does not expire on the way."""
_MAX_SECONDS: Final = 60.0
"""How long the function may take."""
_MAX_KEPT: Final = 3
"""The number of tokens that are kept out of replies and errors: those of calls that may still be under way."""


class Token:
    """The current access token of a session. It is asked for again once it has expired.

    A token in the form of a JWT says when that is (RFC 7519, section 4.1.4); any other token is kept until the service
    refuses it.

    Args:
        source: Gives a token. A function that is not a coroutine runs in a thread, because it may block.
        secrets: Receives each token, so that it can be kept out of replies and errors.
    """

    def __init__(self, source: TokenSource, secrets: list[Secret]) -> None:
        self._source = source
        self._secrets = secrets
        self._current: Secret | None = None
        self._expires_at: float | None = None
        self._asking = asyncio.Lock()

    async def get(self) -> Secret:
        """Return a token that has not expired.

        Raises:
            ConfigurationError: The function failed, or did not return a token.
            ConnectFailed: The function could not reach what gives the tokens, or took too long.
        """
        async with self._asking:
            if self._current is None or (self._expires_at is not None and time.time() > self._expires_at - _MARGIN):
                self._current = await self._ask()
                self._expires_at = _expiry_of(self._current)
                self._secrets.append(self._current)
                del self._secrets[:-_MAX_KEPT]
            return self._current

    def refused(self, token: Secret) -> None:
        """Ask for another token before the next call, because the service refused this one."""
        if self._current == token:
            self._current = None

    async def _ask(self) -> Secret:
        deadline = asyncio.timeout(_MAX_SECONDS)
        try:
            async with deadline:
                is_async = inspect.iscoroutinefunction(self._source)
                given = self._source() if is_async else await asyncio.to_thread(self._source)
                if inspect.isawaitable(given):
                    given = await given
        except FineTuneError:
            raise
        except OSError as error:
            # TimeoutError is one. The call itself was not sent, so it can be tried again.
            what = f"returned nothing for {_MAX_SECONDS:.0f} s" if deadline.expired() else f"raised {error!r}"
            raise ConnectFailed(f"api_key: the function that gives the token {what}") from error
        except Exception as error:
            raise ConfigurationError(f"api_key: the function that gives the token raised {error!r}") from error
        if not isinstance(given, str):
            raise ConfigurationError(f"api_key: the function that gives the token returned {type(given).__name__}")
        given = Secret(given)
        if not given or not (given.isascii() and given.isprintable()) or given != given.strip():
            raise ConfigurationError("api_key: the function that gives the token returned none that fits in a header")
        return given


def _expiry_of(token: str) -> float | None:
    """Return when a token expires, in Unix seconds; None if it does not say."""
    try:
        _head, payload, _signature = token.split(".")
        claims = structuring.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (ValueError, TypeError, KeyError):
        return None
