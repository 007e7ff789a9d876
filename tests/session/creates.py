"""A session with a service that loses replies, and a request for a job to make there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs

from aiofinetune import FineTuneRequest, FineTuneSession, Retry, Timeout
from tests.servers.faultserver import FaultServer
from tests.servers.service import Service
from tests.support.checks import QUICK, USUAL, nothing_left_open, session_for

CREATE = "create_fine_tune"
LIST = "list_fine_tunes"


@asynccontextmanager
async def talking(
    *,
    retry: Retry = QUICK,
    timeout: Timeout = USUAL,  # noqa: ASYNC109  # for the session
    service: Service | None = None,
) -> AsyncIterator[tuple[FaultServer, FineTuneSession, FineTuneRequest]]:
    """A server, a session with it that leaves nothing open, and a request for a job."""
    async with nothing_left_open(), FaultServer(service) as server:
        file = server.service.add_file("train.jsonl", b"{}\n")
        request = FineTuneRequest(training_file=file, model="ada", n_epochs=2)
        async with session_for(server, retry=retry, timeout=timeout) as session:
            yield server, session, request
        await server.left()


def asked_for(request: FineTuneRequest) -> dict[str, object]:
    return attrs.asdict(request, filter=lambda _attribute, value: value is not None)
