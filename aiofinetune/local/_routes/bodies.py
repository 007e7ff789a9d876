"""Read the bodies of requests: JSON objects and forms with a file."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable
from typing import Final, TypeVar

from aiohttp import BodyPartReader, web

from aiofinetune import structuring
from aiofinetune.local._routes.replies import PIECE_BYTES
from aiofinetune.local._store import Store
from aiofinetune.local._store.files import Incoming
from aiofinetune.local._store.refused import Refused

T = TypeVar("T")

MAX_JSON_BYTES: Final = 1 << 20
_MAX_FORM_BYTES: Final = 64 << 10
"""The size that a form may have in addition to its file."""

_MAX_TEXT_BYTES: Final = 1000
"""The size of a text in a form."""

BODY_TIMEOUT: Final = 60.0
"""Seconds within which a client must send a JSON body, or the next piece of a file."""


async def read_json_object(request: web.Request) -> dict[str, object]:
    """Read a request's JSON object; refuse anything else."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await request.read()
    except TimeoutError:
        raise too_slow() from None
    except web.HTTPRequestEntityTooLarge:
        raise Refused(413, f"the body: at most {MAX_JSON_BYTES:,} bytes are allowed") from None
    try:
        value = structuring.loads(body)
        # A value that cannot be encoded, such as half a surrogate pair, could not be stored or sent back.
        structuring.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is not a JSON object")
    return value


class FormReader:
    """Reads a form of one file and some texts, or of texts alone, in any order.

    Args:
        request: The request.
        store: The store, whose threads write the file.
        file: The name of the part with the file; None if there is no file.
        texts: The names of the parts with texts.
        max_bytes: The most bytes that the file may have.
    """

    def __init__(
        self,
        request: web.Request,
        store: Store,
        *,
        file: str | None = None,
        texts: tuple[str, ...] = (),
        max_bytes: int = 0,
    ) -> None:
        self._names = texts if file is None else (*texts, file)
        expected = " and ".join(self._names)
        if request.content_type != "multipart/form-data":
            raise Refused(400, f"expected a multipart/form-data body with {expected}")
        self._request = request
        self._store = store
        self._file = file
        self._max_bytes = max_bytes
        if (request.content_length or 0) > max_bytes + _MAX_FORM_BYTES:
            raise self._too_large()

    async def read(self, incoming: Incoming | None = None) -> dict[str, str]:
        """Write the file to `incoming`; return the texts by name, and under the file's name its filename."""
        found: dict[str, str] = {}
        reader = await _parsed(self._request.multipart())
        while (part := await _parsed(reader.next())) is not None:
            if not isinstance(part, BodyPartReader):
                raise Refused(400, "the body is not a valid form: a part is itself multipart")
            if part.headers.get("Content-Transfer-Encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
                raise Refused(
                    400,
                    "the body is not a valid form: Content-Transfer-Encoding is not supported (RFC 7578, section 4.7)",
                )
            if part.name is None or part.name in found or part.name not in self._names:
                expected = " and ".join(f"one part '{name}'" for name in self._names)
                name = ascii(part.name)[:80]
                raise Refused(400, f"expected {expected}, got another part {name}", param=name)
            if part.name == self._file and incoming is not None:
                found[part.name] = (part.filename or "file").encode(errors="replace").decode()
                await self._read_file(part, incoming)
            else:
                found[part.name] = await self._read_text(part, part.name)
        for name in self._names:
            if name not in found:
                raise Refused(400, f"{name}: is required", param=name)
        return found

    async def _read_text(self, part: BodyPartReader, name: str) -> str:
        text = b""
        while not part.at_eof():
            text += await _parsed(part.read_chunk(PIECE_BYTES))
            if len(text) > _MAX_TEXT_BYTES:
                raise Refused(400, f"{name}: expected at most {_MAX_TEXT_BYTES} bytes", param=name)
        return text.decode(errors="replace")

    async def _read_file(self, part: BodyPartReader, incoming: Incoming) -> None:
        while not part.at_eof():
            piece = await _parsed(part.read_chunk(PIECE_BYTES))
            if incoming.size + len(piece) > self._max_bytes:
                raise self._too_large()
            await self._store.in_thread(functools.partial(incoming.write, bytes(piece)))

    def _too_large(self) -> Refused:
        return Refused(413, f"{self._file}: at most {self._max_bytes:,} bytes are allowed", param=self._file)


def too_slow() -> Refused:
    """Return the refusal of a body that does not arrive."""
    return Refused(408, "the body did not arrive in time", headers={"Connection": "close"})


async def _parsed(reading: Awaitable[T]) -> T:
    """Await what aiohttp reads from a form. aiohttp raises eight kinds of exceptions for a broken form."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await reading
    except TimeoutError:
        raise too_slow() from None
    except Exception as error:
        raise Refused(400, f"the body is not a valid form: {error}") from error
