"""Check training data before it is uploaded."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import TYPE_CHECKING, Any

from aiofinetune._http.upload_source import Content
from aiofinetune.errors import RequestInvalid

if TYPE_CHECKING:
    from aiofinetune.data import Report, Rules


async def check_content(content: Content, name: str, rules: Rules) -> None:
    """Check the training data that is about to be uploaded, in a thread and in bounded memory.

    Args:
        content: The data; the upload rewinds it.
        name: What to call the file in an error; its suffix may tell the format.
        rules: What the service takes.

    Raises:
        DatasetError: The service would refuse the data.
        RequestInvalid: The data can be read only once.
    """
    if content.file is None:
        raise RequestInvalid(
            "check", "this source can be read only once, for the upload; pass a path or bytes, or leave check out"
        )
    reader = _Reader(content.file)
    checking: asyncio.Future[Report] = asyncio.get_running_loop().run_in_executor(
        None, _check, reader, name, content.size, rules
    )
    # Retrieve the exception, so that asyncio does not log that it was never retrieved.
    checking.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait([checking])
    finally:
        # If this is cancelled, the thread ends at its next read.
        reader.stopped.set()
        await asyncio.wait([checking])
    checking.result().raise_for_errors()


def _check(reader: _Reader, name: str, size: int | None, rules: Rules) -> Report:
    # Few programs need it, and to import it takes long enough to be kept off the event loop.
    from aiofinetune.data._check import check_stream  # noqa: PLC0415

    return check_stream(reader, name, size, rules)


class _Reader(io.RawIOBase):
    """Reads a file until it is stopped. Closing it leaves the file open."""

    def __init__(self, file: Any) -> None:  # Any: only `read` is sure to be there
        self._file = file
        self.stopped = threading.Event()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # Any: as io.RawIOBase has it
        if self.stopped.is_set():
            raise OSError("the check was cancelled")
        try:
            piece = self._file.read(len(buffer)) or b""
        except Exception as error:  # whatever a caller's own object raises
            raise OSError(str(error)) from error
        buffer[: len(piece)] = piece
        return len(piece)
