"""The plugin's fixtures, whether or not its entry point is installed, and a plain HTTP client."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aiofinetune.testing import FineTuneServer
from aiofinetune.testing._asyncio_plugin import _fine_tune_session_asyncio
from aiofinetune.testing._plugin import fine_tune_address, fine_tune_server, fine_tune_session
from tests.local.plainclient import Client, connected

__all__ = ["_fine_tune_session_asyncio", "fine_tune_address", "fine_tune_server", "fine_tune_session"]


@pytest.fixture
async def client(fine_tune_server: FineTuneServer) -> AsyncIterator[Client]:  # It is the fixture.
    """A plain HTTP client of the test's server."""
    async with connected(fine_tune_server.base_url, fine_tune_server.api_key) as client:
        yield client
