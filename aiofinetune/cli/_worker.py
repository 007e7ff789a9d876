"""Run attempts for a server on another machine, until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aiofinetune.errors import ConfigurationError, FineTuneError
from aiofinetune.local._trainers.remote import attempts_url
from aiofinetune.local._worker.calls import Refusal
from aiofinetune.local._worker.claiming import work
from aiofinetune.local._worker.folder import remove_abandoned

_MIN_TOKEN: Final = 16
"""The least number of characters of a token; fewer can be guessed."""


async def run_worker(
    server: str, token_file: Path, resource: Sequence[tuple[str, int]], *, allow_plain_http: bool
) -> None:
    """Run attempts until SIGINT or SIGTERM. The server learns that it is stopped, and gives its job to another.

    Args:
        server: The URL of the server.
        token_file: The file with the token that claims attempts.
        resource: What this machine has, such as ``("gpu", 1)``.
        allow_plain_http: Whether the URL may be http, although it is not on loopback.

    Raises:
        ConfigurationError: The URL or the file cannot be used.
        FineTuneError: The token is wrong, or the server cannot be reached.
    """
    url = attempts_url(server, "--server", allow_plain_http=allow_plain_http)
    token = await asyncio.to_thread(read_token, token_file)
    _log_to_stderr()
    await asyncio.to_thread(remove_abandoned)
    loop, working = asyncio.get_running_loop(), asyncio.ensure_future(work(url, token, dict(resource)))
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, working.cancel)
    try:
        await asyncio.wait([working])
        if not working.cancelled():
            working.result()
    except Refusal as refusal:
        raise FineTuneError(f"the server refuses this worker: {refusal.message}") from refusal


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        ConfigurationError: The file cannot be read, or what it contains cannot be a token.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: {getattr(error, 'strerror', None) or 'is not ASCII'}") from error
    if len(token) < _MIN_TOKEN or not token.isprintable():
        raise ConfigurationError(f"{path}: expected a token of at least {_MIN_TOKEN} characters on one line")
    return token


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("aiofinetune")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
