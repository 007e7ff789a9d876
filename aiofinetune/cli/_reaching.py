"""Reach the service before the first call: wait for its port, and guess at a missing ``/v1`` in the base URL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable
from contextlib import aclosing
from typing import Final
from urllib.parse import urlsplit

from aiofinetune._http.proxies import proxy_for
from aiofinetune.batch._notices import Notices, duration
from aiofinetune.batch._outcomes import Wait
from aiofinetune.errors import ConnectFailed, FineTuneError, NotFound, ProtocolViolation
from aiofinetune.session import FineTuneSession

_PORTS: Final = {"http": 80, "https": 443}
_PATIENCE: Final = 8.0
"""The number of seconds after which a command ends if its service cannot be reached."""
_PAUSES: Final = (0.5, 2.0)
"""The numbers of seconds between the tries of a command that does not wait."""
_MAX_PAUSE: Final = 10.0
_VERSION: Final = re.compile(r"/v\d+[^/]*(/|$)")


async def reach(base_url: str, *, retries: int, waits: bool, say: Callable[[str], None]) -> None:
    """Return when the service, or the proxy before it, takes a connection.

    Args:
        base_url: The service.
        retries: How often to try again; no more than twice.
        waits: Whether to wait for as long as it takes.
        say: Called with a line that says what the command waits for, at once and then once a minute.

    Raises:
        ConnectFailed: It takes none, and this is not to wait.
    """
    proxy = proxy_for(base_url)
    parts = urlsplit(proxy or base_url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    what = f"the proxy {host}:{port}" if proxy is not None else f"{host}:{port}"
    now = asyncio.get_running_loop().time
    began, notices = now(), Notices(str)
    pauses = list(_PAUSES[:retries])
    longer = 0.5
    while (problem := await _problem(host, port, _PATIENCE if waits else began + _PATIENCE - now())) is not None:
        why = f"could not connect to {what}: {problem}"
        if waits:
            pause = longer = min(2 * longer, _MAX_PAUSE)
        elif pauses and now() - began < _PATIENCE:
            pause = pauses.pop(0)
        else:
            raise ConnectFailed(why)
        if waits:
            for line in notices.lines([Wait("unreachable", began, now() + pause, ConnectFailed(why))], now()):
                say(line)
        await asyncio.sleep(pause)
    if waits and now() - began >= 1:
        say(f"the service can be reached, after {duration(now() - began)}")


async def _problem(host: str, port: int, patience: float) -> str | None:
    """Return why a host takes no connection; None if it does."""
    try:
        async with asyncio.timeout(max(0.1, patience)):
            _reader, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"no answer in {patience:.0f} s"
    except (OSError, UnicodeError) as error:
        # asyncio has words of its own, and joins those of several addresses.
        number = re.search(r"\[Errno (\d+)\]", str(error))
        return getattr(error, "strerror", None) or str(error) if number is None else os.strerror(int(number[1]))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None


async def better_url(base_url: str, session: Callable[[str], FineTuneSession]) -> str | None:
    """Return a base URL with the ``/v1`` that was left out, if there is an API at it and none without; else None.

    Args:
        base_url: The base URL.
        session: Returns a session with the service at a base URL.
    """
    if _VERSION.search(urlsplit(base_url).path):
        return None
    longer = f"{base_url}/v1"
    has_jobs = [await _has_jobs(session(url)) for url in (base_url, longer)]
    return longer if has_jobs == [False, True] else None


async def _has_jobs(session: FineTuneSession) -> bool:
    async with session:
        try:
            async with aclosing(session.iter_fine_tunes()) as jobs:
                await anext(jobs, None)
        except (NotFound, ProtocolViolation):
            return False
        except FineTuneError:
            # There is an API, whatever is wrong with this call.
            return True
    return True
