"""The key, and keeping it out of what is shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aiofinetune.errors import FineTuneError

_SHORTEST: Final = 6
"""Characters. A key as short as a word of an error message is no secret, and would blot the message out."""


class Secret(str):
    """A text that shows itself to the wire, but to no repr: of a header, an exception, a traceback's locals."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"


def scrubbed(data: bytes, secret: str) -> bytes:
    """What a service said without the key, which it may echo in whatever field: an event's text, a status."""
    shown = secret.encode()
    # Each event goes through here, and `in` takes thrice as long as `find`: it tries the key as a number first.
    if len(shown) < _SHORTEST or data.find(shown) < 0:
        return data
    return data.replace(shown, b"...")


def without_secret(error: FineTuneError, secret: str) -> FineTuneError:
    """An error without the key, which some services and proxies echo.

    It is the error itself if neither it nor anything that is chained to it shows the key; else one like it.
    """
    if len(secret) < _SHORTEST or not any(secret in text for text in _shown(error)):
        return error
    arguments = (argument.replace(secret, "…") if isinstance(argument, str) else argument for argument in error.args)
    return type(error)(*arguments)


def _shown(error: BaseException) -> Iterator[str]:
    """All that a traceback shows of an error, but for lines of code."""
    waiting: list[BaseException] = [error]
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
