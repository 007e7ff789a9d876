"""The embedded server's face of Together: the same files and jobs, in the shape of its API, and our client on it."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiofinetune import (
    BadRequest,
    DatasetError,
    FineTuneCancelled,
    FineTuneFailed,
    FineTuneRequest,
    FineTuneSession,
    NotFound,
    RequestInvalid,
)
from aiofinetune.local import LocalServer
from aiofinetune.local._together_api import FileToCome, read_job_request, read_signed, show_metrics, show_time
from aiofinetune.results import ResultRow, Results
from aiofinetune.testing import FineTuneServer
from tests.local.plainclient import KEY, Client, Connect, connected, jsonl
from tests.servers.rawserver import FAST

ROWS = jsonl((f"{name} ->", f" {kind}") for kind, name in [("bird", "wren"), ("bird", "owl"), ("fish", "carp")] * 4)


@pytest.fixture
async def session(server: LocalServer) -> AsyncIterator[FineTuneSession]:
    async with FineTuneSession(KEY, base_url=server.url_of("together"), dialect="together", retry=FAST) as session:
        yield session


@pytest.fixture
async def plain(server: LocalServer) -> AsyncIterator[Client]:
    async with connected(server.url_of("together")) as client:
        yield client


# Our client


async def test_one_job(session: FineTuneSession, server: LocalServer) -> None:
    """A job is made, followed and read to its figures, its checkpoints and its model, which answers."""
    sent: list[int] = []
    file = await session.upload_file(ROWS, filename="träin.jsonl", progress=lambda done, _total: sent.append(done))
    assert (file.filename, file.bytes, file.status, file.status_details) == (
        *("träin.jsonl", len(ROWS)),
        *("processed", "12 lines"),
    )
    assert sent[-1] == len(ROWS)
    assert await session.upload_file(ROWS, filename="other.jsonl") == file
    request = FineTuneRequest(
        training_file=file.id,
        validation_file=file.id,
        model="ada",
        n_epochs=3,
        batch_size=2,
        learning_rate=0.05,
        suffix="birds-{key}",
        seed=7,
        extra={"n_evals": 3, "n_checkpoints": 2},
    )
    estimate = await session.estimate_price(request)
    assert (estimate.price, estimate.is_allowed) == (0, True)
    job = await session.create_fine_tune(request)
    async with asyncio.timeout(60):
        async with session.stream_fine_tune_events(job.id) as events:
            told = [event async for event in events]
        done = await session.wait(job.id)
    assert (done.status, done.service_status, done.seed, done.suffix) == ("succeeded", "completed", 7, job.suffix)
    assert (done.hyperparams.learning_rate, done.hyperparams.batch_size, done.hyperparams.n_epochs) == (0.05, 2, 3)
    assert str(job.suffix) in str(done.fine_tuned_model)
    assert (done.trained_tokens or 0, done.price) > (0, -1.0)
    assert await session.list_fine_tune_events(job.id) == tuple(told) == done.events
    # The events are the same through the other APIs.
    async with FineTuneSession(KEY, base_url=server.base_url) as reference:
        assert [event.message for event in await reference.list_fine_tune_events(job.id)] == [it.message for it in told]

    rows = await session.results(done)
    assert [row.step for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1].validation_loss is not None
    assert rows[-1].training_token_accuracy is not None
    last, *others = await session.list_checkpoints(job.id)
    assert (last.fine_tuned_model_checkpoint, last.step_number, len(others)) == (done.fine_tuned_model, len(rows), 2)
    assert done.fine_tuned_model in [model.id for model in await session.list_models()]
    answer = await session.create_completion(str(done.fine_tuned_model), "carp ->", max_tokens=1, temperature=0)
    assert answer.text == " fish"
    assert [listed.id for listed in await session.list_fine_tunes()] == [job.id]
    assert (await session.delete_fine_tune(job.id)).deleted
    with pytest.raises(NotFound):
        await session.retrieve_fine_tune(job.id)


async def test_files(session: FineTuneSession) -> None:
    """Files are listed, read, downloaded and deleted; one that cannot be used is told with what was found in it."""
    file = await session.upload_file(ROWS)
    with pytest.raises(DatasetError, match=r"INVALID_FORMAT: The training file, line 1"):
        await session.upload_file(b"nonsense\n")
    assert len(await session.list_files()) == len(await session.list_files("fine-tune")) == 2
    assert await session.list_files("eval") == ()
    assert await session.download_file(file.id) == ROWS
    assert (await session.delete_file(file.id)).deleted
    again = await session.upload_file(ROWS)
    assert again.id != file.id


async def test_large_file(session: FineTuneSession) -> None:
    """A file of several pieces arrives as it is."""
    content = jsonl((str(number), " x" * 100) for number in range(5000))
    file = await session.upload_file(content)
    assert (file.bytes, file.status_details) == (len(content), "5000 lines")
    assert await session.download_file(file.id) == content


async def test_cancelled_and_failed(session: FineTuneSession) -> None:
    """A cancelled job and a failed one end as such; a failed one says why."""
    file = await session.upload_file(ROWS)
    slow = await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="davinci", n_epochs=50))
    assert (await session.cancel_fine_tune(slow.id)).status == "cancelled"
    with pytest.raises(FineTuneCancelled):
        await session.wait(slow.id)
    with pytest.raises(BadRequest, match="1 to 50"):
        await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada", n_epochs=51))


async def test_double() -> None:
    """The test double speaks it too, with its faults by the same names, and jobs that fail with their error."""
    async with FineTuneServer() as server:
        url = server.url_of("together")
        async with FineTuneSession(server.api_key, base_url=url, dialect="together", retry=FAST) as session:
            server.faults.lose_reply("put_content")
            server.faults.lose_reply("process_file")
            file = await session.upload_file(ROWS)
            server.faults.lose_reply("create")
            request = FineTuneRequest(training_file=file.id, model="ada")
            server.faults.fail_job("out of memory")
            job = await session.create_fine_tune(request)
            with pytest.raises(FineTuneFailed) as caught:
                await session.wait(job.id)
            assert caught.value.job.error is not None
            assert caught.value.job.error.message == "out of memory"
            assert [listed.id for listed in await session.list_fine_tunes()] == [job.id]
        asked = [each.endpoint for each in server.requests]
        assert (asked.count("put_content"), asked.count("create")) == (2, 1)
        assert asked.count("unknown") == 0


# The server


def form(content: bytes, **changes: str) -> aiohttp.FormData:
    """The form that asks for a URL for a file."""
    said = {"purpose": "fine-tune", "file_name": "a.jsonl", "file_type": "jsonl"}
    fields = aiohttp.FormData(default_to_multipart=True)
    for name, text in {**said, "checksum": hashlib.sha256(content).hexdigest(), **changes}.items():
        fields.add_field(name, text)
    return fields


async def begin(client: Client, content: bytes) -> tuple[str, str]:
    """Ask for a URL; return it and the id of the file."""
    url = f"{client.base_url}/files"
    async with client.http.post(url, data=form(content), allow_redirects=False) as response:
        assert response.status == 302
        return response.headers["Location"], response.headers["X-Together-File-Id"]


async def test_put_needs_no_key_and_a_signature(plain: Client) -> None:
    """Bytes are put with the URL alone; a changed URL, other bytes and none are refused, and a repeated PUT is not."""
    content = ROWS
    url, file_id = await begin(plain, content)
    async with aiohttp.ClientSession() as stranger:
        for wrong, status in (
            (url.replace("a.jsonl", "b.jsonl"), 403),
            (url[:-1] + ("0" if url[-1] != "0" else "1"), 403),
            (url.partition("?")[0], 403),
            (url.replace(file_id, "file-other"), 403),
        ):
            async with stranger.put(wrong, data=content) as response:
                assert response.status == status
        async with stranger.put(url, data=b"other") as response:
            assert (response.status, "SHA-256" in (await response.json())["error"]["message"]) == (400, True)
        await plain.call("GET", f"/files/{file_id}", status=404)
        for _ in range(2):
            async with stranger.put(url, data=content) as response:
                assert response.status == 200
        # Nothing else is open to strangers.
        async with stranger.get(f"{plain.base_url}/files/{file_id}") as response:
            assert response.status == 401
    file = await plain.call("POST", f"/files/{file_id}/preprocess")
    assert file == await plain.call("GET", f"/files/{file_id}")
    assert (file["processing_status"], file["validation_report"]["nlines"], file["FileType"]) == (
        "COMPLETED",
        12,
        "jsonl",
    )
    async with plain.http.post(f"{plain.base_url}/files", data=form(content)) as response:
        assert (response.status, (await response.json())["file_id"]) == (409, file_id)


@pytest.mark.parametrize(
    ("changes", "param"),
    [({"purpose": "eval"}, "purpose"), ({"file_type": "zip"}, "file_type"), ({"checksum": "0"}, "checksum")],
)
async def test_wrong_file(changes: dict[str, str], param: str, plain: Client) -> None:
    """What is wrong with a file is refused by name before its bytes come."""
    error = await plain.call("POST", "/files", data=form(ROWS, **changes), status=400)
    assert error["param"] == param


async def test_signatures_outlive_the_server(data: Path, connect: Connect) -> None:
    """A URL is good after a restart, so an upload goes on; what was put before a restart is still there."""
    async with LocalServer(data, api_key=KEY) as server, connect(server.url_of("together")) as client:
        url, file_id = await begin(client, ROWS)
    path = url.partition("/together")[2]
    async with LocalServer(data, api_key=KEY) as server, connect(server.url_of("together")) as client:
        async with client.http.put(client.base_url.removesuffix("/v1") + path, data=ROWS) as response:
            assert response.status == 200
        assert (await client.call("GET", f"/files/{file_id}"))["bytes"] == len(ROWS)
        job = await client.call(
            "POST", "/fine-tunes", json={"model": "ada", "training_file": file_id, "n_evals": 4, "random_seed": 9}
        )
    async with LocalServer(data, api_key=KEY) as server, connect(server.url_of("together")) as client:
        again = await client.call("GET", f"/fine-tunes/{job['id']}")
        assert (again["n_evals"], again["random_seed"], again["training_file"]) == (4, 9, file_id)


def test_signature() -> None:
    """A signature is of every field and of the time until which it is good, and needs the key."""
    coming = FileToCome("file-1", "a.jsonl", "fine-tune", "jsonl", "0" * 64, 100)
    query = {name: str(value) for name, value in vars_of(coming).items()} | {"signature": coming.signature("k")}
    assert read_signed("file-1", query, "k", 100) == coming
    assert read_signed("file-1", query, "k", 101) is None
    assert read_signed("file-2", query, "k", 100) is None
    assert read_signed("file-1", query, "other", 100) is None
    for name in query:
        assert read_signed("file-1", query | {name: "x"}, "k", 100) is None
        assert read_signed("file-1", {each: text for each, text in query.items() if each != name}, "k", 100) is None


def vars_of(coming: FileToCome) -> dict[str, object]:
    names = ("file_name", "purpose", "file_type", "checksum", "expires_at")
    return {name: getattr(coming, name) for name in names}


ASKED: dict[str, Any] = {"model": "ada", "training_file": "file-1"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": None}, "model"),
        ({"training_file": None}, "training_file"),
        ({"n_epochs": 51}, "n_epochs"),
        ({"n_epochs": True}, "n_epochs"),
        ({"batch_size": "auto"}, "batch_size"),
        ({"batch_size": 257}, "batch_size"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": "1"}, "learning_rate"),
        ({"n_evals": -1}, "n_evals"),
        ({"suffix": "x" * 41}, "suffix"),
        ({"random_seed": -1}, "random_seed"),
        ({"training_method": {"method": "dpo"}}, "training_method.method"),
        ({"training_method": {"method": "sft", "dpo_beta": 1}}, "training_method.dpo_beta"),
        ({"training_method": {"method": "sft", "train_on_inputs": "some"}}, "training_method.train_on_inputs"),
        ({"training_method": 7}, "training_method"),
        ({"training_type": {"type": "Lora", "lora_r": 8, "lora_alpha": 16}}, "training_type"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"lr_scheduler": {"lr_scheduler_type": "cosine"}}, "lr_scheduler"),
        ({"wandb_api_key": "k"}, "wandb_api_key"),
        ({"learning_rate_multiplier": 0.1}, "learning_rate_multiplier"),
    ],
)
def test_refused(changes: dict[str, Any], field: str) -> None:
    """What the trainer cannot do is refused by name; nothing is dropped."""
    with pytest.raises(RequestInvalid) as caught:
        read_job_request(ASKED | changes)
    assert caught.value.field == field


def test_what_the_client_sends_by_default() -> None:
    """The defaults that Together's client sends say what the trainer does, or leave it to the server."""
    request, extras = read_job_request(
        ASKED
        | {"validation_file": "", "packing": True, "n_epochs": 1, "learning_rate": 1e-5, "warmup_ratio": 0.0}
        | {"max_grad_norm": 1.0, "weight_decay": 0.0, "n_checkpoints": 1, "n_evals": 0, "batch_size": "max"}
        | {"early_stopping_enabled": False, "training_method": {"method": "sft", "train_on_inputs": "auto"}}
        | {
            "lr_scheduler": {
                "lr_scheduler_type": "cosine",
                "lr_scheduler_args": {"min_lr_ratio": 0.0, "num_cycles": 0.5},
            }
        }
    )
    assert (request.validation_file, request.batch_size, request.learning_rate, request.n_epochs) == (
        None,
        None,
        1e-5,
        1,
    )
    assert request.prompt_loss_weight == 0
    assert (extras.suffix, extras.seed) == (None, None)
    trained, _ = read_job_request(ASKED | {"training_method": {"method": "sft", "train_on_inputs": True}})
    assert trained.prompt_loss_weight == 1


