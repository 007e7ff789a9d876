"""The embedded server: the fine-tunes API and ``/fine_tuning/jobs`` on loopback, training a small model for real.

::

    async with LocalServer() as server:
        async with FineTuneSession(server.api_key, base_url=server.base_url) as session:
            ...

The base models are ``ada``, ``babbage``, ``curie`` and ``davinci``: 0.3 to 1.7 million parameters, pretrained on the
documentation that ships with CPython. A token is a word with the space before it.

A conversation (training data with ``messages``, and chats) is joined to lines of ``role: content`` and a last
``assistant:``, which the model continues with a space and its answer. Each message of the assistant is one example,
unless its ``weight`` is 0. Preference and reinforcement training, and tools in a chat, are refused with a 400 that
names the field; tools or images in a training file fail its job, whose error names the line. A paused job starts from
the beginning when it is resumed.

The folder (SQLite and files) survives ``kill -9``: no file, job or finished model is lost, and unfinished jobs run
again. If a part of a folder that was used is missing or damaged, such as its database or the log beside it
(``server.sqlite3-wal``), the server does not start and changes nothing. Files that no record names are moved to
``unknown/``, never deleted.

Local open models can be tuned too: ``LocalServer(models=[OpenModel.at("NAME", path)])``; see `OpenModel`.

The names are imported when they are first used, so that the trainers' processes do not load the server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aiofinetune.local._open_models import OpenModel
    from aiofinetune.local._server import LocalServer

__all__ = ["LocalServer", "OpenModel"]

_HOMES: Final = {"LocalServer": "_server", "OpenModel": "_open_models"}
"""The module of each name."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}")  # only when it is used
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
