"""The embedded server's replies, lists and event streams have the reference's shape."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiofinetune.local import LocalServer
from aiofinetune.local._routes import fine_tunes
from tests.local.plainclient import Client, Connect
from tests.local.wire import FILE_KEYS, address, raw, read_reply, request_bytes

MODEL_KEYS = {"id", "object", "created", "owned_by"}


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
    "/fine_tuning/jobs": "GET, HEAD, OPTIONS, POST",
    "/fine_tuning/jobs/{job}": "GET, HEAD, OPTIONS",
    "/fine_tuning/jobs/{job}/cancel": "OPTIONS, POST",
    "/fine_tuning/jobs/{job}/pause": "OPTIONS, POST",
    "/fine_tuning/jobs/{job}/resume": "OPTIONS, POST",
    "/fine_tuning/jobs/{job}/events": "GET, HEAD, OPTIONS",
    "/fine_tuning/jobs/{job}/checkpoints": "GET, HEAD, OPTIONS",
    "/uploads": "OPTIONS, POST",
    "/uploads/{job}/parts": "OPTIONS, POST",
    "/uploads/{job}/complete": "OPTIONS, POST",
    "/uploads/{job}/cancel": "OPTIONS, POST",
    "/chat/completions": "OPTIONS, POST",
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
    # A job that is over changes no more between two requests.
    await client.call("POST", f"/fine-tunes/{job['id']}/cancel")
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


WRONG = (("limit", "0"), ("limit", "-1"), ("limit", "x"), ("limit", "9" * 5000), ("order", "up"), ("after", "unknown"))


async def test_a_wrong_page_is_refused_by_name(client: Client, examples: bytes) -> None:
    """A parameter of a list that is wrong gives a 400 that names it."""
    job = await client.create(examples, n_epochs=1)
    for path in ("/files", "/fine-tunes", "/models", f"/fine-tunes/{job['id']}/events"):
        for param, value in WRONG:
            error = await client.call("GET", path, status=400, params={param: value})
            assert error["param"] == param, (path, value)


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
    monkeypatch.setattr(fine_tunes, "_KEEP_ALIVE", 0.01)
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