async def test_a_job_is_one_under_all_apis(plain: Client, client: Client) -> None:
    """A job has one id and one history, whichever API made it and whichever shows it."""
    file_id = (await client.upload(ROWS))["id"]
    theirs = await client.call("POST", "/fine-tunes", json={"model": "ada", "training_file": file_id, "n_epochs": 1})
    shown = await plain.call("GET", f"/fine-tunes/{theirs['id']}")
    assert (shown["training_file"], shown["n_epochs"], shown["created_at"]) == (
        *(file_id, 1),
        show_time(theirs["created_at"]),
    )
    ours = await plain.call("POST", "/fine-tunes", json=ASKED | {"training_file": file_id, "suffix": "x"})
    assert ours["id"].startswith("ft-")
    assert (ours["suffix"], ours["events"]) == ("x", [])
    assert (await client.finish(ours["id"]))["status"] == "succeeded"
    done = await plain.call("GET", f"/fine-tunes/{ours['id']}")
    assert (done["status"], done["epochs_completed"]) == ("completed", 1)
    assert [event["type"] for event in done["events"]][-1] == "job_complete"
    assert [job["id"] for job in (await plain.call("GET", "/fine-tunes"))["data"]] == [ours["id"], theirs["id"]]
    await plain.call("DELETE", f"/fine-tunes/{ours['id']}")
    await client.call("GET", f"/fine-tunes/{ours['id']}", status=404)


