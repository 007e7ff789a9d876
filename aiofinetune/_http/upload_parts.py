"""Upload a large file in parts, and begin again at the part that failed."""

from __future__ import annotations

import secrets

from aiofinetune import structuring
from aiofinetune._http.caller import Caller
from aiofinetune._http.upload_body import Form, Progress, progress_from, send_form
from aiofinetune._http.upload_source import Content, section_of
from aiofinetune._other_models import Upload, UploadPart
from aiofinetune.dialects._requests import Endpoint
from aiofinetune.errors import ProtocolViolation
from aiofinetune.models import File


class PartedUpload:
    """An upload in parts. Each part is sent until it has arrived; the file exists once the upload is complete.

    An upload that is given up expires at the service by itself.

    Args:
        caller: Makes the calls.
        content: The file, whose size is known and which can be rewound.
        size: Its size in bytes.
        progress: Called with the bytes sent so far and the total.
    """

    def __init__(self, caller: Caller, content: Content, size: int, progress: Progress | None) -> None:
        self._caller = caller
        self._content = content
        self._size = size
        self._progress = progress
        self.endpoint: Endpoint[Upload] = caller.dialect.offered(caller.endpoints.complete_upload, "complete_upload")
        """What completes the upload."""
        self._id = ""
        self._part_ids: list[str] = []

    async def send_parts(self, name: str, purpose: str) -> None:
        """Begin the upload, and send all its parts in order."""
        # The contract requires a type; it does not list the type of JSON Lines, and services go by the purpose.
        asked = {"filename": name, "purpose": purpose, "bytes": self._size, "mime_type": "application/jsonl"}
        endpoint = self._caller.dialect.offered(self._caller.endpoints.begin_upload, "begin_upload")
        begun = await self._caller.call(endpoint, body=structuring.write_request(asked))
        self._id = begun.id
        part_size = self._caller.dialect.part_size
        for offset in range(0, self._size, part_size):
            part = await self._send_part(offset, min(part_size, self._size - offset))
            self._part_ids.append(part.id)

    async def complete(self) -> File:
        """Have the service put the parts together, once; return the file.

        Raises:
            ProtocolViolation: The reply does not describe the file.
        """
        body = structuring.write_request({"part_ids": self._part_ids})
        done = await self._caller.exchange_once(self.endpoint, self._id, body=body)
        if done.file is None:
            raise ProtocolViolation(f"the upload {self._id} is {done.status!r}, but the reply names no file")
        return done.file

    async def _send_part(self, offset: int, size: int) -> UploadPart:
        endpoint = self._caller.dialect.offered(self._caller.endpoints.upload_part, "upload_part")

        async def attempt() -> UploadPart:
            boundary = secrets.token_hex(16)
            part = await section_of(self._content, offset, size)
            form = Form(part, _frame(boundary), progress_from(offset, self._size, self._progress))
            return await send_form(self._caller, endpoint, form, boundary, self._id)

        return await self._caller.retrying(endpoint, attempt)


def _frame(boundary: str) -> tuple[bytes, bytes]:
    """Return the bytes before and after a part in a form with the field `data` (RFC 7578)."""
    head = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="data"; filename="part"\r\n'
        "Content-Type: application/octet-stream\r\n"
        "\r\n"
    )
    return head.encode(), f"\r\n--{boundary}--\r\n".encode()
