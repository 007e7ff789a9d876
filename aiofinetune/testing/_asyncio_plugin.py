"""The fixture of a session for pytest-asyncio; `_plugin` registers it if that is installed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest_asyncio

from aiofinetune.testing._plugin import opened_session

if TYPE_CHECKING:
    from aiofinetune.session import FineTuneSession
    from aiofinetune.testing import FineTuneServer


@pytest_asyncio.fixture
async def _fine_tune_session_asyncio(fine_tune_server: FineTuneServer) -> AsyncIterator[FineTuneSession]:
    async for session in opened_session(fine_tune_server):
        yield session
