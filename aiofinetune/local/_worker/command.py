"""Start the command for one attempt, where an engine has a worker. The worker imports nothing else of this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Final

EXIT_ABANDONED: Final = 3
"""The exit status of the command if its standard input has ended, or SIGTERM was received."""

_STDERR: Final = 300
"""The number of characters that are kept from the end of what the command writes to stderr."""


def run_command(url: str, token: str) -> tuple[int, str]:
    """Run `aiofinetune.local.remote` for an attempt; return its exit status, and the end of its stderr.

    Its standard input stays open as long as this process lives, so that it ends with this one.
    """
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
        process.stdin.write(json.dumps({"url": url, "token": token}).encode() + b"\n")
        process.stdin.flush()
        stderr = process.stderr.read().decode(errors="replace")
        return process.wait(), stderr.strip()[-_STDERR:]
