"""Download a file's content as bytes, or in constant memory to a file that appears only once it is complete."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiofinetune._http.caller import Caller
from aiofinetune._http.reply_body import MAX_REPLY_BYTES, Incoming, collect
from aiofinetune._local_files import PIECE, save
from aiofinetune.errors import ConnectionLost, ProtocolViolation


async def download(caller: Caller, file_id: str, path: Path | None) -> bytes:
    """Download a file's content; return it, or b"" if it is written to `path`.

    Raises:
        ProtocolViolation: The content is longer than the service says, or too long to be held in memory.
        LocalFileError: The file cannot be written.
    """
    # The size is checked because a reply can be complete as HTTP and still not be the whole file. Zero counts as
    # unknown.
    expected = (await caller.call(caller.endpoints.retrieve_file, file_id)).bytes or 0
    # Uncompressed, so that the bytes of the file are the bytes that are sent.
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    request = caller.build(caller.endpoints.download_file, file_id, headers=headers)

    async def attempt() -> bytes:
        incoming = await caller.transport.open(request, caller.transport.timeout.stall)
        if incoming.status >= 300:
            raise await caller.refusal(caller.endpoints.download_file, incoming)
        with contextlib.closing(incoming):
            read = _reader_of(incoming, file_id, expected)
            if path is not None:
                await save(path, read)
                return b""
            content = await collect(read, expected or MAX_REPLY_BYTES)
        if not expected and len(content) > MAX_REPLY_BYTES:
            raise ProtocolViolation(f"{file_id} has an unknown length and is too long to hold in memory; pass a path")
        return content

    return await caller.retrying(caller.endpoints.download_file, attempt)


def _reader_of(incoming: Incoming, file_id: str, expected: int) -> Callable[[], Awaitable[bytes]]:
    """Return a function that reads a download in pieces, and raises if it is shorter or longer than `expected`."""
    size = 0

    async def read() -> bytes:
        nonlocal size
        piece = await incoming.read(PIECE)
        size += len(piece)
        if size > expected > 0:
            raise ProtocolViolation(f"the download of {file_id} is longer than the {expected} bytes of the file")
        if not piece and size < expected:
            raise ConnectionLost(f"the download of {file_id} ended after {size} of {expected} bytes")
        return piece

    return read
