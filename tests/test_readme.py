"""Every example of the README runs as it stands; those marked "py" need OpenAI's client (tests/clients)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest

from aiofinetune.local import LocalServer

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"example-{number}" for number in range(1, len(EXAMPLES) + 1)])
async def test_example(example: str, tmp_path: Path) -> None:
    """A Python example of the README runs to its end against the embedded server, and says nothing on stderr."""
    rows = [{"prompt": f"{name} ->", "completion": f" {kind}"} for kind, name in ANIMALS]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    async with LocalServer() as server:
        environment = os.environ | {"OPENAI_API_KEY": server.api_key, "OPENAI_BASE_URL": server.base_url}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", example,
            cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    assert stderr == b""
    for comment in re.findall(r"print\(.*\)  # (.+)", example):
        assert comment.strip('"') in stdout.decode()


ANIMALS = [("bird", "wren"), ("bird", "owl"), ("fish", "carp"), ("fish", "eel")] * 8
