"""The embedded server: the fine-tunes API and ``/fine_tuning/jobs`` on loopback, training a small model for real.

::

    async with LocalServer() as server:
        async with FineTuneSession(server.api_key, base_url=server.base_url) as session:
            ...

`LocalServer` is imported when it is first used, so that the trainers' processes do not load the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiofinetune.local._server import LocalServer

__all__ = ["LocalServer"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aiofinetune.local import _server as server  # noqa: PLC0415  # only when it is used

    value = globals()[name] = getattr(server, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
