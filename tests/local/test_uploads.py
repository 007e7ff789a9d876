"""Uploads at the embedded server: files that come in parts, and that no kill loses."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiofinetune.local._store import Store
from aiofinetune.local._store.refused import Refused
from aiofinetune.local._store.uploads import UploadRequest
from tests.local.plainclient import Client, Launch

CONTENT = bytes(range(256)) * 4000
PIECES = (CONTENT[:300_000], CONTENT[300_000:300_001], CONTENT[300_001:])


async def create(client: Client, **parameters: object) -> Any:
    about = {"filename": "parts.jsonl", "purpose": "fine-tune", "bytes": len(CONTENT), "mime_type": "text/jsonl"}
    return await client.call("POST", "/uploads", json=about | parameters)


def part_form(piece: bytes | AsyncIterator[bytes], name: str = "data") -> aiohttp.MultipartWriter:
    form = aiohttp.MultipartWriter("form-data")
    form.append(piece).set_content_disposition("form-data", name=name, filename="part")
    return form


async def add_part(client: Client, upload_id: str, piece: bytes) -> str:
    part = await client.call("POST", f"/uploads/{upload_id}/parts", data=part_form(piece))
    assert (part["object"], part["upload_id"]) == ("upload.part", upload_id)
    return str(part["id"])


async def download(client: Client, file_id: str) -> bytes:
    async with client.http.get(f"{client.base_url}/files/{file_id}/content") as response:
        return await response.read()


async def test_parts_become_a_file_in_the_order_that_is_asked_for(client: Client, data: Path) -> None:
    """Parts that came in any order are joined in the given one; asked again, the answer is the same file."""
    upload = await create(client)
    assert (upload["object"], upload["status"], "file" in upload) == ("upload", "pending", False)
    assert upload["expires_at"] == upload["created_at"] + 3600
    path = f"/uploads/{upload['id']}"
    last, first, middle = [await add_part(client, upload["id"], PIECES[index]) for index in (2, 0, 1)]
    order = [first, middle, last]
    for wrong, param in (
        ({"part_ids": [first, last]}, "part_ids"),
        ({"part_ids": [*order, middle]}, "part_ids"),
        ({"part_ids": [*order[:2], "part_x"]}, "part_ids"),
        ({"part_ids": order, "md5": "0" * 32}, "md5"),
        ({"md5": "0" * 32}, "part_ids"),
    ):
        assert (await client.call("POST", f"{path}/complete", status=400, json=wrong))["param"] == param
    assert (await client.call("GET", "/files"))["data"] == []
    digest = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest().upper()
    asked = {"part_ids": order, "md5": digest}
    # Calls at once, as of a client that does not wait for a reply, get the same file.
    done, *again = await asyncio.gather(*(client.call("POST", f"{path}/complete", json=asked) for _ in range(3)))
    assert again == [done, done]
    assert (done["status"], done["file"]["filename"]) == ("completed", "parts.jsonl")
    assert await client.call("POST", f"{path}/complete", json={"part_ids": order}) == done
    assert await client.call("GET", f"/files/{done['file']['id']}") == done["file"]
    assert await download(client, done["file"]["id"]) == CONTENT
    assert list((data / "parts").iterdir()) == []
    for over in ("parts", "cancel"):
        await client.call("POST", f"{path}/{over}", status=400, data=part_form(b"x"))
    await client.call("DELETE", f"/files/{done['file']['id']}")
    assert "file" not in await client.call("POST", f"{path}/complete", json={"part_ids": order})


async def test_what_is_wrong_with_an_upload_is_refused_by_its_field(client: Client, data: Path) -> None:
    """A wrong parameter, part or id is refused, and nothing of it stays on the disk."""
    for wrong, param in (
        ({"purpose": "vision"}, "purpose"),
        ({"bytes": 0}, "bytes"),
        ({"bytes": 2 << 30}, "bytes"),
        ({"filename": ""}, "filename"),
        ({"mime_type": None}, "mime_type"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3600}}, "expires_after"),
    ):
        about = {"filename": "a", "purpose": "fine-tune", "bytes": 5, "mime_type": "text/jsonl"} | wrong
        assert (await client.call("POST", "/uploads", status=400, json=about))["param"] == param
    upload = await create(client, bytes=5)
    path = f"/uploads/{upload['id']}/parts"
    assert (await client.call("POST", path, status=400, data=part_form(b"123456")))["param"] == "data"
    assert (await client.call("POST", path, status=400, data=part_form(b"x", "file")))["param"] == "'file'"
    await client.call("POST", "/uploads/upload_x/parts", status=404, data=part_form(b"x"))
    for action in ("complete", "cancel"):
        await client.call("POST", f"/uploads/upload_x/{action}", status=404, json={"part_ids": []})
    assert list((data / "parts").iterdir()) == []


async def test_only_the_parts_of_an_upload_that_is_over_are_removed(data: Path) -> None:
    """Cancelling removes an upload's parts, its time's end refuses further ones; those of others stay."""
    async with Store(data).opened() as store:
        asked = UploadRequest(filename="a", purpose="fine-tune", bytes=1, mime_type="text/jsonl")

        async def upload_with_part() -> str:
            upload = await store.uploads.create(asked)
            async with store.uploads.receive(upload.id) as incoming:
                await store.in_thread(lambda: incoming.write(b"x"))
                await store.uploads.keep(incoming, upload.id)
            return upload.id

        async def expire(upload_id: str, seconds: int) -> None:
            statement = "UPDATE uploads SET expires_at = created_at - ? WHERE id = ?"
            await store.uploads.database.run(lambda: store.uploads.database.execute(statement, (seconds, upload_id)))

        kept, cancelled, expired, long_expired = [await upload_with_part() for _ in range(4)]
        await expire(expired, 0)
        await expire(long_expired, 7200)
        assert (await store.uploads.cancel(cancelled)).status == "cancelled"
        assert (await store.uploads.cancel(cancelled)).status == "cancelled"
        assert (await store.uploads.cancel(expired)).status == "expired"
        for upload_id, words in ((cancelled, "was cancelled"), (expired, "has expired")):
            with pytest.raises(Refused, match=words):
                await store.uploads.receive(upload_id).__aenter__()
        # The part of `expired` stays for another hour, as it may just be joined.
        assert len(list((data / "parts").iterdir())) == 2
    async with Store(data).opened() as store:
        assert (await store.uploads.get(kept)).status == "pending"
        assert len(list((data / "parts").iterdir())) == 2


async def test_a_kill_loses_no_part_and_no_file(data: Path, launch: Launch) -> None:
    """Killed after two parts and within a third, and then within the completion, the server goes on with all."""
    async with launch(data) as client:
        upload_id = (await create(client))["id"]
        parts = [await add_part(client, upload_id, piece) for piece in PIECES[:2]]
        arrived = asyncio.Event()

        async def cut_off() -> AsyncIterator[bytes]:
            yield PIECES[2][:400_000]
            arrived.set()
            await asyncio.Event().wait()

        url = f"{client.base_url}/uploads/{upload_id}/parts"
        cut = asyncio.create_task(client.http.post(url, data=part_form(cut_off())).__aenter__())
        async with asyncio.timeout(30):
            await arrived.wait()
            while not list((data / "parts").glob("*.partial")):
                await asyncio.sleep(0)
    cut.cancel()
    await asyncio.wait([cut])
    async with launch(data) as client:
        parts.append(await add_part(client, upload_id, PIECES[2]))
        url = f"{client.base_url}/uploads/{upload_id}/complete"
        asked = asyncio.create_task(client.http.post(url, json={"part_ids": parts}).__aenter__())
        async with asyncio.timeout(30):
            while not list((data / "files").iterdir()):
                await asyncio.sleep(0)
    await asyncio.wait([asked])
    asked.exception()
    async with launch(data) as client:
        done = await client.call("POST", f"/uploads/{upload_id}/complete", json={"part_ids": parts})
        assert [file["id"] for file in (await client.call("GET", "/files"))["data"]] == [done["file"]["id"]]
        assert await download(client, done["file"]["id"]) == CONTENT
        assert list((data / "parts").iterdir()) == []
    # What the kill cut off is set aside, not deleted.
    assert [path.name for path in (data / "unknown").iterdir() if path.name.startswith("part_")]
