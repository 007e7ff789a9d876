"""The session that the fixtures of pytest-asyncio and anyio share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from aiofinetune.retry import Retry
from aiofinetune.session import FineTuneSession
from aiofinetune.testing._server import FineTuneServer

# A job is in this server's list as soon as it is made.
_QUICK: Final = Retry(base=0.01, cap=0.1, grace=0.2)


async def opened_session(server: FineTuneServer) -> AsyncIterator[FineTuneSession]:
    """Yield a session with a server, and close it; its retries do not wait long."""
    async with FineTuneSession(server.api_key, base_url=server.base_url, retry=_QUICK) as session:
        yield session
