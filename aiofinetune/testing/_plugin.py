"""The pytest plugin: fixtures of a server and a session.

pytest imports it in every run of whoever has this package, so it imports only pytest and the standard library; a
fixture imports the rest when a test first uses it.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from aiofinetune.session import FineTuneSession
    from aiofinetune.testing import Address, FineTuneServer


@pytest.fixture(scope="session")
def fine_tune_address() -> Iterator[Address]:
    """Where the servers of all tests of this run are found: ``base_url``, ``api_key`` and ``port``.

    Give it to a service that starts once. A test that uses `fine_tune_server` has a fresh server there.
    """
    from aiofinetune.testing._address import reserved_address  # noqa: PLC0415  # see above

    with reserved_address() as address:
        yield address


@pytest.fixture
def fine_tune_server(fine_tune_address: Address) -> Iterator[FineTuneServer]:
    """A server for this test, in a thread: instant jobs, faults on demand, and a record of its requests.

    It warns of faults that the test asked for and that nothing met.
    """
    from aiofinetune.testing._server import FineTuneServer  # noqa: PLC0415  # see above

    with FineTuneServer(port=fine_tune_address.port, api_key=fine_tune_address.api_key).in_thread() as server:
        yield server
        if unmet := server.faults.unmet:
            # The test may have passed because of that. To forget faults on purpose, `clear` them.
            warnings.warn(pytest.PytestWarning(f"faults that nothing met: {'; '.join(unmet)}"), stacklevel=1)


@pytest.fixture
def fine_tune_session(request: pytest.FixtureRequest) -> FineTuneSession:
    """A session with the server of this test, for async tests; its retries do not wait long."""
    if "anyio_backend" in request.fixturenames:
        return _session_of(request, "_fine_tune_session_anyio")
    if request.node.get_closest_marker("asyncio"):
        return _session_of(request, "_fine_tune_session_asyncio")
    pytest.fail(
        "fine_tune_session needs an async test, run by pytest-asyncio or anyio on asyncio; other tests can use"
        " fine_tune_server.base_url and .api_key",
        pytrace=False,
    )


def _session_of(request: pytest.FixtureRequest, fixture: str) -> FineTuneSession:
    session: FineTuneSession = request.getfixturevalue(fixture)
    return session


@pytest.fixture
async def _fine_tune_session_anyio(
    fine_tune_server: FineTuneServer, anyio_backend_name: str
) -> AsyncIterator[FineTuneSession]:
    if anyio_backend_name != "asyncio":
        pytest.fail("fine_tune_session needs asyncio: let the fixture anyio_backend return 'asyncio'", pytrace=False)
    from aiofinetune.testing._sessions import opened_session  # noqa: PLC0415  # see above

    async for session in opened_session(fine_tune_server):
        yield session


def pytest_configure(config: pytest.Config) -> None:
    """Add the session for pytest-asyncio, whose fixtures have a mark of its own."""
    # The first is its name where its entry point is read, the second with "-p".
    if any(map(config.pluginmanager.hasplugin, ("asyncio", "pytest_asyncio.plugin"))):
        from aiofinetune.testing import _asyncio_plugin  # noqa: PLC0415  # Only if pytest-asyncio is installed.

        config.pluginmanager.register(_asyncio_plugin, "aiofinetune-asyncio")
