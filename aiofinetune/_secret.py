"""Keep the API key out of logs, errors and reprs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aiofinetune.errors import FineTuneError

_SHORTEST: Final = 6
"""The minimum number of characters of a key that is removed from text. A shorter key may be an ordinary word, and
removing it would make messages unreadable."""


class Secret(str):
    """A string with a hidden repr, so that headers, exceptions and the locals of a traceback do not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"


def scrubbed(data: bytes, secret: str) -> bytes:
    """Return a service's reply without the key, which the service may echo in any field."""
    shown = secret.encode()
    # Every event passes through here, and `in` takes three times as long as `find`: it first tries to convert the key
    # to an integer.
    if len(shown) < _SHORTEST or data.find(shown) < 0:
        return data
    return data.replace(shown, b"...")


def without_secret(error: FineTuneError, secret: str) -> FineTuneError:
    """Return an error without the key, which some services and proxies echo.

    This is the error itself if neither it nor any chained exception shows the key. Otherwise it is a new error of the
    same class, without the chain.
    """
    if len(secret) < _SHORTEST or not any(secret in text for text in _shown(error)):
        return error
    arguments = (argument.replace(secret, "…") if isinstance(argument, str) else argument for argument in error.args)
    return type(error)(*arguments)


def _shown(error: BaseException) -> Iterator[str]:
    """Yield all the text that a traceback shows of an error, except for lines of code."""
    waiting: list[BaseException] = [error]
    # Chains of exceptions may have cycles.
    seen: set[int] = set()
    while waiting:
        error = waiting.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        yield str(error)
        yield repr(error.args)
        yield from map(str, getattr(error, "__notes__", ()))
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        waiting += filter(None, (error.__cause__, error.__context__))
