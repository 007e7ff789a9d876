"""What the embedded server answers: the endpoints, as any HTTP client sees them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from aiofinetune.errors import ConfigurationError
from aiofinetune.local import LocalServer
from aiofinetune.local import _app as app
from tests.local.plainclient import Client, Connect

FILE_KEYS = {"id", "object", "bytes", "created_at", "filename", "purpose"}
MODEL_KEYS = {"id", "object", "created", "owned_by"}


def address(server: LocalServer) -> tuple[str, int]:
    parts = urlsplit(server.base_url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read one reply from a raw connection: its status, headers by lower-case name, and body."""
    first, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    return int(first.split()[1]), headers, body


async def raw(server: LocalServer, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes on a connection of their own, and read one reply."""
    reader, writer = await asyncio.open_connection(*address(server))
    try:
        writer.write(sent)
        async with asyncio.timeout(30):
            return await read_reply(reader)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


# Replies have the reference's shape


async def test_a_finished_job_has_every_key_of_the_reference(client: Client, examples: bytes, samples: Path) -> None:
    """A job that was trained shows its model, results, events and hyperparameters as the reference does."""
    created = await client.create(examples, suffix="Odd & Even!")
    assert created["status"] == "pending"
    assert created["hyperparams"] == {
        "n_epochs": 4,
        "batch_size": 1,
        "learning_rate_multiplier": 0.05,
        "prompt_loss_weight": 0.01,
    }
    job = await client.finish(created["id"])
    for shown, name in ((created, "fine_tune_created.json"), (job, "fine_tune_succeeded.json")):
        sample = json.loads((samples / name).read_bytes())
        assert shown.keys() >= sample.keys()
        assert shown["hyperparams"].keys() >= sample["hyperparams"].keys()
        assert shown["events"][0].keys() >= sample["events"][0].keys()
        assert shown["training_files"][0].keys() >= sample["training_files"][0].keys()
    assert job["status"] == "succeeded"
    assert job["hyperparams"] == created["hyperparams"]
    assert job["fine_tuned_model"].startswith("ada:ft-local:odd-even-20")
    (results,) = job["result_files"]
    assert results.keys() >= FILE_KEYS
    assert (results["filename"], results["purpose"]) == ("compiled_results.csv", "fine-tune-results")


async def test_hyperparameters_are_numbers_from_the_start(client: Client) -> None:
    """The batch size and learning rate that a job will have are in the create's reply, by its number of examples."""
    for number, asked, expected in (
        (5000, {}, (10, 0.1)),
        (499, {}, (1, 0.05)),
        (40_000, {}, (80, 0.2)),
        (40_000, {"batch_size": 4}, (4, 0.05)),
        (5, {"learning_rate_multiplier": 3, "batch_size": 7}, (7, 3)),
    ):
        job = await client.create(b'{"prompt": "", "completion": "x"}\n\n' * number, **asked)
        shown = job["hyperparams"]
        assert (shown["batch_size"], shown["learning_rate_multiplier"]) == expected
        assert None not in shown.values()
        await client.call("POST", f"/fine-tunes/{job['id']}/cancel")


async def test_betas_without_a_positive_class_have_no_effect(client: Client, examples: bytes) -> None:
    """`classification_betas` is of use for two classes only, and no error elsewhere; any number above 0 will do."""
    validation = await client.upload(examples)
    several = {"compute_classification_metrics": True, "validation_file": validation["id"], "n_epochs": 1}
    for asked in (
        {"classification_betas": [0.5, 2], "n_epochs": 1},
        several | {"classification_betas": [2], "classification_n_classes": 2},
        several | {"classification_betas": [1e300, 1e-300], "classification_positive_class": " odd"},
    ):
        job = await client.finish((await client.create(examples, **asked))["id"])
        assert job["status"] == "succeeded", job["events"]
        async with client.http.get(f"{client.base_url}/files/{job['result_files'][0]['id']}/content") as response:
            header = (await response.text()).splitlines()[0]
        assert ("classification/f1e+300" in header) == ("classification_positive_class" in asked)
        assert "classification/f2" not in header


@pytest.mark.uvloop
async def test_a_job_tells_its_story_in_the_words_of_2022(client: Client, examples: bytes) -> None:
    """The events of a job that succeeds are the reference service's, in order."""
    job = await client.finish((await client.create(examples, n_epochs=2))["id"])
    assert [event["message"] for event in job["events"]] == [
        f"Created fine-tune: {job['id']}",
        "Fine-tune costs $0.00",
        "Fine-tune enqueued. Queue number: 0",
        "Fine-tune started",
        "Completed epoch 1/2",
        "Completed epoch 2/2",
        f"Uploaded model: {job['fine_tuned_model']}",
        f"Uploaded result file: {job['result_files'][0]['id']}",
        "Fine-tune succeeded",
    ]


async def test_jobs_in_lists_have_no_events(client: Client, examples: bytes, samples: Path) -> None:
    """The list of jobs holds every key but the events, oldest first."""
    ids = [(await client.create(examples))["id"] for _ in range(2)]
    listing = await client.call("GET", "/fine-tunes")
    assert listing["object"] == "list"
    assert [job["id"] for job in listing["data"]] == ids
    sample = json.loads((samples / "fine_tunes.json").read_bytes())
    assert listing.keys() >= sample.keys()
    for job in listing["data"]:
        assert job.keys() >= sample["data"][0].keys()
        assert "events" not in job


async def test_the_list_of_events_is_what_happened_so_far(client: Client, examples: bytes) -> None:
    """Without streaming, events come as a list in an envelope."""
    job = await client.finish((await client.create(examples))["id"])
    listing = await client.call("GET", f"/fine-tunes/{job['id']}/events", params={"stream": "false"})
    assert listing == {"object": "list", "data": job["events"], "has_more": False}


@pytest.mark.uvloop
async def test_a_fine_tuned_model_can_be_used_trained_further_and_deleted(client: Client, examples: bytes) -> None:
    """A model's whole life: made, listed, asked, the start of another, deleted, and gone."""
    first = (await client.finish((await client.create(examples, n_epochs=20))["id"]))["fine_tuned_model"]
    assert (await client.call("GET", f"/models/{first}")).keys() >= MODEL_KEYS
    listed = await client.call("GET", "/models")
    assert [model["id"] for model in listed["data"]] == ["ada", "babbage", "curie", "davinci", first]

    asked = {"model": first, "prompt": ["3 is", "4 is"], "max_tokens": 1, "temperature": 0, "logprobs": 0}
    completion = await client.call("POST", "/completions", json=asked)
    assert completion.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert [choice["text"] for choice in completion["choices"]] == [" odd", " even"]
    assert completion["choices"][0]["logprobs"]["tokens"] == [" odd"]
    assert completion["usage"] == {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}

    further = await client.finish((await client.create(examples, model=first, n_epochs=1))["id"])
    assert further["model"] == first
    assert further["fine_tuned_model"].startswith("ada:ft-local-20")

    deleted = await client.call("DELETE", f"/models/{first}")
    assert deleted == {"id": first, "object": "model", "deleted": True}
    for gone in (
        client.call("GET", f"/models/{first}", status=404),
        client.call("DELETE", f"/models/{first}", status=404),
    ):
        assert (await gone)["code"] == "model_not_found"
    assert (await client.call("POST", "/completions", status=404, json=asked))["code"] == "model_not_found"


async def test_a_model_name_works_with_its_colon_encoded_or_raw(
    client: Client, server: LocalServer, examples: bytes
) -> None:
    """``ada:ft-...`` and ``ada%3Aft-...`` name the same model."""
    name = (await client.finish((await client.create(examples, n_epochs=1))["id"]))["fine_tuned_model"]
    for target in (name, name.replace(":", "%3A"), name.replace(":", "%3a")):
        status, _, body = await raw(server, request_bytes("GET", f"/v1/models/{target}"))
        assert (status, json.loads(body)["id"]) == (200, name)


async def test_models_made_in_the_same_second_have_names_of_their_own(client: Client, examples: bytes) -> None:
    """Two jobs without a suffix that end together give two models."""
    jobs = [await client.create(examples, n_epochs=1) for _ in range(3)]
    names = {(await client.finish(job["id"]))["fine_tuned_model"] for job in jobs}
    assert len(names) == 3


async def test_base_models_cannot_be_deleted(client: Client) -> None:
    """Deleting a base model is refused as forbidden."""
    assert "base model" in (await client.call("DELETE", "/models/ada", status=403))["message"]


METHODS = {
    "/fine-tunes": "GET, HEAD, OPTIONS, POST",
    "/fine-tunes/{job}": "GET, HEAD, OPTIONS",
    "/fine-tunes/{job}/cancel": "OPTIONS, POST",
    "/fine-tunes/{job}/events": "GET, HEAD, OPTIONS",
    "/fine-tunes/{job}/events?stream=true": "GET, HEAD, OPTIONS",
    "/files": "GET, HEAD, OPTIONS, POST",
    "/files/{file}": "DELETE, GET, HEAD, OPTIONS",
    "/files/{file}/content": "GET, HEAD, OPTIONS",
    "/models": "GET, HEAD, OPTIONS",
    "/models/ada": "DELETE, GET, HEAD, OPTIONS",
    "/completions": "OPTIONS, POST",
}


async def test_each_path_names_the_methods_that_work(client: Client, examples: bytes) -> None:
    """OPTIONS, and a 405 in the envelope, name the methods of a path; HEAD is GET without its body."""
    job = await client.create(examples, n_epochs=100_000)
    for path, allowed in METHODS.items():
        url = client.base_url + path.format(job=job["id"], file=job["training_files"][0]["id"])
        async with client.http.options(url) as response:
            assert (response.status, response.headers["Allow"], await response.read()) == (204, allowed, b"")
        for method in {"DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"} - set(allowed.split(", ")):
            async with client.http.request(method, url) as response:
                assert (response.status, response.headers["Allow"]) == (405, allowed)
                assert method == "HEAD" or method in (await response.json())["error"]["message"]
        if "HEAD" in allowed:
            async with client.http.head(url) as head, client.http.get(url) as response:
                assert (head.status, await head.read()) == (200, b"")
                assert head.content_type == response.content_type
                assert head.headers.get("Content-Length") == response.headers.get("Content-Length")
    await client.call("POST", f"/fine-tunes/{job['id']}/cancel")


# Lists


async def test_lists_come_in_pages(client: Client, examples: bytes) -> None:
    """`limit`, `after` and `order` act on each list, and `has_more` is true only where `limit` left something out."""
    job = await client.create(examples, n_epochs=100_000)
    for _ in range(2):
        await client.create(examples)
    for path in ("/files", "/fine-tunes", "/models", f"/fine-tunes/{job['id']}/events"):
        whole = await client.call("GET", path)
        assert (len(whole["data"]) >= 3, whole["has_more"]) == (True, False), path
        for order, expected in (("asc", whole["data"]), ("desc", whole["data"][::-1])):
            shown: list[Any] = []
            page: Any = {"has_more": True}
            while page["has_more"]:
                after = {"after": shown[-1]["id"]} if shown else {}
                page = await client.call("GET", path, params={"limit": 2, "order": order, **after})
                assert 1 <= len(page["data"]) <= 2
                shown += page["data"]
            assert [item["id"] for item in shown][: len(expected)] == [item["id"] for item in expected]
        last = await client.call("GET", path, params={"after": whole["data"][-2]["id"], "limit": 1})
        assert ([item["id"] for item in last["data"]], last["has_more"]) == ([whole["data"][-1]["id"]], False)
        empty = await client.call("GET", path, params={"after": whole["data"][-1]["id"]})
        assert empty == {"object": "list", "data": [], "has_more": False}
    both = await client.call("GET", "/files", params={"purpose": "fine-tune", "limit": 2, "order": "desc"})
    assert (len(both["data"]), both["has_more"]) == (2, True)
    for running in (await client.call("GET", "/fine-tunes"))["data"]:
        await client.call("POST", f"/fine-tunes/{running['id']}/cancel")


@pytest.mark.parametrize("path", ["/files", "/fine-tunes", "/models", "/fine-tunes/{}/events"])
@pytest.mark.parametrize(
    ("param", "value"),
    [("limit", "0"), ("limit", "-1"), ("limit", "x"), ("limit", "9" * 5000), ("order", "up"), ("after", "unknown")],
)
async def test_a_wrong_page_is_refused_by_name(
    client: Client, examples: bytes, path: str, param: str, value: str
) -> None:
    """A parameter of a list that is wrong gives a 400 that names it."""
    job = await client.create(examples, n_epochs=1)
    error = await client.call("GET", path.format(job["id"]), status=400, params={param: value})
    assert error["param"] == param


# Files


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


FORM = {
    "purpose": b'Content-Disposition: form-data; name="purpose"\r\n\r\nfine-tune',
    "file": b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\nline\r\n\r\n--x\r\nline',
    "unnamed": b'Content-Disposition: form-data; name="file"\r\n\r\nline\r\n\r\n--x\r\nline',
}
FORM_TYPE = {"Content-Type": "multipart/form-data; boundary=frontier"}


def form(*parts: bytes, end: bytes = b"--frontier--\r\n") -> bytes:
    return b"".join(b"--frontier\r\n%b\r\n" % part for part in parts) + end


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
    monkeypatch.setattr(app, "MAX_FILE_BYTES", 1000)

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


# Event streams


@pytest.mark.uvloop
async def test_a_stream_replays_then_follows_and_leaves_the_connection_usable(
    server: LocalServer, client: Client, examples: bytes
) -> None:
    """A stream shows all events from the first, says [DONE], ends, and the next request uses the same connection."""
    job = await client.create(examples)
    reader, writer = await asyncio.open_connection(*address(server))
    for _ in range(2):  # While the job runs, and once it is over.
        writer.write(request_bytes("GET", f"/v1/fine-tunes/{job['id']}/events?stream=true", Accept="application/json"))
        status, headers, body = await read_reply(reader)
        assert (status, headers["content-type"], headers["cache-control"]) == (200, "text/event-stream", "no-cache")
        *events, done, rest = body.split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b"")
        shown = [json.loads(event.removeprefix(b"data: ")) for event in events]
        assert shown == (await client.call("GET", f"/fine-tunes/{job['id']}"))["events"]
    writer.write(request_bytes("GET", "/v1/models"))
    assert (await read_reply(reader))[0] == 200
    writer.close()
    await writer.wait_closed()


