"""Upload files: as a form or in parts, where a lost reply makes it look for the file, or to presigned URLs."""

from __future__ import annotations

import logging
from typing import Any

import attrs

from aiofinetune._http.caller import Caller
from aiofinetune._http.upload_body import Progress, send_file
from aiofinetune._http.upload_parts import PartedUpload
from aiofinetune._http.upload_source import Content
from aiofinetune._jobs import matching
from aiofinetune._jobs.claims import Claims, Groups
from aiofinetune._jobs.clocks import Moment, at_service
from aiofinetune._jobs.presigned import PresignedUpload
from aiofinetune._observe import in_short
from aiofinetune.dialects._dialect import Uploads
from aiofinetune.dialects._requests import Endpoint
from aiofinetune.errors import FineTuneError, RequestInvalid
from aiofinetune.models import File

_log = logging.getLogger("aiofinetune")


class FileUploads:
    """Uploads the files of one session.

    Args:
        caller: Makes the calls.
        claims: The ids of the session's jobs and files.
    """

    def __init__(self, caller: Caller, claims: Claims) -> None:
        self._caller = caller
        self._claims = claims
        self._groups: Groups[Content] = Groups()

    async def upload(self, content: Content, name: str, purpose: str, progress: Progress | None) -> File:
        """Upload a file, once if possible: it is sent again if its reply was lost and the file cannot be identified."""
        if self._caller.dialect.uploads is Uploads.PRESIGNED:
            return await PresignedUpload(self._caller, content, progress).upload(name, purpose)
        group = self._groups.named(name)
        sent = Moment.now()
        parts = self._parts_of(content, progress)
        if parts is not None:
            await parts.send_parts(name, purpose)

        async def send() -> File:
            if parts is not None:
                return await parts.complete()
            if content.rewind is not None:
                await content.rewind(0)
            return await send_file(self._caller, content, purpose, name, progress)

        async def attempt() -> File:
            # Otherwise the search for another upload could take this file for its own.
            await group.wait_for_searches()
            with group:
                file = await send()
                self._claims.add(file.id)
                return file

        async def find() -> File | None:
            with group.losing(content):
                async with group.searching():
                    # Two lost uploads may have different contents, so only sending both again is safe.
                    group.is_contested |= len(group.lost) > 1
                    if group.is_contested:
                        return None
                    return await self._find_file(name, content.size, purpose, sent)

        # A source that cannot be rewound can be sent only once.
        policy = self._caller.policy if content.rewind is not None else attrs.evolve(self._caller.policy, attempts=1)
        with self._claims.call():
            endpoint: Endpoint[Any] = self._caller.endpoints.upload_file if parts is None else parts.endpoint
            renews = content.rewind is not None
            return await self._caller.retrying(endpoint, attempt, find, policy, renews=renews)

    def _parts_of(self, content: Content, progress: Progress | None) -> PartedUpload | None:
        """Return the upload in parts of a file that is too large for a form; None for any other file.

        Raises:
            RequestInvalid: The service does not take a file of this size.
        """
        dialect, size = self._caller.dialect, content.size
        if size is None or dialect.max_form is None or size <= dialect.max_form:
            return None
        if dialect.uploads is not Uploads.PARTS or content.rewind is None:
            limit = f"the {dialect.max_form} bytes that the dialect {dialect.name!r} takes"
            raise RequestInvalid("file", f"its {size} bytes are more than {limit}; split the file")
        return PartedUpload(self._caller, content, size, progress)

    async def _find_file(self, name: str, size: int | None, purpose: str, sent: Moment) -> File | None:
        """Return the file of an upload whose reply was lost; None if no file is certainly the one."""
        try:
            policy = attrs.evolve(self._caller.policy, attempts=1)
            listing, reply = await self._caller.exchange(self._caller.endpoints.list_files, policy=policy)
        except FineTuneError as error:
            # Uploading a file twice costs little, unlike creating a job twice.
            _log.info("searching for an upload whose reply was lost failed: %s", in_short(error))
            return None
        since = at_service(reply, sent)
        file = matching.find_file(listing.data, name, size, purpose, since, self._claims)
        if file is not None:
            self._claims.add(file.id)
        return file
