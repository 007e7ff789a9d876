"""The command line, but for the commands that have their own tests (batch, data, serve, demo)."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

from click.testing import CliRunner, Result

from aiofinetune.cli._commands import cli
from tests.servers.rawserver import KEY


def shell(*arguments: object, url: str = "http://127.0.0.1:9/v1", key: str = KEY, **environment: str) -> Result:
    """Run a command in this process, in a pipe; its service is at `url`."""
    # click 8.1 mixes stderr into stdout unless it is told not to.
    apart: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    env = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": key, "COLUMNS": None, **environment}
    return CliRunner(**apart).invoke(cli, [str(argument) for argument in arguments], env=env)


async def ashell(*arguments: object, url: str, key: str = KEY, **environment: str) -> Result:
    """Run a command in a thread, while this event loop runs its service."""
    return await asyncio.to_thread(shell, *arguments, url=url, key=key, **environment)


def objects(result: Result) -> list[dict[str, Any]]:
    """Return the JSON lines that a command printed."""
    return [json.loads(line) for line in result.stdout.splitlines()]