async def test_many_streams_of_one_job_all_see_all_of_it(client: Client, examples: bytes) -> None:
    """Two hundred clients that follow the same job see the same events."""
    job = await client.create(examples, n_epochs=3)
    stories = await asyncio.gather(*(client.follow(job["id"]) for _ in range(200)))
    messages = [event["message"] for event in (await client.call("GET", f"/fine-tunes/{job['id']}"))["events"]]
    assert all(story == messages for story in stories)


async def test_a_silent_stream_says_that_it_is_still_there(
    client: Client, examples: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a job has nothing to tell, comments keep the connection open."""
    monkeypatch.setattr(app, "_KEEP_ALIVE", 0.01)
    running = await client.create(examples, n_epochs=100_000)
    pending = await client.create(examples)
    async with client.http.get(f"{client.base_url}/fine-tunes/{pending['id']}/events?stream=true") as response:
        async for line in response.content:
            if line == b": keep-alive\n":
                break
    for job in (running, pending):
        await client.call("POST", f"/fine-tunes/{job['id']}/cancel")


async def test_a_stream_whose_client_goes_away_frees_everything(
    server: LocalServer, client: Client, examples: bytes
) -> None:
    """When a client breaks off a stream, the task that served it ends."""
    job = await client.create(examples, n_epochs=100_000)
    await client.reach(job["id"], "Completed epoch 1/100000")
    before = asyncio.all_tasks()
    _, writer = await asyncio.open_connection(*address(server))
    writer.write(request_bytes("GET", f"/v1/fine-tunes/{job['id']}/events?stream=true"))
    await asyncio.sleep(0)
    while not asyncio.all_tasks() - before:
        await asyncio.sleep(0)
    writer.transport.abort()
    async with asyncio.timeout(20):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)


@pytest.mark.uvloop
async def test_closing_the_server_breaks_streams_off_without_done(connect: Connect, examples: bytes) -> None:
    """A stream cut by the server's end does not look like the job's end."""
    async with LocalServer(api_key="key") as server:
        async with connect(server.base_url, "key") as client:
            job = await client.create(examples, n_epochs=100_000)
            response = await client.http.get(f"{server.base_url}/fine-tunes/{job['id']}/events?stream=true")
            await response.content.readline()
            await server.__aexit__(None, None, None)
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        await server.__aenter__()


# Completions


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "someone", "stream": False, "n": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0.0},
        {"echo": False, "best_of": 1, "suffix": None, "stop": None, "seed": None, "logprobs": None, "max_tokens": None},
        {"stop": ["\n", "."], "temperature": 0.5, "seed": 7, "max_tokens": 3},
        {"stop": "\n", "temperature": 2, "max_tokens": 0},
        {"logit_bias": {}, "stream_options": None, "n": 2, "best_of": 2},
    ],
)
async def test_what_clients_always_send_with_a_completion_is_taken(client: Client, harmless: dict[str, object]) -> None:
    """Parameters at their defaults, and explicit nulls, do no harm."""
    reply = await client.call("POST", "/completions", json={"model": "ada", "prompt": "The", **harmless})
    assert reply["object"] == "text_completion"
    assert reply["choices"][0]["finish_reason"] in ("stop", "length")


async def test_the_same_seed_gives_the_same_completion_while_a_job_trains(client: Client, examples: bytes) -> None:
    """Completions are answered during a training, and a seed decides them."""
    job = await client.create(examples, n_epochs=100_000)
    asked = {"model": "ada", "prompt": "The", "seed": 3, "max_tokens": 8}
    first, second = [(await client.call("POST", "/completions", json=asked))["choices"] for _ in range(2)]
    assert first == second
    await client.call("POST", f"/fine-tunes/{job['id']}/cancel")


LONG: dict[str, object] = {"model": "ada", "prompt": "The", "max_tokens": 2048, "n": 128, "logprobs": 5, "stream": True}
"""A completion that takes minutes."""


async def stream_completion(client: Client, asked: Mapping[str, object]) -> list[Any]:
    """Read a streamed completion to its end; return what its events hold."""
    async with client.http.post(f"{client.base_url}/completions", json={**asked, "stream": True}) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        *events, done, rest = (await response.read()).split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


@pytest.mark.uvloop
@pytest.mark.parametrize("more", [{}, {"stop": [" of", "\n"]}, {"logprobs": 2}, {"echo": True, "n": 2, "logprobs": 0}])
async def test_a_streamed_completion_is_the_same_in_pieces(client: Client, more: dict[str, object]) -> None:
    """The texts and log probabilities of a stream's events add up to what is answered in one piece."""
    asked = {"model": "ada", "prompt": ["Return the naïve", "A"], "seed": 5, "max_tokens": 30, **more}
    whole = await client.call("POST", "/completions", json=asked)
    *events, last = await stream_completion(client, asked | {"stream_options": {"include_usage": True}})
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert {(event["id"], event["model"], event["object"]) for event in events} == {
        (last["id"], "ada", "text_completion")
    }
    for expected in whole["choices"]:
        pieces = [choice for event in events for choice in event["choices"] if choice["index"] == expected["index"]]
        assert "".join(piece["text"] for piece in pieces) == expected["text"]
        assert [piece["finish_reason"] for piece in pieces][-1] == expected["finish_reason"]
        assert not any(piece["finish_reason"] for piece in pieces[:-1])
        if expected["logprobs"] is not None:
            for key, values in expected["logprobs"].items():
                assert [value for piece in pieces for value in piece["logprobs"][key]] == values


async def test_n_completions_of_each_prompt_are_made(client: Client) -> None:
    """`n` gives so many different choices a prompt, in order; the first is what one alone would be."""
    asked = {"model": "ada", "prompt": ["The", "A"], "seed": 5, "max_tokens": 5}
    single, several = [await client.call("POST", "/completions", json=asked | {"n": n}) for n in (1, 3)]
    texts = [choice["text"] for choice in several["choices"]]
    assert [choice["index"] for choice in several["choices"]] == list(range(6))
    assert [texts[0], texts[3]] == [choice["text"] for choice in single["choices"]]
    assert len(set(texts)) == 6


async def test_echo_puts_the_prompt_first(client: Client) -> None:
    """The text then begins with the prompt, whose tokens have log probabilities too, all but the first."""
    prompt = "Return the " * 500
    asked = {"model": "ada", "prompt": prompt, "seed": 5, "max_tokens": 2}
    plain = await client.call("POST", "/completions", json=asked)
    echoed = await client.call("POST", "/completions", json=asked | {"echo": True, "max_tokens": 2})
    assert echoed["choices"][0]["text"] == prompt + plain["choices"][0]["text"]
    assert echoed["usage"] == plain["usage"]
    scored = await client.call(
        "POST",
        "/completions",
        json={"model": "ada", "prompt": "Return it", "echo": True, "max_tokens": 0, "logprobs": 1},
    )
    logprobs = scored["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["Return", " it"]
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1] < 0
    assert len(logprobs["top_logprobs"][1]) == 1


async def test_top_p_leaves_the_unlikely_out(client: Client) -> None:
    """At a `top_p` of 0 only the likeliest is left to draw."""
    asked = {"model": "ada", "prompt": "Return the", "max_tokens": 8}
    nucleus = await client.call("POST", "/completions", json=asked | {"top_p": 0, "temperature": 2})
    greedy = await client.call("POST", "/completions", json=asked | {"temperature": 0})
    assert nucleus["choices"] == greedy["choices"]


async def test_a_short_completion_does_not_wait_for_long_ones(client: Client) -> None:
    """A completion of one token is answered while ones that take minutes are written."""
    async with contextlib.AsyncExitStack() as stack:
        long = [
            await stack.enter_async_context(client.http.post(f"{client.base_url}/completions", json=LONG))
            for _ in range(20)
        ]
        async with asyncio.timeout(20):
            await client.call("POST", "/completions", json={"model": "curie", "prompt": "The", "max_tokens": 1})
        assert not any(response.content.at_eof() for response in long)


async def test_a_completion_whose_client_goes_away_ends(server: LocalServer, client: Client) -> None:
    """When nobody waits for a completion any more, it is not written on."""
    await client.call("GET", "/models")
    before = asyncio.all_tasks()
    for is_streamed in (False, True):
        _, writer = await asyncio.open_connection(*address(server))
        writer.write(request_bytes("POST", "/v1/completions", json.dumps(LONG | {"stream": is_streamed}).encode()))
        while not asyncio.all_tasks() - before:
            await asyncio.sleep(0)
        await client.call("POST", "/completions", json={"model": "ada", "max_tokens": 1})
        writer.transport.abort()
        async with asyncio.timeout(20):
            while asyncio.all_tasks() - before:
                await asyncio.sleep(0)


@pytest.mark.uvloop
async def test_the_server_does_not_wait_for_completions_when_it_ends(connect: Connect) -> None:
    """Completions that take minutes end with the server, streamed or not, and are not taken for whole."""
    async with connect("", "key") as client, LocalServer(api_key="key") as server:
        url = f"{server.base_url}/completions"
        plain = [asyncio.create_task(client.http.post(url, json=LONG | {"stream": False})) for _ in range(3)]
        streamed = await client.http.post(url, json=LONG)
        await streamed.content.readline()
        async with asyncio.timeout(20):
            await server.__aexit__(None, None, None)
        with pytest.raises(aiohttp.ClientPayloadError):
            await streamed.read()
        for task in plain:
            with pytest.raises(aiohttp.ClientError):
                await task
        await server.__aenter__()


# Refusals


JOB = {"training_file": "file-unknown"}
WRONG_BODIES: list[tuple[str, object, str | None]] = [
    ("/fine-tunes", {}, "training_file"),
    ("/fine-tunes", JOB, "training_file"),
    ("/fine-tunes", {"training_file": 5}, "training_file"),
    ("/fine-tunes", {"training_file": None}, "training_file"),
    ("/fine-tunes", JOB | {"model": "gpt-9"}, "model"),
    ("/fine-tunes", JOB | {"model": ["ada"]}, "model"),
    ("/fine-tunes", JOB | {"n_epochs": 0}, "n_epochs"),
    ("/fine-tunes", JOB | {"n_epochs": "4"}, "n_epochs"),
    ("/fine-tunes", JOB | {"n_epochs": True}, "n_epochs"),
    ("/fine-tunes", JOB | {"n_epochs": 1e300}, "n_epochs"),
    ("/fine-tunes", JOB | {"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
    ("/fine-tunes", JOB | {"hyperparameters": {"n_epochs": 3}, "n_epochs": 4}, "hyperparameters.n_epochs"),
    ("/fine-tunes", JOB | {"hyperparameters": [4]}, "hyperparameters"),
    ("/fine-tunes", JOB | {"suffix": "x" * 41}, "suffix"),
    ("/fine-tunes", JOB | {"classification_betas": 1}, "classification_betas"),
    ("/fine-tunes", JOB | {"learning_rate": 1}, "learning_rate"),
    ("/fine-tunes", [JOB], None),
    ("/completions", {"prompt": "x"}, "model"),
    ("/completions", {"model": "ada", "prompt": 5}, "prompt"),
    ("/completions", {"model": "ada", "prompt": []}, "prompt"),
    ("/completions", {"model": "ada", "max_tokens": -1}, "max_tokens"),
    ("/completions", {"model": "ada", "temperature": 3}, "temperature"),
    ("/completions", {"model": "ada", "stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ("/completions", {"model": "ada", "stop": ""}, "stop"),
    ("/completions", {"model": "ada", "seed": -1}, "seed"),
    ("/completions", {"model": "ada", "logprobs": 6}, "logprobs"),
    ("/completions", {"model": "ada", "n": 0}, "n"),
    ("/completions", {"model": "ada", "n": True}, "n"),
    ("/completions", {"model": "ada", "n": 65, "prompt": ["a", "b"]}, "n"),
    ("/completions", {"model": "ada", "top_p": 1.1}, "top_p"),
    ("/completions", {"model": "ada", "echo": 1}, "echo"),
    ("/completions", {"model": "ada", "stream": "true"}, "stream"),
    ("/completions", {"model": "ada", "stream_options": {"include_usage": True}}, "stream_options"),
    ("/completions", {"model": "ada", "stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ("/completions", {"model": "ada", "best_of": 2}, "best_of"),
    ("/completions", {"model": "ada", "presence_penalty": 0.5}, "presence_penalty"),
    ("/completions", {"model": "ada", "frequency_penalty": True}, "frequency_penalty"),
    ("/completions", {"model": "ada", "logit_bias": {"50256": -100}}, "logit_bias"),
    ("/completions", {"model": "ada", "suffix": "x"}, "suffix"),
    ("/completions", {"model": "ada", "top_k": 1}, "top_k"),
]


@pytest.mark.parametrize(("path", "body", "param"), WRONG_BODIES)
async def test_a_wrong_parameter_is_refused_by_name(client: Client, path: str, body: object, param: str | None) -> None:
    """A parameter that is missing, unknown, of a wrong type or out of bounds gives a 400 that names it."""
    error = await client.call("POST", path, status=400, json=body)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_results_cannot_be_trained_on(client: Client, examples: bytes) -> None:
    """A file of another purpose is refused as training data."""
    job = await client.finish((await client.create(examples, n_epochs=1))["id"])
    body = {"training_file": job["training_files"][0]["id"], "validation_file": job["result_files"][0]["id"]}
    assert (await client.call("POST", "/fine-tunes", status=400, json=body))["param"] == "validation_file"


@pytest.mark.parametrize("hyperparameters", [{"n_epochs": "auto"}, {"n_epochs": 4}, {"n_epochs": None}, {}, None])
async def test_n_epochs_may_stand_in_its_later_place(client: Client, examples: bytes, hyperparameters: object) -> None:
    """``hyperparameters.n_epochs`` is read, "auto" is the default, and explicit nulls are absent parameters."""
    job = await client.create(examples, hyperparameters=hyperparameters, suffix=None, batch_size=None)
    assert job["hyperparams"]["n_epochs"] == 4


def request_bytes(method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    fields = {"Host": "localhost", "Authorization": "Bearer a-key-for-tests"}
    if body:
        fields["Content-Length"] = str(len(body))
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


JSON = "application/json"
FORM_NAME = FORM_TYPE["Content-Type"]
MALFORMED: dict[str, tuple[bytes, int]] = {
    "no key": (request_bytes("GET", "/v1/models", Authorization=""), 401),
    "wrong key": (request_bytes("GET", "/v1/models", Authorization="Bearer nonsense"), 401),
    "key that is no ASCII": (request_bytes("GET", "/v1/models", Authorization="Bearer schl\xfcssel"), 401),
    "other scheme": (request_bytes("GET", "/v1/models", Authorization="Basic YTpi"), 401),
    "unknown path": (request_bytes("GET", "/v1/nothing"), 404),
    "root": (request_bytes("GET", "/"), 404),
    "path traversal": (request_bytes("GET", "/v1/files/..%2F..%2Flock"), 404),
    "dots": (request_bytes("GET", "/v1/files/../../lock"), 404),
    "path with NUL": (request_bytes("GET", "/v1/files/%00"), 404),
    "path that is no UTF-8": (request_bytes("GET", "/v1/models/%ff%fe"), 404),
    "wrong method": (request_bytes("PUT", "/v1/models"), 405),
    "wrong query": (request_bytes("GET", "/v1/fine-tunes/ft-x/events?stream=perhaps"), 400),
    "no body": (request_bytes("POST", "/v1/fine-tunes"), 400),
    "broken JSON": (request_bytes("POST", "/v1/fine-tunes", b'{"training_file": '), 400),
    "JSON that is no UTF-8": (request_bytes("POST", "/v1/fine-tunes", b'{"model": "\xff"}'), 400),
    "half a surrogate pair": (request_bytes("POST", "/v1/fine-tunes", b'{"training_file": "\\ud800"}'), 400),
    "NaN": (request_bytes("POST", "/v1/fine-tunes", b'{"training_file": "x", "batch_size": NaN}'), 400),
    "endless brackets": (request_bytes("POST", "/v1/fine-tunes", b"[" * 100_000), 400),
    "deep but whole": (request_bytes("POST", "/v1/completions", b'{"a":' + b"[" * 500 + b"]" * 500 + b"}"), 400),
    "digits without end": (request_bytes("POST", "/v1/completions", b'{"seed": %b}' % (b"9" * 10_000)), 400),
    "JSON too large": (request_bytes("POST", "/v1/completions", b'"' + b"x" * 2_000_000 + b'"'), 413),
    "not JSON but a string": (request_bytes("POST", "/v1/completions", b'"ada"'), 400),
    "null": (request_bytes("POST", "/v1/completions", b"null"), 400),
    "broken gzip": (request_bytes("POST", "/v1/completions", b"\x1f\x8bnonsense", Content_Encoding="gzip"), 400),
    "unknown expectation": (request_bytes("POST", "/v1/completions", b"{}", Expect="a miracle"), 417),
    "form of another type": (request_bytes("POST", "/v1/files", b"{}", Content_Type=JSON), 400),
    "form without boundary": (request_bytes("POST", "/v1/files", b"x", Content_Type="multipart/form-data"), 400),
    "form that is none": (request_bytes("POST", "/v1/files", b"nonsense", Content_Type=FORM_NAME), 400),
    "form without parts": (request_bytes("POST", "/v1/files", b"--frontier--\r\n", Content_Type=FORM_NAME), 400),
    "form cut off": (
        request_bytes("POST", "/v1/files", form(FORM["purpose"], FORM["file"], end=b""), Content_Type=FORM_NAME),
        400,
    ),
    "form without file": (request_bytes("POST", "/v1/files", form(FORM["purpose"]), Content_Type=FORM_NAME), 400),
    "form without purpose": (request_bytes("POST", "/v1/files", form(FORM["file"]), Content_Type=FORM_NAME), 400),
    "two files": (
        request_bytes("POST", "/v1/files", form(FORM["file"], FORM["file"]), Content_Type=FORM_NAME),
        400,
    ),
    "part without a name": (request_bytes("POST", "/v1/files", form(b"\r\nx"), Content_Type=FORM_NAME), 400),
    "part without headers' end": (request_bytes("POST", "/v1/files", form(b"nonsense"), Content_Type=FORM_NAME), 400),
    "unknown part": (
        request_bytes(
            "POST", "/v1/files", form(b'Content-Disposition: form-data; name="x"\r\n\r\nx'), Content_Type=FORM_NAME
        ),
        400,
    ),
    "nested form": (
        request_bytes(
            "POST", "/v1/files", form(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b--"), Content_Type=FORM_NAME
        ),
        400,
    ),
    "encoded part": (
        request_bytes(
            "POST", "/v1/files", form(b"Content-Transfer-Encoding: base64\r\n" + FORM["file"]), Content_Type=FORM_NAME
        ),
        400,
    ),
    "other purpose": (
        request_bytes("POST", "/v1/files", form(FORM["file"], FORM["purpose"] + b"-results"), Content_Type=FORM_NAME),
        400,
    ),
    "endless purpose": (
        request_bytes("POST", "/v1/files", form(FORM["purpose"] + b"x" * 100_000), Content_Type=FORM_NAME),
        400,
    ),
    "file announced too large": (
        request_bytes("POST", "/v1/files", Content_Type=FORM_NAME, Content_Length=str(2 << 30)),
        413,
    ),
}


@pytest.mark.parametrize(("sent", "expected"), MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_request_is_refused_in_the_envelope(
    server: LocalServer, client: Client, sent: bytes, expected: int
) -> None:
    """Whatever arrives, the answer is a 4xx in the API's envelope, and the server goes on."""
    status, headers, body = await raw(server, sent)
    assert status == expected
    assert headers["content-type"].startswith("application/json")
    assert headers["x-request-id"]
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert (status == 405) == ("allow" in headers)
    assert (await client.call("GET", "/models"))["data"]
    assert (await client.call("GET", "/files"))["data"] == []


NO_HTTP = {
    "nonsense": b"nonsense\r\n\r\n",
    "header without a colon": b"GET /v1/models HTTP/1.1\r\nHost\r\n\r\n",
    "unknown version": b"GET / HTTP/9.9\r\n\r\n",
    "unknown method": request_bytes("BREW", "/v1/files"),
    "raw bytes in the path": request_bytes("GET", "/v1/models/\xff"),
    "two lengths": request_bytes("POST", "/v1/files", Content_Length="1", Transfer_Encoding="chunked"),
    "length that is no number": request_bytes("POST", "/v1/files", Content_Length="many"),
    "endless line": request_bytes("GET", "/v1/" + "x" * 100_000),
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP.keys())
async def test_what_is_no_http_is_refused(server: LocalServer, client: Client, sent: bytes) -> None:
    """Bytes that are not HTTP get a 400, and the server goes on."""
    assert (await raw(server, sent))[0] == 400
    await client.call("GET", "/models")


async def test_an_unexpected_failure_is_logged_and_hidden(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the server shows as a 500 in the envelope, with its traceback in the log alone."""

    async def broken(_models: object) -> None:
        raise ZeroDivisionError("the secret details")

    monkeypatch.setattr("aiofinetune.local._store.models.ModelStore.list", broken)
    error = await client.call("GET", "/models", status=500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]
    assert "the secret details" in caplog.text


# The server itself


@pytest.mark.uvloop
async def test_the_server_leaves_nothing_behind(
    connect: Connect,
    examples: bytes,
    trainers: Callable[[Path], list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the server, there is no task, thread, trainer or temporary folder, though a job was running."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tasks = asyncio.all_tasks()
    async with LocalServer() as server, connect(server.base_url, server.api_key) as client:
        job = await client.create(examples, n_epochs=100_000)
        await client.reach(job["id"], "Completed epoch 1/100000")
        assert len(trainers(tmp_path)) == 1
    assert asyncio.all_tasks() == tasks
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("aiofinetune")]
    assert trainers(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert server.api_key not in repr(server)


async def test_a_second_server_on_the_same_folder_is_refused(server: LocalServer, client: Client, data: Path) -> None:
    """The folder belongs to one server at a time, and the first is not disturbed."""
    with pytest.raises(ConfigurationError, match="another server"):
        async with LocalServer(data):
            pass
    await client.call("GET", "/models")


async def test_a_port_in_use_is_refused(server: LocalServer) -> None:
    """A port that cannot be had is the configuration's fault, and says so."""
    with pytest.raises(ConfigurationError, match="cannot listen"):
        async with LocalServer(port=address(server)[1]):
            pass


@pytest.mark.parametrize("options", [{"host": "0.0.0.0"}, {"host": "example.com"}, {"api_key": ""}, {"api_key": "a\n"}])
def test_an_unsafe_configuration_is_refused(options: dict[str, Any]) -> None:
    """An open host needs a key of one's own, and a key must fit into a header."""
    with pytest.raises(ConfigurationError):
        LocalServer(**options)


async def test_without_numpy_the_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy is needed when the server is entered, not when it is imported."""
    server = LocalServer()
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ConfigurationError, match=r"aiofinetune\[local\]"):
        await server.__aenter__()


async def test_a_client_may_hold_its_body_back(server: LocalServer) -> None:
    """``Expect: 100-continue`` asks for the body, and the file arrives."""
    body = form(FORM["purpose"], FORM["file"])
    head = request_bytes(
        *("POST", "/v1/files"), Content_Type=FORM_NAME, Content_Length=str(len(body)), Expect="100-Continue"
    )
    reader, writer = await asyncio.open_connection(*address(server))
    writer.write(head)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    status, _, reply = await read_reply(reader)
    assert (status, json.loads(reply)["bytes"]) == (200, len(b"line\r\n\r\n--x\r\nline"))
    writer.close()
    await writer.wait_closed()


@pytest.mark.uvloop
async def test_a_server_listens_on_ipv6_too(connect: Connect) -> None:
    """The base URL of an IPv6 address has its brackets."""
    async with LocalServer(host="::1") as server, connect(server.base_url, server.api_key) as client:
        assert server.base_url.startswith("http://[::1]:")
        assert (await client.call("GET", "/models"))["data"]


async def test_a_server_that_runs_cannot_be_entered_again(server: LocalServer) -> None:
    """One object is one running server."""
    with pytest.raises(ConfigurationError, match="running already"):
        await server.__aenter__()


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    """The server wraps no exception of the block that it serves, cancellation included."""
    for failure in (ZeroDivisionError(), asyncio.CancelledError()):
        with pytest.raises(type(failure)) as caught:
            async with LocalServer():
                raise failure
        assert caught.value is failure