async def test_limits(plain: Client) -> None:
    """The models that can be tuned are named, with their limits; any other is refused."""
    models = (await plain.call("GET", "/fine-tunes/models/supported"))["models"]
    assert models == ["ada", "babbage", "curie", "davinci"]
    assert (await plain.call("GET", "/fine-tunes/models/limits?model_name=ada"))["max_num_epochs"] == 50
    await plain.call("GET", "/fine-tunes/models/limits?model_name=gpt", status=404)


def test_metrics() -> None:
    """The figures of a job can be asked for from one step to another, and sampled, but for those of evaluations."""
    rows = Results(
        ResultRow(step, training_loss=step / 10, validation_loss=0.5 if step % 5 == 0 else None)
        for step in range(1, 11)
    )
    assert len(show_metrics(rows, {})) == 10
    assert [
        row["train/global_step"] for row in show_metrics(rows, {"global_step_from": "3", "global_step_to": "4"})
    ] == [3, 4]
    sampled = show_metrics(rows, {"resolution": "2"})
    assert sum("train/loss" in row for row in sampled) == 2
    assert sum("eval/loss" in row for row in sampled) == 2
    with pytest.raises(RequestInvalid):
        show_metrics(rows, {"resolution": "many"})
    assert show_metrics(Results(), {}) == []


async def test_random_bytes(session: FineTuneSession) -> None:
    """Any bytes arrive as they are, and are told to be no training file."""
    content = random.Random(1).randbytes(100_000)  # noqa: S311  # no secret
    with pytest.raises(DatasetError):
        await session.upload_file(content)
    (file,) = await session.list_files()
    assert await session.download_file(file.id) == content
