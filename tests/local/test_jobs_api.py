"""The embedded server's `/fine_tuning/jobs`: the same jobs as `/fine-tunes`, in the shape of the later API."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiofinetune.errors import RequestInvalid
from aiofinetune.local import LocalServer
from aiofinetune.local._jobs_api import read_job_request, read_metadata_filter
from aiofinetune.local._queue import event_id, position_of
from aiofinetune.local._store import Store
from aiofinetune.local._store.jobs import Extras
from aiofinetune.models import FineTuneRequest
from tests.local.plainclient import KEY, Client, Connect
from tests.local.test_store import ROW, add_file

JOBS = "/fine_tuning/jobs"
JOB_KEYS = {
    *("id", "object", "created_at", "finished_at", "model", "fine_tuned_model", "organization_id", "result_files"),
    *("status", "training_file", "validation_file", "hyperparameters", "trained_tokens", "error", "seed"),
    *("estimated_finish", "integrations", "metadata", "method", "user_provided_suffix"),
}


def supervised(**hyperparameters: object) -> dict[str, object]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


async def create(client: Client, file_id: str, **parameters: object) -> Any:
    return await client.call("POST", JOBS, json={"model": "ada", "training_file": file_id, **parameters})


async def pages(client: Client, path: str, **params: Any) -> list[Any]:
    """Read a list page by page."""
    shown: list[Any] = []
    page: Any = {"has_more": True}
    while page["has_more"]:
        page = await client.call("GET", path, params={**params, **({"after": shown[-1]["id"]} if shown else {})})
        assert page["object"] == "list"
        assert 0 < len(page["data"]) <= params["limit"]
        shown += page["data"]
    return shown


async def test_a_job_is_one_under_both_apis(client: Client, examples: bytes) -> None:
    """A job has one id and one history; each API shows it in its own shape, whichever created it."""
    file_id = (await client.upload(examples))["id"]
    other = await client.call("POST", "/fine-tunes", json={"model": "ada", "training_file": file_id, "n_epochs": 1})
    method = supervised(n_epochs=5, batch_size="auto", learning_rate_multiplier=0.2)
    created = await create(
        client, file_id, validation_file=file_id, method=method, suffix="s" * 64, metadata={"a": "b"}, integrations=[]
    )
    assert created.keys() == JOB_KEYS
    assert created["id"].startswith("ftjob-")
    assert (created["object"], created["status"], created["finished_at"]) == ("fine_tuning.job", "queued", None)
    assert created["hyperparameters"] == {"n_epochs": 5, "batch_size": 1, "learning_rate_multiplier": 0.2}
    assert created["method"] == {"type": "supervised", "supervised": {"hyperparameters": created["hyperparameters"]}}

    reference = await client.finish(created["id"])
    job = await client.call("GET", f"{JOBS}/{created['id']}")
    assert (reference["id"], reference["status"], job["status"]) == (job["id"], "succeeded", "succeeded")
    assert job["fine_tuned_model"] == reference["fine_tuned_model"]
    assert f":{'s' * 64}-" in job["fine_tuned_model"]
    assert job["result_files"] == [file["id"] for file in reference["result_files"]]
    assert job["finished_at"] == reference["updated_at"]
    assert job["trained_tokens"] == 5 * 20 * 3
    unchanged = (
        "created_at",
        "hyperparameters",
        "metadata",
        "training_file",
        "validation_file",
        "user_provided_suffix",
    )
    assert {key: job[key] for key in unchanged} == {key: created[key] for key in unchanged}

    shown = await client.call("GET", JOBS)
    assert [each["id"] for each in shown["data"]] == [job["id"], other["id"]]
    assert shown["data"][1].keys() == JOB_KEYS
    assert (shown["data"][1]["status"], shown["data"][1]["metadata"], shown["data"][1]["seed"]) == (
        "succeeded",
        None,
        0,
    )

    events = await pages(client, f"{JOBS}/{job['id']}/events", limit=3)
    listed = (await client.call("GET", f"/fine-tunes/{job['id']}/events"))["data"]
    told = ("id", "created_at", "level", "message")
    assert [{key: event[key] for key in told} for event in events[::-1]] == [
        {key: event[key] for key in told} for event in listed
    ]
    assert {event["object"] for event in events} == {"fine_tuning.job.event"}


async def test_the_last_epochs_leave_checkpoints(client: Client, data: Path, examples: bytes) -> None:
    """The models of the last three epochs can be used and deleted; the latest is the job's model."""
    file_id = (await client.upload(examples))["id"]
    job = await create(client, file_id, validation_file=file_id, method=supervised(n_epochs=5))
    path = f"{JOBS}/{job['id']}/checkpoints"
    assert (await client.call("GET", path))["data"] == []
    model = (await client.finish(job["id"]))["fine_tuned_model"]
    kept = await pages(client, path, limit=1)
    assert [each["step_number"] for each in kept] == [100, 80, 60]
    assert [each["fine_tuned_model_checkpoint"] for each in kept] == [
        model,
        f"{model}:ckpt-step-80",
        f"{model}:ckpt-step-60",
    ]
    assert len(list((data / "models").iterdir())) == 3
    results_id = (await client.call("GET", f"{JOBS}/{job['id']}"))["result_files"][0]
    async with client.http.get(f"{client.base_url}/files/{results_id}/content") as response:
        header, *rows = [row.split(",") for row in (await response.text()).splitlines()]
    for each in kept:
        row = dict(zip(header, rows[each["step_number"] - 1], strict=True))
        assert each["metrics"]["step"] == each["step_number"]
        assert f"{each['metrics']['train_loss']:.6g}" == row["training_loss"]
        assert f"{each['metrics']['full_valid_loss']:.6g}" == row["validation_loss"]
        asked = {"model": each["fine_tuned_model_checkpoint"], "prompt": "3 is", "max_tokens": 1}
        assert (await client.call("POST", "/completions", json=asked))["model"] == asked["model"]
    # A checkpoint can be trained further; the list of models has the job's model only.
    further = await create(client, file_id, model=f"{model}:ckpt-step-60", hyperparameters={"n_epochs": 1})
    assert (await client.finish(further["id"]))["status"] == "succeeded"
    assert f"{model}:ckpt-step-80" not in [each["id"] for each in (await client.call("GET", "/models"))["data"]]
    await client.call("DELETE", f"/models/{model}:ckpt-step-80")
    await client.call("GET", f"/models/{model}:ckpt-step-80", status=404)
    await client.call("DELETE", f"/models/{model}")
    assert [each["step_number"] for each in (await client.call("GET", path))["data"]] == [60]
    assert (await client.call("GET", path, status=400, params={"after": kept[0]["id"]}))["param"] == "after"


