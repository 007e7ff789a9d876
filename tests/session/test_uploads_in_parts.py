"""Files above the size that a service takes at once: sent in parts, each again if it fails."""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

from aiofinetune import BadRequest, FineTuneSession, LocalFileError, RequestInvalid
from aiofinetune.dialects import DIALECTS
from tests.servers.faults import FAULTS
from tests.servers.faultserver import FaultServer
from tests.servers.jobs_service import JobsService
from tests.servers.service import KEY, Reply, Request, json_reply
from tests.support.checks import QUICK, nothing_left_open

pytestmark = pytest.mark.fastforward

SMALL = attrs.evolve(DIALECTS["jobs"], max_form=1000, part_size=300_000)
DATA = random.Random(3).randbytes(1_000_000)  # noqa: S311  # no secret
PARTS = -(-len(DATA) // SMALL.part_size)


class UploadsService(JobsService):
    """One that takes uploads in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, object] = {}
        self.parts: dict[str, bytes] = {}
        self.names_file = True

    def _begin_upload(self, request: Request) -> Reply:
        self.asked = json.loads(request.body)
        return json_reply({"id": "upload-1", "object": "upload", "status": "pending", **self.asked})

    def _upload_part(self, request: Request, _upload_id: str) -> Reply:
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        (part,) = request.body.split(b"--" + boundary)[1:-1]
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        assert re.search(rb'name="data"', head)
        part_id = self._new_id("part")
        self.parts[part_id] = content.removesuffix(b"\r\n")
        return json_reply({"id": part_id, "object": "upload.part", "upload_id": "upload-1"})

    def _complete_upload(self, request: Request, upload_id: str) -> Reply:
        whole = b"".join(self.parts[name] for name in json.loads(request.body)["part_ids"])
        assert len(whole) == self.asked["bytes"]
        file = self.files[self.add_file(str(self.asked["filename"]), whole, str(self.asked["purpose"]))]
        return json_reply({"id": upload_id, "status": "completed", "file": file if self.names_file else None})


@asynccontextmanager
async def uploading() -> AsyncIterator[tuple[FaultServer, UploadsService, FineTuneSession]]:
    service = UploadsService()
    async with nothing_left_open(), FaultServer(service) as server:
        async with FineTuneSession(KEY, base_url=server.base_url, dialect=SMALL, retry=QUICK) as session:
            yield server, service, session
        await server.left()


@pytest.mark.parametrize("from_path", [True, False])
async def test_in_parts(from_path: bool, tmp_path: Path) -> None:
    """A large file is sent in parts, in order and in full; progress counts all of its bytes."""
    path = tmp_path / "big.jsonl"
    path.write_bytes(DATA)
    told: list[tuple[int, int | None]] = []
    async with uploading() as (server, service, session):
        source = path if from_path else DATA
        file = await session.upload_file(source, progress=lambda sent, size: told.append((sent, size)))
        assert service.contents[file.id] == DATA
        assert server.asked() == ["begin_upload", *["upload_part"] * PARTS, "complete_upload"]
    assert [sent for sent, _ in told] == sorted({sent for sent, _ in told})
    assert told[-1] == (len(DATA), len(DATA))
    assert service.asked["filename"] == ("big.jsonl" if from_path else "data.jsonl")


async def test_small_file() -> None:
    """A file that the service takes at once is sent at once."""
    async with uploading() as (server, service, session):
        file = await session.upload_file(DATA[:1000])
        assert service.contents[file.id] == DATA[:1000]
        assert server.asked() == ["upload_file"]


@pytest.mark.parametrize(
    "fault", ["reset after the request's head", "reset inside the request's body", "500", "503", "429 with Retry-After"]
)
async def test_resumed_at_the_part_that_failed(fault: str) -> None:
    """A part that fails is sent again, and no other is."""
    async with uploading() as (server, service, session):
        for _ in range(2):
            server.fail("upload_part", FAULTS["headers twice"], FAULTS[fault])
        file = await session.upload_file(DATA)
        assert service.contents[file.id] == DATA
        assert server.asked().count("upload_part") == PARTS + 2
        assert server.asked().count("begin_upload") == 1


async def test_end_that_is_lost() -> None:
    """If the reply to the end is lost, the file is looked for: it is there once."""
    async with uploading() as (server, service, session):
        server.fail("complete_upload", FAULTS["reset after the request"])
        file = await session.upload_file(DATA)
        assert list(service.files) == [file.id]


async def test_end_that_names_no_file() -> None:
    """So it is if that reply does not name the file."""
    async with uploading() as (_server, service, session):
        service.names_file = False
        file = await session.upload_file(DATA)
        assert list(service.files) == [file.id]


async def test_refused() -> None:
    """A part that the service refuses ends the upload with its words."""
    async with uploading() as (server, _service, session):
        server.fail("upload_part", FAULTS["400"])
        with pytest.raises(BadRequest):
            await session.upload_file(DATA)


async def test_file_that_shrinks(tmp_path: Path) -> None:
    """A file that becomes shorter meanwhile is an error of the file, and nothing of it is there."""
    path = tmp_path / "big.jsonl"
    path.write_bytes(DATA)

    def shrink(sent: int, _size: int | None) -> None:
        if sent > 400_000:
            path.write_bytes(b"")

    async with uploading() as (_server, service, session):
        with pytest.raises(LocalFileError, match="changed during the upload"):
            await session.upload_file(path, progress=shrink)
        assert service.files == {}


async def test_too_large() -> None:
    """A service that takes no parts gets no file above its limit."""
    dialect = attrs.evolve(DIALECTS["nebius"], max_form=10)
    async with FineTuneSession(KEY, base_url="http://127.0.0.1:1/v1", dialect=dialect) as session:
        with pytest.raises(RequestInvalid, match="more than the 10 bytes that the dialect 'nebius' takes"):
            await session.upload_file(b"x" * 11)
