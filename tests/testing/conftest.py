"""The plugin's fixtures, whether or not its entry point is installed, and a plain HTTP client."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aiofinetune.testing import FineTuneServer
from aiofinetune.testing._asyncio_plugin import _fine_tune_session_asyncio as _fine_tune_session_asyncio
from aiofinetune.testing._plugin import fine_tune_address as fine_tune_address
from aiofinetune.testing._plugin import fine_tune_server as fine_tune_server
from aiofinetune.testing._plugin import fine_tune_session as fine_tune_session
from tests.local.plainclient import Client, connected


@pytest.fixture
async def client(fine_tune_server: FineTuneServer) -> AsyncIterator[Client]:
    """A plain HTTP client of the test's server."""
    async with connected(fine_tune_server.base_url, fine_tune_server.api_key) as client:
        yield client
