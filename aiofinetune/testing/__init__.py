"""Tests of services that fine-tune models: a server with instant jobs and faults on demand, and a pytest plugin.

The plugin provides three fixtures:

- ``fine_tune_server``: a `FineTuneServer` for one test, in a thread, so that tests of any kind can use it;
- ``fine_tune_session``: a `FineTuneSession` with it, for tests that pytest-asyncio or anyio runs;
- ``fine_tune_address``: where the servers of all tests are found, for a service that starts once.

Without pytest::

    with FineTuneServer().in_thread() as server:
        server.faults.fail_next("create", status=429, retry_after=1)
        ...

A request meets one fault, the oldest that fits. Another process asks for the same faults at the server, as
``POST /v1/testing/faults/fail_next`` with the arguments as JSON; ``python -m aiofinetune.testing`` runs a server on its
own. Nothing is trained: completions say that they are simulated, results have a column ``simulated``, and their figures
are made up. A bad training file fails its job as it would in training, which a ``FineTuneServer(real_training=True)``
does.

Each name is imported when it is first used: the plugin itself imports only pytest and the standard library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aiofinetune.testing._address import Address
    from aiofinetune.testing._faults import Faults
    from aiofinetune.testing._recorder import Asked, Requests
    from aiofinetune.testing._server import FineTuneServer

__all__ = ["Address", "Asked", "Faults", "FineTuneServer", "Requests"]

_MODULE_OF: Final = {
    "Address": "_address",
    "Asked": "_recorder",
    "Faults": "_faults",
    "FineTuneServer": "_server",
    "Requests": "_recorder",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
