"""What all tests share."""

from __future__ import annotations

import asyncio
import asyncio.constants
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.fastforward import DebugLoop, FastForwardLoop

# Helpers explain a failed assertion as tests do.
pytest.register_assert_rewrite("tests.servers", "tests.session", "tests.batch", "tests.local")

# No deadline, for shared machines are slow at times; no database, so that a run leaves nothing behind.
# More examples: --hypothesis-profile=long.
settings.register_profile("aiofinetune", deadline=None, database=None, max_examples=100)
settings.register_profile("long", settings.get_profile("aiofinetune"), max_examples=2000)
settings.load_profile("aiofinetune")

# Before NumPy is imported: the suite runs in as many processes as there are cores, and more threads only wait.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# Debug mode keeps where each coroutine was made: one line of it tells, and ten take an eighth of the time of a test.
asyncio.constants.DEBUG_STACK_DEPTH = 1  # type: ignore[misc]  # a constant of asyncio's own code

# Importing aiohttp reads all certificates that this machine trusts: a quarter of the start of each process.
os.environ["SSL_CERT_FILE"] = os.environ["SSL_CERT_DIR"] = os.devnull

# A journal or a store waits for the disk at each commit, most of the time of its test.
_MEMORY = Path("/dev/shm")  # noqa: S108  # pytest makes a folder of this user's there
if (
    _MEMORY.is_dir()
    and shutil.disk_usage(_MEMORY).free > 1 << 30
    and not os.statvfs(_MEMORY).f_flag & getattr(os, "ST_NOEXEC", 0)
):
    os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)

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


_VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_API_VERSION")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True, scope="session")
def _clean_environment() -> Iterator[None]:
    """Hide the key, the service, the proxies and the configuration file of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", "/nowhere")
        for name in list(os.environ):
            if name in _VARIABLES or name.startswith("AIOFINETUNE_") or name.lower() in _PROXIES:
                patch.delenv(name)
        yield


_OF_PROCESSES = (
    "tests.batch.test_command_line",
    "tests.cli.test_processes",
    "tests.cli.test_statuses",
    "tests.local.test_command_line",
    "tests.local.test_trainer",
    "tests.local.test_workers",
    "tests.operation.test_serve",
    "tests.testing.test_requests",
)


@pytest.fixture(autouse=True, scope="module")
def _measured_children(request: pytest.FixtureRequest) -> Iterator[None]:
    """Measure the coverage of child processes only where they are what is tested, as that doubles the cost of each."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ not in _OF_PROCESSES:
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture
def samples() -> Path:
    """The reference's own shapes, one a file."""
    return SAMPLES