async def test_a_job_that_does_not_succeed_leaves_no_checkpoint(client: Client, data: Path, examples: bytes) -> None:
    """The models of the epochs of a job that is cancelled are removed with its trainer."""
    file_id = (await client.upload(examples * 200))["id"]
    job = await create(client, file_id, model="davinci", method=supervised(n_epochs=3, batch_size=8))
    await client.reach(job["id"], "Completed epoch 1/3")
    assert list((data / "models").iterdir()) != []
    await client.call("POST", f"{JOBS}/{job['id']}/cancel")
    # The next job starts when nothing is left of this one.
    after = await create(client, file_id, method=supervised(n_epochs=1, batch_size=256))
    await client.reach(after["id"], "Fine-tune started")
    assert list((data / "models").iterdir()) == []
    await client.call("POST", f"{JOBS}/{after['id']}/cancel")


async def test_the_list_is_filtered_by_metadata(client: Client, examples: bytes) -> None:
    """Pages of jobs come latest first, and contain the jobs with all the keys and values that are asked for."""
    file_id = (await client.upload(examples))["id"]
    kinds: list[dict[str, str] | None] = [{"a": "1"}, None, {"a": "1", 'odd "key" é': ""}, {"a": "2"}, {"a": "1"}]
    running = await create(client, file_id, model="davinci", method=supervised(n_epochs=50), metadata={"a": "0"})
    jobs = [(await create(client, file_id, metadata=kind))["id"] for kind in kinds]
    assert [job["id"] for job in await pages(client, JOBS, limit=2)] == [*jobs[::-1], running["id"]]
    for asked, expected in (
        ({"metadata[a]": "1"}, [4, 2, 0]),
        ({"metadata[a]": "1", 'metadata[odd "key" é]': ""}, [2]),
        ({"metadata[a]": "1", "after": jobs[4], "limit": "1"}, [2]),
        ({"metadata[b]": "1"}, []),
        ({"metadata": "null"}, [1]),
    ):
        page = await client.call("GET", JOBS, params=asked)
        assert [job["id"] for job in page["data"]] == [jobs[index] for index in expected], asked
        assert page["has_more"] == ("limit" in asked)
    for wrong, param in (
        ({"metadata": "1"}, "metadata"),
        ({"metadata": "null", "metadata[a]": "1"}, "metadata"),
        ({"after": "ftjob-x"}, "after"),
        ({"limit": "0"}, "limit"),
    ):
        assert (await client.call("GET", JOBS, status=400, params=wrong))["param"] == param
    wrong_event = {"after": event_id(jobs[1], 0)}
    error = await client.call("GET", f"{JOBS}/{jobs[0]}/events", status=400, params=wrong_event)
    assert error["param"] == "after"
    for job_id in (*jobs, running["id"]):
        assert (await client.call("POST", f"{JOBS}/{job_id}/cancel"))["status"] == "cancelled"


