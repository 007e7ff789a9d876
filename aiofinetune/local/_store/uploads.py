"""The store's uploads: files that arrive in parts (``POST /uploads``).

Each part is a file of its own until the upload is complete. Then their bytes are copied into one file, and only after
that has its row, the parts are removed; a server that is killed at any moment has either all parts or the file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

import attrs

from aiofinetune._sqlite import transaction
from aiofinetune._threads import in_thread
from aiofinetune.errors import RequestInvalid
from aiofinetune.local._store.database import StoreDatabase, new_id, now
from aiofinetune.local._store.files import MAX_FILE_BYTES, PURPOSE, FileStore, Incoming
from aiofinetune.local._store.refused import Refused
from aiofinetune.models import File

_LIFETIME: Final = 3600
"""Seconds after which an upload expires that is not complete, as at OpenAI."""

_PIECE_BYTES: Final = 1 << 20
"""The amount of a part that is in memory while the parts are joined."""


@attrs.frozen(kw_only=True)
class UploadRequest:
    """The parameters of an upload (reference of OpenAI: create upload)."""

    filename: str
    purpose: str
    bytes: int
    mime_type: str

    def __attrs_post_init__(self) -> None:
        """Check what the types do not."""
        if not self.filename:
            raise RequestInvalid("filename", "expected the name of the file")
        if self.purpose != PURPOSE:
            raise RequestInvalid("purpose", f"expected '{PURPOSE}', got {self.purpose!r}")
        if not 1 <= self.bytes <= MAX_FILE_BYTES:
            raise RequestInvalid("bytes", f"expected a whole number from 1 to {MAX_FILE_BYTES:,}")


@attrs.frozen(kw_only=True)
class CompletionOrder:
    """The parameters that complete an upload (reference of OpenAI: complete upload)."""

    part_ids: tuple[str, ...]
    md5: str | None = None


@attrs.frozen
class Upload:
    """An upload as the API shows it."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int
    status: str
    """``"pending"``, ``"completed"``, ``"cancelled"`` or ``"expired"``."""
    file: File | None = None
    """The file that the upload has become."""
    object: str = "upload"


@attrs.frozen
class Part:
    """A part of an upload as the API shows it."""

    id: str
    created_at: int
    upload_id: str
    object: str = "upload.part"


