"""Signals before a command has begun, while it ends, and what is said of what they leave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_processes import running
from tests.servers.batchserver import BatchServer
from tests.servers.rawserver import KEY

EARLY = """
import os, sys
from aiofinetune.__main__ import main

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Finder())
sys.argv = ["aiofinetune", "create", "file-1"]
main()
"""
"""Sends a signal when a module is imported."""


@pytest.mark.parametrize("module", ["click", "aiofinetune.cli._jobs", "aiofinetune.cli._data_check"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_modules_are_imported(module: str, number: signal.Signals, status: int) -> None:
    """Ctrl-C in the first second ends a command with the status that says so, and without a traceback."""
    environment = os.environ | {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    code = EARLY.format(module=module, number=int(number))
    done = subprocess.run(  # noqa: S603  # ours
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


