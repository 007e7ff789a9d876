"""The fixture of a session for pytest-asyncio; `_plugin` registers it if that is installed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest_asyncio

if TYPE_CHECKING:
    from aiofinetune.session import FineTuneSession
    from aiofinetune.testing import FineTuneServer


@pytest_asyncio.fixture
async def _fine_tune_session_asyncio(fine_tune_server: FineTuneServer) -> AsyncIterator[FineTuneSession]:
    from aiofinetune.testing._sessions import opened_session  # noqa: PLC0415  # when a test uses it

    async for session in opened_session(fine_tune_server):
        yield session