async def test_a_job_can_be_paused_and_resumed(
    client: Client, data: Path, examples: bytes, trainers: Callable[[Path], list[int]]
) -> None:
    """A paused job leaves the queue, its trainer ends, and it keeps its files; a resumed one takes its turn again."""
    file_id = (await client.upload(examples))["id"]
    long_file = (await client.upload(examples * 100))["id"]
    long = await create(client, long_file, model="davinci", method=supervised(n_epochs=50, batch_size=200))
    await client.reach(long["id"], "Completed epoch 1/50")
    job = await client.call("GET", f"{JOBS}/{long['id']}")
    assert job["status"] == "running"
    assert job["estimated_finish"] >= job["created_at"]
    path = f"{JOBS}/{long['id']}"
    for _ in range(2):
        paused = await client.call("POST", f"{path}/pause")
        assert (paused["status"], paused["estimated_finish"]) == ("paused", None)
    assert (await client.call("GET", f"/fine-tunes/{long['id']}"))["status"] == "pending"
    short = await create(client, file_id, method=supervised(n_epochs=1))
    assert (await client.finish(short["id"]))["status"] == "succeeded"
    assert trainers(data) == []
    assert long["id"] in (await client.call("DELETE", f"/files/{long_file}", status=409))["message"]
    for _ in range(2):
        assert (await client.call("POST", f"{path}/resume"))["status"] in ("queued", "validating_files", "running")
    said = [event["message"] for event in (await client.call("GET", f"{path}/events"))["data"][::-1]]
    resumed = said.index("Fine-tune resumed")
    assert said[resumed - 1] == "Fine-tune paused. It will start again from the beginning"
    assert said[resumed + 1] == "Fine-tune enqueued. Queue number: 0"
    await client.call("POST", f"{path}/pause")
    assert (await client.call("POST", f"{path}/cancel"))["status"] == "cancelled"
    for action in ("pause", "resume"):
        assert "cancelled" in (await client.call("POST", f"{path}/{action}", status=400))["message"]
        await client.call("POST", f"{JOBS}/ftjob-x/{action}", status=404)


async def test_a_resumed_job_goes_before_younger_ones(data: Path) -> None:
    """A paused job stays so over a restart; resumed, its place is behind what runs and before younger jobs."""
    async with Store(data).opened() as store:
        request = FineTuneRequest(training_file=await add_file(store, ROW), model="ada")
        first, second, third = [(await store.jobs.create(request)).id for _ in range(3)]
        await store.jobs.pause(first)
    async with Store(data).opened() as store:
        assert (await store.jobs.row(first)).is_paused
        attempt = await store.attempts.take_next()
        assert attempt is not None
        assert attempt.job.id == second
        assert not (await store.jobs.resume(first)).is_paused
        await store.attempts.put_back(attempt, "why")
        for job_id, place in ((first, 1), (second, 1), (third, 1)):
            said = [event.message for event in (await store.jobs.get(job_id)).events]
            assert [text for text in said if "Queue number" in text][-1].endswith(f": {place}"), said
        attempt = await store.attempts.take_next()
        assert attempt is not None
        assert attempt.job.id == first


async def test_the_seed_decides_the_training(client: Client, examples: bytes) -> None:
    """Equal seeds give equal results, other seeds other ones; without one it is 0."""
    file_id = (await client.upload(examples))["id"]
    results = []
    for seed in (None, 0, 1):
        job = await create(client, file_id, seed=seed, method=supervised(n_epochs=1))
        assert job["seed"] == (seed or 0)
        await client.finish(job["id"])
        done = await client.call("GET", f"{JOBS}/{job['id']}")
        async with client.http.get(f"{client.base_url}/files/{done['result_files'][0]}/content") as response:
            results.append(await response.read())
    assert results[0] == results[1] != results[2]


async def test_a_store_of_an_earlier_server_opens(data: Path, connect: Connect, examples: bytes) -> None:
    """A store without the tables and columns of the jobs API gets them, and its jobs are shown."""
    async with LocalServer(data, api_key=KEY) as server, connect(server.base_url) as client:
        job = await client.finish((await client.create(examples, n_epochs=1, suffix="old"))["id"])
    with sqlite3.connect(data / "server.sqlite3") as database:
        for column in ("seed", "metadata", "is_validated", "estimated_finish", "trained_tokens", "failed_param"):
            database.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
        for table in ("checkpoints", "uploads", "parts"):
            database.execute(f"DROP TABLE {table}")
    database.close()
    (data / "parts").rmdir()
    async with LocalServer(data, api_key=KEY) as server, connect(server.base_url) as client:
        assert await client.call("GET", f"/fine-tunes/{job['id']}") == job
        shown = await client.call("GET", f"{JOBS}/{job['id']}")
        assert (shown["status"], shown["finished_at"]) == ("succeeded", job["updated_at"])
        assert (shown["trained_tokens"], shown["user_provided_suffix"], shown["seed"]) == (None, "old", 0)
        assert (await client.call("GET", f"{JOBS}/{job['id']}/checkpoints"))["data"] == []


