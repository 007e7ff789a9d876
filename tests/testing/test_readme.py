"""The README's tests of a service, run by pytest where FastAPI or OpenAI's client is installed."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = dict(re.findall(r"```py\n# (\w+\.py)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL))

NEEDED = {"test_service.py": "fastapi", "test_openai.py": "openai"}


def test_the_readme_has_the_examples() -> None:
    """The service and its tests are in the README."""
    assert set(FILES) == {"service.py", *NEEDED}


@pytest.mark.parametrize("name", NEEDED)
async def test_an_example_passes(name: str, tmp_path: Path) -> None:
    """The tests of the README pass as they stand, with the plugin."""
    if importlib.util.find_spec(NEEDED[name]) is None:
        pytest.skip(f"{NEEDED[name]} is not installed")
    for each, text in FILES.items():
        (tmp_path / each).write_text(text)
    # OpenAI's client raises for a file of certificates that has none, as this suite sets.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SSL_CERT_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin"),
        *("-c", os.devnull, "--rootdir", str(tmp_path), "--confcutdir", str(tmp_path)),
        *("-p", "aiofinetune.testing._plugin", name),
        cwd=tmp_path,
        env={**inherited, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert f"{FILES[name].count('def test_')} passed" in output.decode()