class UploadStore:
    """The uploads and their parts.

    Args:
        database: The store's database.
        folder: The folder of the parts.
        files: The files that complete uploads become.
        threads: The threads for blocking work.
    """

    def __init__(self, database: StoreDatabase, folder: Path, files: FileStore, threads: Executor) -> None:
        self.database = database
        self._folder = folder
        self._files = files
        self._threads = threads

    async def create(self, request: UploadRequest) -> Upload:
        """Add an upload."""
        upload = await self._add(request)
        await self.remove_unneeded()
        return upload

    @transaction
    def _add(self, request: UploadRequest) -> Upload:
        upload_id, created_at = new_id("upload_"), now()
        self.database.execute(
            "INSERT INTO uploads (id, filename, purpose, bytes, created_at, expires_at, status)"
            " VALUES (?, ?, ?, ?, ?, ?, 'pending')",
            (upload_id, request.filename, request.purpose, request.bytes, created_at, created_at + _LIFETIME),
        )
        return self._find(upload_id)

    @contextlib.asynccontextmanager
    async def receive(self, upload_id: str) -> AsyncIterator[Incoming]:
        """Return a context manager that receives a part, and removes it unless `keep` is called."""
        await self._check_pending(upload_id)
        incoming = Incoming(new_id("part_"), self._folder)
        try:
            await in_thread(self._threads, incoming.open)
            yield incoming
        finally:
            await in_thread(self._threads, incoming.discard)

    @transaction
    def _check_pending(self, upload_id: str) -> None:
        self._find_pending(upload_id)

    async def keep(self, incoming: Incoming, upload_id: str) -> Part:
        """Add a part that was received completely."""
        await in_thread(self._threads, incoming.seal)
        try:
            return await self._keep(incoming, upload_id)
        except Exception:
            await in_thread(self._threads, incoming.unsettle)
            raise

    @transaction
    def _keep(self, incoming: Incoming, upload_id: str) -> Part:
        upload = self._find_pending(upload_id)
        if incoming.size > upload.bytes:
            raise Refused(400, f"data: the part is longer than the upload's {upload.bytes:,} bytes", param="data")
        incoming.settle()
        part = Part(incoming.id, now(), upload_id)
        self.database.execute(
            "INSERT INTO parts (id, upload, bytes, created_at) VALUES (?, ?, ?, ?)",
            (part.id, upload_id, incoming.size, part.created_at),
        )
        return part

    async def complete(self, upload_id: str, order: CompletionOrder) -> Upload:
        """Join the parts in the given order to a file.

        An upload that is complete already is returned as it is, so that a client whose reply was lost can ask again.
        """
        upload = await self._check_parts(upload_id, order.part_ids)
        if upload.status == "pending":
            try:
                await self._become_file(upload, order)
            except Refused:
                # Another call may have completed it in the meantime.
                if (await self.get(upload_id)).status != "completed":
                    raise
            upload = await self.get(upload_id)
        await self.remove_unneeded()
        return upload

    async def _become_file(self, upload: Upload, order: CompletionOrder) -> None:
        async with self._files.receive() as incoming:
            digest = await self._join(upload.id, order.part_ids, incoming)
            if order.md5 is not None and order.md5.lower() != digest:
                raise Refused(400, f"md5: the parts have the MD5 digest {digest}, not {order.md5}", param="md5")
            finish = functools.partial(self._finish, upload.id, order.part_ids)
            await self._files.keep(incoming, upload.filename, upload.purpose, finish)

    @transaction
    def _check_parts(self, upload_id: str, part_ids: Sequence[str]) -> Upload:
        """Return the upload if it is complete, or if these parts make it complete; refuse otherwise."""
        upload = self._find(upload_id)
        if upload.status == "completed":
            return upload
        self._find_pending(upload_id)
        rows = self.database.execute("SELECT id, bytes FROM parts WHERE upload = ?", (upload_id,))
        sizes: dict[str, int] = dict(rows.fetchall())
        for position, part_id in enumerate(part_ids):
            if part_id not in sizes:
                raise Refused(400, f"part_ids[{position}]: {part_id} is not a part of this upload", param="part_ids")
        if len(set(part_ids)) < len(part_ids):
            raise Refused(400, "part_ids: a part is named twice", param="part_ids")
        size = sum(sizes[part_id] for part_id in part_ids)
        if size != upload.bytes:
            raise Refused(
                400,
                f"part_ids: the parts have {size:,} bytes in all, but the upload was created for {upload.bytes:,}",
                param="part_ids",
            )
        return upload

    async def _join(self, upload_id: str, part_ids: Sequence[str], incoming: Incoming) -> str:
        """Copy the parts into one file, and return the MD5 digest of it."""
        try:
            return await in_thread(self._threads, lambda: _copy(self._folder, part_ids, incoming))
        except FileNotFoundError:
            await self._check_pending(upload_id)  # It may be over in the meantime.
            raise

    @transaction
    def get(self, upload_id: str) -> Upload:
        """Return one upload, or refuse with 404."""
        return self._find(upload_id)

    async def cancel(self, upload_id: str) -> Upload:
        """Cancel an upload and return it; refuse if it is complete. Cancelling it again changes nothing."""
        upload = await self._cancel(upload_id)
        await self.remove_unneeded()
        return upload

    @transaction
    def _cancel(self, upload_id: str) -> Upload:
        upload = self._find(upload_id)
        if upload.status == "completed":
            raise Refused(400, f"upload {upload_id} is complete; delete its file instead")
        if upload.status == "pending":
            self.database.execute("UPDATE uploads SET status = 'cancelled' WHERE id = ?", (upload_id,))
        return self._find(upload_id)

    async def remove_unneeded(self) -> None:
        """Remove the parts that are in a file, and those of uploads that were cancelled or that expired."""
        if names := await self._unneeded():
            await in_thread(self._threads, lambda: _remove(self._folder / name for name in names))
            await self._forget(names)

    @transaction
    def _unneeded(self) -> list[str]:
        # Parts stay for a while after the end of their upload's time, because they may just be joined.
        rows = self.database.execute(
            "SELECT parts.id FROM parts JOIN uploads ON uploads.id = parts.upload"
            " WHERE is_joined OR status = 'cancelled' OR expires_at < ?",
            (now() - _LIFETIME,),
        )
        return [name for (name,) in rows]

    @transaction
    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self.database.execute("DELETE FROM parts WHERE id = ?", (name,))

    # In a transaction

    def _finish(self, upload_id: str, part_ids: Sequence[str], file: File) -> None:
        self._find_pending(upload_id)
        self.database.execute("UPDATE uploads SET status = 'completed', file = ? WHERE id = ?", (file.id, upload_id))
        for part_id in part_ids:
            self.database.execute("UPDATE parts SET is_joined = TRUE WHERE id = ?", (part_id,))

    def _find(self, upload_id: str) -> Upload:
        row = self.database.execute(
            "SELECT id, filename, purpose, bytes, created_at, expires_at, status, file FROM uploads WHERE id = ?",
            (upload_id,),
        ).fetchone()
        if row is None:
            raise Refused(404, f"No such Upload object: {upload_id}", param="upload_id")
        upload = Upload(*row[:7])
        if upload.status == "pending" and upload.expires_at <= now():
            return attrs.evolve(upload, status="expired")
        with contextlib.suppress(Refused):  # The file may have been deleted since.
            return attrs.evolve(upload, file=self._files.find(row[7]))
        return upload

    def _find_pending(self, upload_id: str) -> Upload:
        """Return an upload that is not over; refuse otherwise."""
        upload = self._find(upload_id)
        if upload.status != "pending":
            words = {"completed": "is complete", "cancelled": "was cancelled", "expired": "has expired"}
            raise Refused(400, f"upload {upload_id} {words[upload.status]}; create another one", param="upload_id")
        return upload


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _copy(folder: Path, part_ids: Sequence[str], incoming: Incoming) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for part_id in part_ids:
        with (folder / part_id).open("rb") as part:
            while piece := part.read(_PIECE_BYTES):
                digest.update(piece)
                incoming.write(piece)
    return digest.hexdigest()
