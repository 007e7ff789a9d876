"""Files at the embedded server: uploaded, downloaded, and kept while they are needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiofinetune.local import LocalServer
from aiofinetune.local._routes import files
from tests.local.plainclient import Client
from tests.local.wire import FILE_KEYS, FORM, FORM_TYPE, address, form, request_bytes


@pytest.mark.uvloop
async def test_a_file_comes_back_as_it_was_sent(client: Client) -> None:
    """An uploaded file is listed, retrieved, downloaded byte for byte, and gone once deleted."""
    content = bytes(range(256)) * 5000
    file = await client.upload(content, "naïve file.jsonl")
    assert file.keys() >= FILE_KEYS
    assert (file["object"], file["bytes"], file["purpose"]) == ("file", len(content), "fine-tune")
    assert await client.call("GET", f"/files/{file['id']}") == file
    assert (await client.call("GET", "/files"))["data"] == [file]
    assert (await client.call("GET", "/files?purpose=fine-tune"))["data"] == [file]
    assert (await client.call("GET", "/files?purpose=fine-tune-results"))["data"] == []
    async with client.http.get(f"{client.base_url}/files/{file['id']}/content") as response:
        assert (response.status, response.content_length) == (200, len(content))
        assert response.headers["Content-Disposition"].startswith("attachment; ")
        assert await response.read() == content
    assert await client.call("DELETE", f"/files/{file['id']}") == {"id": file["id"], "object": "file", "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        await client.call(method, f"/files/{file['id']}{path}", status=404)


@pytest.mark.uvloop
async def test_a_part_of_a_file_can_be_downloaded(client: Client) -> None:
    """A Range is answered with that part, and one outside of the file with 416 in the envelope."""
    file = await client.upload(b"0123456789")
    url = f"/files/{file['id']}/content"
    async with client.http.get(client.base_url + url, headers={"Range": "bytes=2-4"}) as response:
        assert (response.status, await response.read()) == (206, b"234")
    for wrong in ("bytes=10-", "bytes=4-2", "lines=1-2", f"bytes={'9' * 5000}-"):
        await client.call("GET", url, status=416, headers={"Range": wrong})


@pytest.mark.parametrize("order", [("purpose", "file"), ("file", "purpose"), ("unnamed", "purpose")])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_form_may_be_in_either_order_with_or_without_its_length(
    client: Client, order: tuple[str, ...], is_chunked: bool
) -> None:
    """Purpose and file may come in either order, the body in one piece or byte by byte without a length."""
    body = form(*(FORM[part] for part in order))

    async def piecemeal() -> AsyncIterator[bytes]:
        for index in range(len(body)):
            yield body[index : index + 1]

    file = await client.call("POST", "/files", data=piecemeal() if is_chunked else body, headers=FORM_TYPE)
    assert file["filename"] == ("file" if "unnamed" in order else "a.jsonl")
    async with client.http.get(f"{client.base_url}/files/{file['id']}/content") as response:
        assert await response.read() == b"line\r\n\r\n--x\r\nline"


async def test_a_file_that_is_too_large_is_refused_while_it_comes(
    client: Client, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a length up front, the limit holds as well, and nothing is left on the disk."""
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)

    async def body() -> AsyncIterator[bytes]:
        yield form(FORM["purpose"], FORM["file"] + bytes(2000))

    error = await client.call("POST", "/files", status=413, data=body(), headers=FORM_TYPE)
    assert error["param"] == "file"
    assert list((data / "files").iterdir()) == []


async def test_an_upload_that_breaks_off_leaves_nothing(client: Client, server: LocalServer, data: Path) -> None:
    """When a client goes away in the middle of a file, neither a row nor a byte of it stays."""
    head = request_bytes("POST", "/v1/files", Content_Type=FORM_TYPE["Content-Type"], Content_Length="1000000")
    _, writer = await asyncio.open_connection(*address(server))
    writer.write(head + form(FORM["purpose"], FORM["file"] + bytes(300_000), end=b""))
    await writer.drain()
    while not list((data / "files").iterdir()):
        await asyncio.sleep(0)
    writer.transport.abort()
    async with asyncio.timeout(20):
        while list((data / "files").iterdir()):
            await asyncio.sleep(0)
    assert (await client.call("GET", "/files"))["data"] == []


async def test_a_file_of_a_long_name_can_be_downloaded(client: Client) -> None:
    """The name is kept whole; a download's header, which clients bound, holds the end of it."""
    for name in ("x" * 4090 + ".jsonl", "ф" * 1000 + ".jsonl"):
        file = await client.upload(b"content", name)
        assert len(file["filename"]) >= len(name)  # aiohttp's client escapes what is not ASCII.
        async with client.http.get(f"{client.base_url}/files/{file['id']}/content") as response:
            assert await response.read() == b"content"
            assert response.content_disposition is not None
            assert response.content_disposition.filename == file["filename"][-200:]


async def test_a_file_is_kept_while_a_job_needs_it(client: Client, examples: bytes) -> None:
    """Deleting the file of a job that is not over is refused; once it is over, the job still shows the file."""
    job = await client.create(examples, n_epochs=100_000)
    path = f"/files/{job['training_files'][0]['id']}"
    assert job["id"] in (await client.call("DELETE", path, status=409))["message"]
    await client.call("POST", f"/fine-tunes/{job['id']}/cancel")
    await client.call("DELETE", path)
    assert (await client.call("GET", f"/fine-tunes/{job['id']}"))["training_files"] == job["training_files"]


async def test_a_model_is_kept_while_a_job_trains_it_further(client: Client, examples: bytes) -> None:
    """Deleting the model that a pending or running job starts from is refused."""
    name = (await client.finish((await client.create(examples, n_epochs=1))["id"]))["fine_tuned_model"]
    job = await client.create(examples, model=name, n_epochs=100_000)
    await client.call("DELETE", f"/models/{name}", status=409)
    await client.call("POST", f"/fine-tunes/{job['id']}/cancel")
    await client.call("DELETE", f"/models/{name}")
