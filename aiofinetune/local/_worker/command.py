"""Start the command for one attempt, where an engine has a worker. The worker imports little else of this package."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

from aiofinetune.local._worker.folder import MODELS, temporary_folder

EXIT_ABANDONED: Final = 3
"""The exit status of the command if its standard input has ended, or SIGTERM was received."""

_STDERR: Final = 300
"""The number of characters that are kept from the end of what the command writes to stderr."""

_LOCK: Final = threading.Lock()


def _models() -> Path:
    """Return the folder for open models of this process, which is removed with it."""
    with _LOCK:  # A cached function can run twice at once.
        return _make_models()


@functools.cache
def _make_models() -> Path:
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(temporary_folder(MODELS))


def run_command(url: str, token: str) -> tuple[int, str]:
    """Run `aiofinetune.local.remote` for an attempt; return its exit status, and the end of its stderr.

    Its standard input stays open as long as this process lives, so that it ends with this one.
    """
    order = {"url": url, "token": token, "models": str(_models())}
    process = subprocess.Popen(  # this package's own command
        [sys.executable, "-P", "-m", "aiofinetune.local.remote"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        start_new_session=True,
    )
    assert process.stdin is not None  # noqa: S101  # It is a pipe.
    assert process.stderr is not None  # noqa: S101  # It is a pipe.
    with process.stdin, process.stderr:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        stderr = process.stderr.read().decode(errors="replace")
        return process.wait(), stderr.strip()[-_STDERR:]
