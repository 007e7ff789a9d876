"""Choose the dialect of a session, and find the one that a reply would fit. No I/O."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from aiofinetune import structuring
from aiofinetune.dialects._dialect import Dialect
from aiofinetune.dialects._fine_tunes import FINE_TUNES
from aiofinetune.errors import ConfigurationError, ProtocolViolation


class _Dialects(Mapping[str, Dialect]):
    """The dialects by their names; the module of each is imported when it is first asked for."""

    _PLACES: Final = {
        "fine-tunes": ("_fine_tunes", "FINE_TUNES"),
        "jobs": ("_jobs", "JOBS"),
        "azure": ("_azure", "AZURE"),
        "nebius": ("_nebius", "NEBIUS"),
        "together": ("_together", "TOGETHER"),
    }

    def __getitem__(self, name: str) -> Dialect:
        module, constant = self._PLACES[name]
        dialect: Dialect = getattr(importlib.import_module(f"aiofinetune.dialects.{module}"), constant)
        return dialect

    def __iter__(self) -> Iterator[str]:
        return iter(self._PLACES)

    def __len__(self) -> int:
        return len(self._PLACES)


DIALECTS: Final[Mapping[str, Dialect]] = _Dialects()
"""Every dialect by its name."""


def named(name: object) -> Dialect:
    """Return the dialect of a name, or a dialect itself.

    Raises:
        ConfigurationError: There is none of this name.
    """
    if isinstance(name, Dialect):
        return name
    if not isinstance(name, str) or name not in DIALECTS:
        raise ConfigurationError(f"dialect: expected a Dialect or one of {', '.join(DIALECTS)}; got {name!r}")
    return DIALECTS[name]


def of_host(base_url: str) -> Dialect:
    """Return the dialect of a base URL by its host, or else the reference."""
    try:
        host = urlsplit(base_url).hostname
    except ValueError:
        # The check of the base URL that follows says what is wrong with it.
        return FINE_TUNES
    if not host:
        return FINE_TUNES
    for dialect in DIALECTS.values():
        if any(host == known or (known.startswith(".") and host.endswith(known)) for known in dialect.hosts):
            return dialect
    return FINE_TUNES


def fitting(body: bytes, current: Dialect) -> Dialect | None:
    """Return the dialect whose form a reply has, if it is another than the current one.

    Args:
        body: The body of the reply: a job, or a list of jobs.
        current: The dialect of the session.
    """
    try:
        value = structuring.read_json(body)
    except ProtocolViolation:
        return None
    if isinstance(value, Mapping) and isinstance(rows := value.get("data"), list) and rows:
        value = rows[0]
    if not isinstance(value, Mapping) or current.fits(value):
        return None
    return next((other for other in DIALECTS.values() if other.fits(value)), None)


def of_upload(headers: Mapping[str, str], current: Dialect) -> Dialect | None:
    """Return the dialect whose reply to an upload has these headers, if it is another than the current one."""
    others = (dialect for dialect in DIALECTS.values() if dialect.file_header and dialect.name != current.name)
    return next((other for other in others if other.file_header in headers), None)
