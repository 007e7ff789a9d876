"""The README: its examples run as they stand, and what it names is there.

Blocks marked "python" and "sh" run one after another in one folder, as a reader would run them. Those marked "py" need
FastAPI or OpenAI's client (tests/testing/test_readme.py).
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from aiofinetune.cli._commands import batch
from aiofinetune.local import LocalServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = [
    (language, text)
    for language, text in re.findall(r"^```(python|sh)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    if "-m venv" not in text  # the two commands: they install this package, and run the tests and the demonstration
]
SHELL = f'set -eo pipefail; aiofinetune() {{ "{sys.executable}" -W error -m aiofinetune "$@"; }}\n'


async def run(language: str, text: str, folder: Path, environment: dict[str, str]) -> str:
    """Run one example to its end, and return what it prints; it must print nothing of its own on stderr."""
    command = [sys.executable, "-W", "error", "-c", text] if language == "python" else ["bash", "-c", SHELL + text]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, f"{text}\n{stdout.decode()}\n{stderr.decode()}"
    assert language == "sh" or stderr == b"", f"{text}\n{stderr.decode()}"
    return stdout.decode()


def written(folder: Path) -> dict[Path, float]:
    """What is in a folder, with the times of the last changes."""
    return {path: path.stat().st_mtime for path in folder.rglob("*")}


async def test_the_examples_run_in_their_order(tmp_path: Path) -> None:
    """In an empty folder every example does what the README says; those that write files can be run a second time."""
    async with LocalServer() as server:
        environment = os.environ | {
            "OPENAI_API_KEY": server.api_key,
            "OPENAI_BASE_URL": server.base_url,
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(tmp_path / "none"),
        }
        folder = tmp_path / "empty"
        folder.mkdir()
        again = []
        for language, text in EXAMPLES:
            before = written(folder)
            stdout = await run(language, text, folder, environment)
            for comment in re.findall(r"print\(.*\)  # (.+)", text):
                assert comment.strip('"') in stdout
            if written(folder) != before:
                again.append((language, text))
        assert again
        for language, text in again:
            await run(language, text, folder, environment)


def test_the_line_for_every_night_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crontab's command has options that exist, and waits for a service that is down when it starts."""
    monkeypatch.chdir(tmp_path)
    for name in ("nightly.toml", "key"):
        Path(name).touch()
    form = r"^0 2 \* \* \* .*? && \.venv/bin/aiofinetune batch (.*?) >>"
    (line,) = re.findall(form, README, flags=re.DOTALL | re.MULTILINE)
    asked = batch.make_context("batch", shlex.split(line)).params
    assert asked["fresh"]
    assert asked["wait_for_service"]


def test_what_is_promised_has_its_test() -> None:
    """Each promise names a test, and each test that the README names is there."""
    promises = README.partition("| promise | test |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert len(promises) > 10
    assert all(re.fullmatch(r"\| .+ \| `tests/\S+\.py::\w+` \|", line) for line in promises)
    for path, name in re.findall(r"`(tests/\S+\.py)::(\w+)`", README):
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), flags=re.MULTILINE), f"{path}::{name}"


def test_links_lead_somewhere() -> None:
    """Each link is to a heading of the README or a file of the project."""
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    anchors = {f"#{re.sub(r'[^a-z0-9 _-]', '', heading.lower()).replace(' ', '-')}" for heading in headings}
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        assert link in anchors or link.startswith("https://") or (ROOT / link).exists(), link


def test_extras_are_named() -> None:
    """The README names every extra, and no other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    installed = {name for names in re.findall(r"'[\w.]*\[([\w,]+)\]'", README) for name in names.split(",")}
    assert installed <= extras
    assert all(f"`{extra}`" in README for extra in extras - {"dev"})
