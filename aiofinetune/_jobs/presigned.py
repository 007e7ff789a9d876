"""Upload a file to where the service says: ask for a URL, put the bytes there, and wait until the service read them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import secrets
from functools import partial
from typing import Final, NamedTuple, TypeVar

from aiofinetune import structuring
from aiofinetune._http.caller import Caller
from aiofinetune._http.storage import Storage, is_service_private, location_of
from aiofinetune._http.upload_body import Progress, fields_form, progress_from
from aiofinetune._http.upload_source import Content, section_of
from aiofinetune._observe import in_short
from aiofinetune._other_models import PartTarget, Upload
from aiofinetune.dialects._requests import Endpoint, Reply, Request
from aiofinetune.errors import (
    BadRequest,
    Conflict,
    DatasetError,
    FineTuneError,
    NotFound,
    ProtocolViolation,
    RequestInvalid,
)
from aiofinetune.models import File

T = TypeVar("T")

_log = logging.getLogger("aiofinetune")

_TYPES: Final = ("jsonl", "csv", "parquet")
"""The types of files, which are the suffixes of their names."""
_UNREAD: Final = ("pending", "running")
"""The statuses of a file that the service has not read yet."""
_CONFLICT: Final = 409
_MIN_PAUSE: Final = 1.0
_MAX_PAUSE: Final = 10.0
"""The bounds, in seconds, of the pause between two looks at a file that the service is reading."""


class _Asked(NamedTuple):
    """What is said about a file before its bytes are sent."""

    name: str
    purpose: str
    type: str
    size: int
    checksum: str

    @property
    def fields(self) -> dict[str, str]:
        """The fields of the form that asks for a URL."""
        return {
            "purpose": self.purpose,
            "file_name": self.name,
            "file_type": self.type,
            "checksum": self.checksum,
        }


class _Exists(Exception):
    """The service has a file of equal content. This never leaves this module.

    Args:
        file_id: The id of that file.
        refusal: The service's refusal.
    """

    def __init__(self, file_id: str, refusal: FineTuneError) -> None:
        super().__init__(file_id, refusal)
        self.file_id = file_id
        self.refusal = refusal


class PresignedUpload:
    """One upload to a presigned URL, or to several.

    Each step is repeated by itself if it fails, so that bytes which have arrived are not sent again. A file of equal
    content that the service has already is used, and nothing is sent.

    Args:
        caller: Makes the calls.
        content: The file.
        progress: Called with the bytes sent so far and the total.
    """

    def __init__(self, caller: Caller, content: Content, progress: Progress | None) -> None:
        self._caller = caller
        self._endpoints = caller.endpoints
        self._content = content
        self._progress = progress

    async def upload(self, name: str, purpose: str) -> File:
        """Upload the file, and wait until the service has read it.

        Raises:
            RequestInvalid: The source can be read only once, its type is not known, or it is too large.
            DatasetError: The service has read the file and cannot use it.
        """
        asked = await self._describe(name, purpose)
        storage = Storage(self._caller, may_be_private=await is_service_private(self._caller.base_url))
        max_form = self._caller.dialect.max_form
        is_large = max_form is not None and asked.size > max_form
        try:
            file = await (self._upload_in_parts if is_large else self._upload_at_once)(asked, storage)
        except _Exists as existing:
            file = await self._equal_file(asked, existing)
        return await self._when_read(file, name)

    async def _describe(self, name: str, purpose: str) -> _Asked:
        kind = name.rpartition(".")[2].lower()
        if kind not in _TYPES:
            suffixes = ", ".join(f".{each}" for each in _TYPES)
            raise RequestInvalid("filename", f"expected a name that ends with one of {suffixes}, got {name!r}")
        if self._content.rewind is None:
            words = "the service wants its checksum first, and this source can be read only once; pass a path or bytes"
            raise RequestInvalid("file", words)
        limit = self._caller.dialect.max_file
        if limit is not None and (self._content.size or 0) > limit:
            raise RequestInvalid(
                "file", f"its {self._content.size} bytes are more than the {limit} that the service takes; split it"
            )
        digest, size = hashlib.sha256(), 0
        await self._content.rewind(0)
        while piece := await self._content.read():
            size += len(piece)
            await asyncio.to_thread(digest.update, piece)
        return _Asked(name, purpose, kind, size, digest.hexdigest())

    # At once

    async def _upload_at_once(self, asked: _Asked, storage: Storage) -> File:
        url, file_id = await self._caller.retrying(self._endpoints.upload_file, partial(self._ask, asked, storage))
        await storage.put(url, partial(section_of, self._content, 0, asked.size), self._progress)
        return await self._begin_reading(file_id)

    async def _ask(self, asked: _Asked, storage: Storage) -> tuple[str, str]:
        """Ask once for a URL; return it, and the id of the file."""
        endpoint, boundary = self._endpoints.upload_file, secrets.token_hex(16)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        request = self._caller.build(endpoint, body=fields_form(asked.fields, boundary), headers=headers)
        reply = await self._fetch(endpoint, request)
        header = self._caller.dialect.file_header
        status, location, file_id = reply.status, location_of(reply), reply.headers.get(header)
        # The locals of a traceback must not show a URL that contains the key.
        del reply
        if not location or not file_id:
            raise ProtocolViolation(
                f"the service answered {status} without a URL for the file and its id (Location, {header})"
            )
        return storage.target(request.url, location), file_id

    async def _fetch(self, endpoint: Endpoint[T], request: Request) -> Reply:
        """Send once what asks to begin an upload.

        Raises:
            _Exists: The service has a file of equal content.
        """
        reply = await self._caller.fetch(request)
        if reply.status < 400:
            return reply
        refusal = self._caller.error_of(endpoint, reply)
        if isinstance(refusal, Conflict) and (existing := _file_id_of(reply)) is not None:
            raise _Exists(existing, refusal)
        raise refusal

    # In parts

    async def _upload_in_parts(self, asked: _Asked, storage: Storage) -> File:
        count = math.ceil(asked.size / self._caller.dialect.part_size)
        # All parts but the last have the same size, which the service computes from their number.
        part_size = math.ceil(asked.size / count)
        begun = await self._begin_parts(asked, count)
        try:
            etags = [
                await self._put_part(storage, target, part_size, asked.size)
                for target in sorted(begun.targets, key=lambda target: target.number)
            ]
            return await self._complete(begun, etags)
        except FineTuneError:
            await self._abort(begun)
            raise

    async def _begin_parts(self, asked: _Asked, count: int) -> Upload:
        endpoint = self._caller.dialect.offered(self._endpoints.begin_upload, "begin_upload")
        body = structuring.write_request({**asked.fields, "file_size": asked.size, "num_parts": count})

        async def attempt() -> Upload:
            reply = await self._fetch(endpoint, self._caller.build(endpoint, body=body))
            return await self._caller.decode(endpoint, reply)

        begun = await self._caller.retrying(endpoint, attempt)
        if not begun.file_id or sorted(target.number for target in begun.targets) != [*range(1, count + 1)]:
            raise ProtocolViolation(
                f"the upload {begun.id} does not have the id of a file and a URL for each of {count} parts"
            )
        return begun

    async def _put_part(self, storage: Storage, target: PartTarget, part_size: int, size: int) -> dict[str, object]:
        """Put one part; return what completes the upload."""
        offset = (target.number - 1) * part_size
        url = storage.target(self._caller.base_url, target.url)
        content = partial(section_of, self._content, offset, min(part_size, size - offset))
        reply = await storage.put(url, content, progress_from(offset, size, self._progress), target.headers)
        etag = reply.headers.get("etag", "").strip('"')
        if not etag:
            raise ProtocolViolation(
                f"the storage took part {target.number}, but sent no ETag, which completes the upload"
            )
        return {"part_number": target.number, "etag": etag}

    async def _complete(self, begun: Upload, etags: list[dict[str, object]]) -> File:
        """Have the service put the parts together; if the reply is lost, the file may be there."""
        endpoint = self._caller.dialect.offered(self._endpoints.complete_upload, "complete_upload")
        body = structuring.write_request({"upload_id": begun.id, "file_id": begun.file_id, "parts": etags})
        try:
            done = await self._caller.call(endpoint, body=body)
        except (BadRequest, Conflict, NotFound, ProtocolViolation):
            # An earlier attempt may have completed it.
            file = await self._caller.call(self._endpoints.retrieve_file, begun.file_id or "")
            if not file.bytes:
                raise
            return file
        if done.file is None:
            raise ProtocolViolation(f"the upload {begun.id} is complete, but the reply names no file")
        return done.file

    async def _abort(self, begun: Upload) -> None:
        """Tell the service that the parts are not needed, as far as it listens."""
        if (endpoint := self._endpoints.abort_upload) is None:
            return
        body = structuring.write_request({"upload_id": begun.id, "file_id": begun.file_id})
        try:
            await self._caller.fetch(self._caller.build(endpoint, body=body))
        except FineTuneError as error:
            _log.info("aborting the upload %s failed: %s", begun.id, in_short(error))

    # Afterwards

    async def _equal_file(self, asked: _Asked, existing: _Exists) -> File:
        """Return the file of equal content that the service has already.

        Raises:
            Conflict: It is of no use: its content has not arrived, or it is for something else.
        """
        file = await self._caller.call(self._endpoints.retrieve_file, existing.file_id)
        odd = [
            f"{field} {found!r} and not {wanted!r}"
            for field, found, wanted in (("bytes", file.bytes, asked.size), ("purpose", file.purpose, asked.purpose))
            if found not in (None, wanted)
        ]
        if odd:
            words = (
                f"the service says that {file.id} has the same content, but it has {', '.join(odd)}; delete it first"
            )
            raise Conflict(_CONFLICT, words) from existing.refusal
        _log.info("%s has the content of %s already; it is used", file.id, asked.name)
        return file

    async def _begin_reading(self, file_id: str) -> File:
        """Tell the service that the bytes have arrived; return the file as it is then."""
        endpoint = self._endpoints.process_file
        if endpoint is None:
            return await self._caller.call(self._endpoints.retrieve_file, file_id)
        try:
            return await self._caller.call(endpoint, file_id)
        except (BadRequest, Conflict, ProtocolViolation):
            # An earlier attempt may have told it.
            file = await self._caller.call(self._endpoints.retrieve_file, file_id)
            if file.status is None:
                raise
            return file

    async def _when_read(self, file: File, name: str) -> File:
        """Wait until the service has read the file.

        Raises:
            DatasetError: The service cannot use it.
        """
        pause, said = _MIN_PAUSE, ""
        while file.status in _UNREAD:
            if file.status != said:
                said = file.status
                _log.info("waiting until the service has read %s: it is %s", file.id, said)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)
            file = await self._caller.call(self._endpoints.retrieve_file, file.id)
        if file.status == "error":
            report = file.status_details or "it does not say why"
            raise DatasetError(name, None, f"the service cannot use the file, which it keeps as {file.id}: {report}")
        return file


def _file_id_of(reply: Reply) -> str | None:
    """Return the id of the file that a refusal names."""
    try:
        value = structuring.read_json(reply.body)
    except ProtocolViolation:
        return None
    name = value.get("file_id") if isinstance(value, dict) else None
    return name if isinstance(name, str) and name else None
