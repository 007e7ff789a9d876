"""Download inputs and upload outputs. What a broken connection has cut off is asked for, or sent, from there on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote

import aiohttp

from aiofinetune._threads import in_thread
from aiofinetune.errors import ProtocolViolation
from aiofinetune.local._worker.calls import Calls, Passing, Refusal

_PIECE: Final = 1 << 20
"""The number of bytes that are read or written at once."""


async def fetch(calls: Calls, name: str, size: int, path: Path) -> None:
    """Download an input. If the connection breaks, the next request asks for the rest."""
    await in_thread(None, lambda: path.parent.mkdir(parents=True, exist_ok=True))
    async with _opened(path, "wb") as file:
        received = 0

        def rest() -> dict[str, str]:
            return {"Range": f"bytes={received}-"} if received else {}

        async def read(response: aiohttp.ClientResponse) -> None:
            nonlocal received
            if response.status == 200 and received:
                received = await in_thread(None, lambda: file.seek(0))
            async for piece in response.content.iter_chunked(_PIECE):
                received += len(piece)
                if received > size:
                    raise ProtocolViolation(f"the server sent more of {name} than the {size} bytes that it has")
                await in_thread(None, functools.partial(file.write, piece))

        while received < size:
            await calls.call("GET", f"/inputs/{quote(name)}", read, headers=rest)


async def upload(calls: Calls, path: Path) -> None:
    """Upload an output. If the connection breaks, the next request sends the rest."""
    size = (await in_thread(None, path.stat)).st_size
    url = f"/outputs/{quote(path.name)}"
    async with _opened(path, "rb") as file:
        tries = 0
        while (arrived := int((await calls.json("GET", url))["bytes"])) != size or not size:
            await _send_rest(calls, url, file, arrived if arrived < size else 0)
            tries += 1
            if not size:
                return
            await asyncio.sleep(min(tries * 0.1, 2))


async def _send_rest(calls: Calls, url: str, file: BinaryIO, start: int) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        position = start
        while piece := await in_thread(None, functools.partial(os.pread, file.fileno(), _PIECE, position)):
            yield piece
            position += len(piece)

    async def read(response: aiohttp.ClientResponse) -> None:
        await response.read()

    try:
        await calls.once("PUT", url, read, params={"start": str(start)}, body=pieces())
    except Passing:
        pass  # The caller asks what has arrived, and goes on from there.
    except Refusal as refusal:
        if refusal.status != 409:
            raise


@contextlib.asynccontextmanager
async def _opened(path: Path, mode: str) -> AsyncIterator[BinaryIO]:
    file: Any = await in_thread(None, lambda: path.open(mode))  # Any: `open` returns what the mode says
    try:
        yield file
    finally:
        await in_thread(None, file.close)
