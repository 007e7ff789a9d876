"""A stream of given bytes, read to its end."""

from __future__ import annotations

from asyncio import StreamWriter

from aiofinetune import FineTuneError
from tests.servers.rawserver import Received, talking_to
from tests.session.calls import ONCE

DONE = b"data: [DONE]\n\n"


async def messages(raw: bytes, *, closes: bool = True) -> tuple[list[str], Exception | None]:
    """What a stream of these bytes gives, and what it ends in."""

    async def handler(request: Received, writer: StreamWriter) -> None:
        writer.write(raw)
        if closes:
            writer.close()
        else:
            await request.gone()

    said: list[str] = []
    async with talking_to(handler, retry=ONCE) as session:
        try:
            async with session.stream_fine_tune_events("ft-1") as events:
                async for each in events:
                    said.append(each.message)  # noqa: PERF401  # what came before a failure counts
        except FineTuneError as failure:
            return said, failure
    return said, None
