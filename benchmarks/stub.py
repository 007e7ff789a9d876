"""Run the stub server, and the peers' programs against it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.environments import CHECKOUT

TIMEOUT: Final = 120.0
"""Seconds that one measurement may take."""


@contextlib.contextmanager
def stub(program: list[str], core: int | None, options: list[str]) -> Iterator[str]:
    """Run the stub server; give its base URL."""
    process = subprocess.Popen(  # noqa: S603  # our own programs
        [*pinned(core), *program, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None  # noqa: S101  # for mypy: it is a pipe
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.kill()


def pinned(core: int | None) -> list[str]:
    """Return what begins a command that runs on one core."""
    return [] if core is None else [sys.executable, "-c", _PIN, str(core)]


_PIN: Final = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execv(sys.argv[2], sys.argv[2:])"


def server_program(folder: Path) -> list[str]:
    """The stub, compiled if there is a compiler, else on asyncio."""
    source = Path(__file__).with_name("server.c")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is not None:
        done = subprocess.run([compiler, "-O2", "-o", str(folder / "server"), str(source)], check=False)  # noqa: S603  # our own programs
        if done.returncode == 0:
            return [str(folder / "server")]
    return [sys.executable, str(source.with_suffix(".py"))]


def figures_of(command: list[str]) -> dict[str, Any]:
    """Run a peer's program; give its figures, or why there are none."""
    try:
        done = subprocess.run(  # noqa: S603  # our own programs
            command,
            cwd=CHECKOUT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT + 30,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no end after {TIMEOUT:.0f} s"}
    try:
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1][:200] if lines else f"ended with {done.returncode}, without a word"}
    return figures


def environment() -> dict[str, str]:
    """What the peers see of this process's environment: nothing that changes what a client does."""
    hidden = ("PYTHON", "OPENAI_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(hidden)}