# What is read, without a server

JOB: dict[str, object] = {"model": "ada", "training_file": "file-x"}
WRONG: list[tuple[dict[str, object], str]] = [
    ({"training_file": "file-x"}, "model"),
    ({"model": "ada"}, "training_file"),
    (JOB | {"training_file": 5}, "training_file"),
    (JOB | {"n_epochs": 4}, "n_epochs"),
    (JOB | {"method": "supervised"}, "method"),
    (JOB | {"method": {}}, "method.type"),
    (JOB | {"method": {"type": "dpo", "dpo": {}}}, "method.type"),
    (JOB | {"method": {"type": "reinforcement"}}, "method.type"),
    (JOB | {"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
    (JOB | {"method": {"type": "supervised", "supervised": []}}, "method.supervised"),
    (JOB | {"method": {"type": "supervised", "supervised": {"beta": 1}}}, "method.supervised.beta"),
    (JOB | {"method": supervised(beta=1)}, "method.supervised.hyperparameters.beta"),
    (JOB | {"method": supervised(n_epochs=0)}, "method.supervised.hyperparameters.n_epochs"),
    (JOB | {"method": supervised(n_epochs=True)}, "method.supervised.hyperparameters.n_epochs"),
    (JOB | {"method": supervised(n_epochs="4")}, "method.supervised.hyperparameters.n_epochs"),
    (JOB | {"method": supervised(batch_size=257)}, "method.supervised.hyperparameters.batch_size"),
    (
        JOB | {"method": supervised(learning_rate_multiplier=0)},
        "method.supervised.hyperparameters.learning_rate_multiplier",
    ),
    (JOB | {"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
    (JOB | {"hyperparameters": [4]}, "hyperparameters"),
    (JOB | {"hyperparameters": {"n_epochs": 3}, "method": supervised(n_epochs=4)}, "hyperparameters.n_epochs"),
    (JOB | {"suffix": "x" * 65}, "suffix"),
    (JOB | {"suffix": ""}, "suffix"),
    (JOB | {"seed": -1}, "seed"),
    (JOB | {"seed": 2**31}, "seed"),
    (JOB | {"metadata": []}, "metadata"),
    (JOB | {"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    (JOB | {"metadata": {"x" * 65: ""}}, "metadata"),
    (JOB | {"metadata": {"x": 5}}, "metadata.x"),
    (JOB | {"metadata": {"x": "x" * 513}}, "metadata.x"),
    (JOB | {"integrations": [{"type": "wandb"}]}, "integrations"),
]


@pytest.mark.parametrize(("value", "field"), WRONG)
def test_what_cannot_be_done_is_refused_by_its_field(value: dict[str, object], field: str) -> None:
    """A parameter that is unknown, wrong or beyond the trainer is refused, with the path of its field."""
    with pytest.raises(RequestInvalid) as caught:
        read_job_request(value)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "value",
    [
        JOB | {"method": supervised(n_epochs=3, batch_size="auto")},
        JOB | {"hyperparameters": {"n_epochs": 3, "learning_rate_multiplier": "auto"}},
        JOB | {"hyperparameters": {"n_epochs": 3}, "method": supervised(n_epochs=3), "suffix": None, "seed": None},
        JOB | {"hyperparameters": {"n_epochs": 3}, "method": {"type": "supervised"}, "integrations": []},
    ],
)
def test_hyperparameters_are_read_from_both_places(value: dict[str, object]) -> None:
    """Numbers are read from ``method`` and from ``hyperparameters``; "auto" and null leave them to the server."""
    request, extras = read_job_request(json.loads(json.dumps(value)))
    assert request.given() == JOB | {"n_epochs": 3}
    assert extras == Extras()


def test_a_metadata_filter() -> None:
    """Keys in brackets are read as they are, brackets in them included."""
    asked = {"metadata[a]": "1", "metadata[b[c]]": "", "limit": "5"}
    assert read_metadata_filter(asked).items == {"a": "1", "b[c]": ""}
    assert read_metadata_filter({"metadata": "null"}).is_null


def test_an_event_id_gives_its_position_back() -> None:
    """Only an id of an event of the same job has a position."""
    assert position_of("ftjob-ab", event_id("ftjob-ab", 12)) == 12
    for wrong in (event_id("ftjob-a", 1), "ftevent-ab-01", "ftevent-ab--1", "ftevent-ab-", "12", "ftevent-ab-1\n"):
        assert position_of("ftjob-ab", wrong) is None
