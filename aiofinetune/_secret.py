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


def scrubbed(data: bytes, *secrets: str) -> bytes:
    """Return a service's reply without the keys, which the service may echo in any field."""
    for secret in secrets:
        shown = secret.encode()
        # Every event passes through here. `replace` takes half as long as `find`, and returns the same bytes if there
        # is nothing to replace.
        if len(shown) >= _SHORTEST:
            data = data.replace(shown, b"...")
    return data


def without_secret(error: FineTuneError, *secrets: str) -> FineTuneError:
    """Return an error without the keys, which some services and proxies echo.

    This is the error itself if neither it nor any chained exception shows a key. Otherwise it is a new error of the
    same class, without the chain.
    """
    found = [secret for secret in secrets if len(secret) >= _SHORTEST and any(secret in text for text in _shown(error))]
    if not found:
        return error
    arguments = list(error.args)
    for secret in found:
        arguments = [each.replace(secret, "…") if isinstance(each, str) else each for each in arguments]
    return type(error)(*arguments)


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all the errors that are chained to it."""
    waiting: list[BaseException] = [error]
    # Chains of exceptions may have cycles.
    seen: set[int] = set()
    while waiting:
        error = waiting.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        waiting += filter(None, (error.__cause__, error.__context__))


def _shown(error: BaseException) -> Iterator[str]:
    """Yield all the text that a traceback shows of an error, except for lines of code."""
    for each in chain_of(error):
        yield str(each)
        yield repr(each.args)
        yield from map(str, getattr(each, "__notes__", ()))
