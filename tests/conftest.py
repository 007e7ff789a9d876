"""What all tests share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.fastforward import DebugLoop, FastForwardLoop

# Helpers explain a failed assertion as tests do.
pytest.register_assert_rewrite("tests.servers", "tests.session", "tests.batch", "tests.local")

# No deadline, for shared machines are slow at times; no database, so that a run leaves nothing behind.
settings.register_profile("aiofinetune", deadline=None, database=None, max_examples=100)
settings.load_profile("aiofinetune")

# Before NumPy is imported: the suite runs in as many processes as there are cores, and more threads only wait.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

SAMPLES = Path(__file__).parent / "samples"


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a test by the first line of a reply: the rest may hold the second of its making, and workers must agree."""
    return val.partition(b"\r\n")[0].decode() if isinstance(val, bytes) and val.startswith(b"HTTP/") else None


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests of timeouts and pauses on a clock that jumps, and those of the main paths on uvloop too."""
    if item.get_closest_marker("fastforward"):
        return {"fastforward": FastForwardLoop}
    if item.get_closest_marker("uvloop"):
        return {"asyncio": DebugLoop, "uvloop": _new_uvloop}
    return {"asyncio": DebugLoop}


def _new_uvloop() -> asyncio.AbstractEventLoop:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


_VARIABLES = (*("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_API_VERSION"),)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the key, the service, the proxies and the configuration file of whoever runs the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nowhere")
    for name in (*_VARIABLES, *filter(lambda name: name.startswith("AIOFINETUNE_"), list(os.environ))):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def samples() -> Path:
    """The reference's own shapes, one a file."""
    return SAMPLES
