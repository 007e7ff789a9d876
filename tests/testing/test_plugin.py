"""The pytest plugin in runs of its own: which tests it serves, and that it costs nothing unless it is used."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = '{"prompt": "wren ->", "completion": " bird"}\\n'

UNUSED = """
import sys

def test_nothing_is_imported():
    assert "aiofinetune.testing._plugin" in sys.modules
    assert not {"aiohttp", "attrs", "cattrs", "numpy", "aiofinetune.local", "aiofinetune.session"} & set(sys.modules)
"""

SYNC = """
import json
import urllib.request

def call(server, path):
    request = urllib.request.Request(server.base_url + path, headers={"Authorization": f"Bearer {server.api_key}"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)

def test_a_call(fine_tune_server, fine_tune_address):
    assert fine_tune_server.base_url == fine_tune_address.base_url
    call(fine_tune_server, "/fine-tunes")
    fine_tune_server.faults.fail_next("list", times=None)
    assert fine_tune_server.requests.endpoints == ["list"]

def test_a_call_afterwards(fine_tune_server, fine_tune_address):
    assert fine_tune_server.base_url == fine_tune_address.base_url
    assert not fine_tune_server.requests and not fine_tune_server.faults.pending
    call(fine_tune_server, "/fine-tunes")
"""

ASYNC = """
import pytest
from aiofinetune import FineTuneRequest

@pytest.mark.{runner}
@pytest.mark.parametrize("number", [1, 2])
async def test_a_job(fine_tune_session, fine_tune_server, number):
    file = await fine_tune_session.upload_file(b'{examples}')
    job = await fine_tune_session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada"))
    assert (await fine_tune_session.wait(job.id)).status == "succeeded"
    assert len(await fine_tune_session.list_fine_tunes()) == 1
"""

NEEDS_ASYNC = """
def test_a_session(fine_tune_session):
    pass
"""


async def run(tmp_path: Path, test: str, *options: str) -> tuple[int, str]:
    """Run a test file by pytest with this plugin and no other, but for those in `options`."""
    (tmp_path / "test_it.py").write_text(test)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"),
        # Without the last of these, pytest looks at all that is beside the folder, and beside those that it is in.
        *("-c", os.devnull, "--rootdir", str(tmp_path), "--confcutdir", str(tmp_path)),
        *("-p", "aiofinetune.testing._plugin", *options, "test_it.py"),
        cwd=tmp_path,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_the_plugin_imports_nothing_until_it_is_used(tmp_path: Path) -> None:
    """A run that uses no fixture of the plugin imports neither aiohttp nor anything else for it."""
    status, output = await run(tmp_path, UNUSED)
    assert status == 0, output


async def test_sync_and_async_tests_are_served(tmp_path: Path) -> None:
    """Each test has a fresh server at the same address, and an async one a session; a sync one is told what it has."""
    test = SYNC + ASYNC.format(runner="asyncio", examples=EXAMPLES) + NEEDS_ASYNC
    options = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")
    status, output = await run(tmp_path, test, *options)
    assert (status, "4 passed, 1 error" in output) == (1, True), output
    assert "other tests can use fine_tune_server.base_url" in output


UNMET = """
import pytest

def test_a_fault_that_nothing_meets(fine_tune_server):
    fine_tune_server.faults.fail_next("create", times=2)

def test_a_fault_that_is_forgotten(fine_tune_server):
    fine_tune_server.faults.fail_next("create")
    fine_tune_server.faults.clear()

def test_a_fault_without_end(fine_tune_server):
    fine_tune_server.faults.fail_next("create", times=None)
    fine_tune_server.faults.hold_jobs()
"""


async def test_a_fault_that_nothing_met_is_told(tmp_path: Path) -> None:
    """A test that asks for a fault and does not meet it has a warning, which is an error with ``-W error``."""
    status, output = await run(tmp_path, UNMET)
    assert (status, "3 passed, 1 error" in output) == (1, True), output
    assert "faults that nothing met: " in output
    assert "create" in output


EVERY_KIND = """
import asyncio
import os
import unittest
import urllib.request
import warnings

import pytest

from aiofinetune import FineTuneRequest, FineTuneSession
from aiofinetune.testing import FineTuneServer

def session_with(server):
    return FineTuneSession(server.api_key, base_url=server.base_url)

async def list_jobs(server):
    async with session_with(server) as session:
        return await session.list_fine_tunes()

class TestOfUnittest(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def take_server(self, fine_tune_server):
        self.server = fine_tune_server

    async def test_a_list(self):
        self.assertEqual(await list_jobs(self.server), ())

def test_a_job_that_is_left_running(fine_tune_server):
    async def leave():
        async with session_with(fine_tune_server) as session:
            file = await session.upload_file(b'{examples}')
            await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada"))
    fine_tune_server.faults.hold_jobs()
    asyncio.run(leave())

def test_two_servers_are_apart(fine_tune_server):
    with FineTuneServer().in_thread() as other:
        asyncio.run(list_jobs(other))
        assert other.requests.endpoints == ["list"]
    assert not fine_tune_server.requests

def test_a_server_beside_a_running_loop():
    async def notebook():
        with FineTuneServer().in_thread() as server:
            return await list_jobs(server)
    assert asyncio.run(notebook()) == ()

def test_a_forked_process_is_served(fine_tune_server):
    with warnings.catch_warnings(action="ignore"):  # of Python 3.12: other threads run
        child = os.fork()
    if child == 0:
        try:
            key = {{"Authorization": f"Bearer {{fine_tune_server.api_key}}"}}
            request = urllib.request.Request(fine_tune_server.base_url + "/fine-tunes", headers=key)
            os._exit(urllib.request.urlopen(request, timeout=30).status)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 200
    assert fine_tune_server.requests.endpoints == ["list"]
"""


@pytest.mark.parametrize("options", [("-p", "xdist", "-n", "2"), ("-p", "no:asyncio")], ids=["xdist", "no asyncio"])
async def test_tests_of_every_kind_are_served(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Tests of unittest, of several servers, in a running loop and in forked processes work, also under xdist."""
    status, output = await run(tmp_path, EVERY_KIND.format(examples=EXAMPLES), *options)
    assert (status, "5 passed" in output) == (0, True), output


ANYIO_BACKEND = """
@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


@pytest.mark.skipif(importlib.util.find_spec("anyio") is None, reason="anyio is not installed")
async def test_tests_of_anyio_have_a_session(tmp_path: Path) -> None:
    """A session works with anyio on asyncio."""
    test = ASYNC.format(runner="anyio", examples=EXAMPLES) + ANYIO_BACKEND
    status, output = await run(tmp_path, test, "-p", "anyio")
    assert (status, "2 passed" in output) == (0, True), output


def test_pytest_finds_the_plugin() -> None:
    """The package's entry point names the plugin."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"aiofinetune": "aiofinetune.testing._plugin"}
