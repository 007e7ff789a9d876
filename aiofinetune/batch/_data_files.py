"""Upload the data files of a batch, each content once, whatever the names of its files."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from aiofinetune._http.upload_check import check_content
from aiofinetune._http.upload_source import opened_source
from aiofinetune._local_files import check_regular
from aiofinetune._observe import in_short
from aiofinetune._threads import in_thread
from aiofinetune.batch._core import AttemptRecord
from aiofinetune.batch._manifest import is_local
from aiofinetune.batch._no_journal import AnyJournal
from aiofinetune.dialects._dialect import Uploads
from aiofinetune.errors import DatasetError, FineTuneError, LocalFileError, RequestInvalid
from aiofinetune.models import File, FineTuneRequest
from aiofinetune.session import FineTuneSession

if TYPE_CHECKING:
    from aiofinetune.data import Rules

_log = logging.getLogger("aiofinetune")

_MAX_REMEMBERED: Final = 1000
"""The number of paths whose digest and id are kept while a batch runs."""


class DataFiles:
    """The data files of a batch. Each content is uploaded once.

    A content whose digest is in the journal or the service's list is not sent again. The name of a file at the service
    contains the start of its digest, so that an upload is found even if it is in no journal.

    Args:
        session: Uploads the files.
        journal: Knows the files that earlier runs uploaded.
        check: Whether to check the data of a file before its upload, or the rules to check it by.
    """

    def __init__(self, session: FineTuneSession, journal: AnyJournal, *, check: bool | Rules = False) -> None:
        self._session = session
        self._journal = journal
        self._check = check
        self._checked: dict[str, DatasetError | None] = {}
        """What is wrong with the data of the files that were checked last in this run, by path; None if nothing is."""
        self._digests: dict[str, str] = {}
        """The digests of the files that were used last in this run, by path."""
        self._ids: dict[str, str] = {}
        """The ids of the same files, by path."""
        self._local: dict[str, bool] = {}
        """Whether a file is a path and not an id, by its name."""
        self._disk = asyncio.Lock()
        self._there: dict[str, list[File]] | None = None
        # Weak, so that a lock lasts for as long as a task uses it.
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def with_ids(self, request: FineTuneRequest) -> FineTuneRequest:
        """Return a request with the files' ids in place of local paths, after uploading the files that need it.

        Raises:
            DatasetError: The data of a file is wrong; neither file was sent.
        """
        if self.are_ids(request):
            return request
        training, validation = request.training_file, request.validation_file
        paths = [file for file in (training, validation) if file is not None and await self._is_local(file)]
        for path in paths if self._check is not False else ():
            await self._check_data(path)
        ids = {path: await self._id_of(path) for path in paths}
        return attrs.evolve(
            request,
            training_file=ids.get(training, training),
            validation_file=None if validation is None else ids.get(validation, validation),
        )

    def sent(self, request: FineTuneRequest) -> FineTuneRequest | None:
        """Return what is sent for a request, if that is known; None if files must be uploaded first, or looked for.

        Raises nothing: what the service cannot take is refused where files are uploaded.
        """
        try:
            self._session.dialect.check(request)
        except RequestInvalid:
            return None
        return request if self.are_ids(request) else None

    def are_ids(self, request: FineTuneRequest) -> bool:
        """Return whether a request names no local path, as far as it is known without a look at the disk."""
        training, validation = request.training_file, request.validation_file
        # If a look is under way, an earlier entry waits for it, and entries keep their order.
        if self._disk.locked() or self._local.get(training) is not False:
            return False
        return validation is None or self._local.get(validation) is False

    async def change_of(self, record: AttemptRecord, request: FineTuneRequest) -> str:
        """Return what has changed in an entry since an earlier run, as text for people; "" if nothing has.

        A local file is compared by its content: its path is another when the batch runs in another folder.

        Args:
            record: What the journal knows of the entry.
            request: What is asked for now.
        """
        before = record.request
        if record.sent is None or (before is request and self.are_ids(request)):
            return difference(before, request)
        for field in ("training_file", "validation_file"):
            path, old_path, file_id = getattr(request, field), getattr(before, field), getattr(record.sent, field)
            if None in (path, old_path, file_id) or not (await self._is_local(path) and await self._is_local(old_path)):
                continue
            # A file that was deleted, or cannot be read, does not count as changed.
            if await asyncio.to_thread(os.path.isfile, path):
                try:
                    digest = await self._digest_of(path)
                except LocalFileError as error:
                    label = record.attempt.label
                    words = "%s: its %s cannot be read (%s); whether it has changed since it was sent is not known"
                    _log.warning(words, label, field, in_short(error), extra={"label": label})
                    continue
                if digest != await self._journal.digest(file_id):
                    return f"the content of {path}"
                before = attrs.evolve(before, **{field: path})
        return difference(before, request)

    async def _is_local(self, file: str) -> bool:
        """Return whether a file is a path and not an id. The disk is checked once in a run."""
        # The lock serves tasks in the order in which they asked, so entries keep their order.
        async with self._disk:
            if file not in self._local:
                if len(self._local) >= _MAX_REMEMBERED:
                    del self._local[next(iter(self._local))]
                self._local[file] = await in_thread(None, lambda: is_local(file))
            return self._local[file]

    async def _check_data(self, path: str) -> None:
        """Check the data of a file once in a run, although a sweep names it many times; not if it was sent before."""
        async with self._lock(f"check {path}"):
            if path not in self._checked:
                is_there = path in self._ids or await self._find(Path(path), await self._digest_of(path))
                self._checked[path] = None if is_there else await self._problem_of(path)
            wrong = self._checked[path]
            if len(self._checked) > _MAX_REMEMBERED:
                del self._checked[next(iter(self._checked))]
        if wrong is not None:
            raise wrong

    async def _problem_of(self, path: str) -> DatasetError | None:
        rules = self._session.data_rules if isinstance(self._check, bool) else self._check
        try:
            async with opened_source(path) as content:
                await check_content(content, path, rules)
        except DatasetError as error:
            return error.with_traceback(None)
        return None

    async def _id_of(self, path: str) -> str:
        async with self._lock(path):
            if path not in self._ids:
                # A second lock, because another path may have the same content.
                digest = await self._digest_of(path)
                async with self._lock(digest):
                    try:
                        self._ids[path] = await self._id_by_digest(Path(path), digest)
                    except LocalFileError:
                        # The content may have changed, so the digest must be computed again.
                        self._digests.pop(path, None)
                        raise
                if len(self._ids) > _MAX_REMEMBERED:
                    del self._ids[next(iter(self._ids))]
            return self._ids[path]

    async def _digest_of(self, path: str) -> str:
        """Return the digest of a file. The file is read once in a run, although a sweep names it many times."""
        digest = self._digests.get(path)
        if digest is None:
            digest = self._digests[path] = await in_thread(None, lambda: _digest(path))
            if len(self._digests) > _MAX_REMEMBERED:
                del self._digests[next(iter(self._digests))]
        return digest

    async def _id_by_digest(self, path: Path, digest: str) -> str:
        file_id = await self._find(path, digest) or await self._upload(path, _name_of(path, digest), digest)
        if file_id != await self._journal.file_id(digest):
            await self._journal.keep_file(digest, file_id)
        return file_id

    async def _find(self, path: Path, digest: str) -> str | None:
        """Return the id of a file that is at the service; None if it must be uploaded."""
        there = await self._files_there()
        # A file of another size is the rest of an upload that was cut off, unless the journal knows its id. Some
        # services report 0 or no size.
        usable = there.get(await self._journal.file_id(digest) or "") or [
            file for file in there.get(_name_of(path, digest), ()) if file.bytes in (None, 0, await _size(path))
        ]
        return usable[0].id if usable else None

    async def _upload(self, path: Path, name: str, digest: str) -> str:
        file = await self._session.upload_file(path, filename=name)
        if await in_thread(None, lambda: _digest(str(path))) != digest:
            # The name of the uploaded file contains the digest of other content, so a later run would take it for that.
            try:
                # Under another name it is a file of equal content that was there before.
                if file.filename == name:
                    await self._session.delete_file(file.id)
            except FineTuneError as error:
                words = "the content of %s does not match its name, and deleting the file failed: %s"
                _log.warning(words, file.id, in_short(error))
            raise LocalFileError(f"{path}: changed during the upload; run the batch again")
        there = await self._files_there()
        there.update({name: [file], file.id: [file]})
        return file.id

    async def _files_there(self) -> dict[str, list[File]]:
        """Return the usable files at the service, by name and by id. They are listed once in a run."""
        async with self._lock("the list"):
            if self._there is None:
                files = await self._session.list_files("fine-tune")
                self._there = {}
                for file in files:
                    # Where a file has an entry before its bytes have arrived, it is of no use without them.
                    has_bytes = bool(file.bytes) or self._session.dialect.uploads is not Uploads.PRESIGNED
                    if file.status != "error" and has_bytes:
                        for name in filter(None, (file.filename, file.id)):
                            self._there.setdefault(name, []).append(file)
            return self._there

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock


def _name_of(path: Path, digest: str) -> str:
    """Return the name of a file at the service."""
    return f"{path.stem[:40]}-{digest[:16]}{path.suffix}"


async def _size(path: Path) -> int:
    try:
        return (await asyncio.to_thread(path.stat)).st_size
    except OSError as error:
        raise LocalFileError(f"{path}: {error.strerror}") from error


def _digest(path: str) -> str:
    try:
        check_regular(Path(path))
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LocalFileError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise LocalFileError(f"{path!r}: {error}") from error


def difference(before: FineTuneRequest, now: FineTuneRequest) -> str:
    """Return the differences between two requests as text for people; "" if they are equal."""
    if before is now or before == now:
        return ""
    pairs = zip(attrs.asdict(before).items(), attrs.asdict(now).values(), strict=True)
    return ", ".join(f"{name} was {old!r} and is now {new!r}" for (name, old), new in pairs if old != new)
