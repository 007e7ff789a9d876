"""The routes of attempts: what a worker may do with its token, and what nobody may."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from yarl import URL

from aiofinetune.errors import ConfigurationError
from aiofinetune.local import LocalServer
from aiofinetune.local._engines import model as engine
from aiofinetune.local._routes import attempts as routes
from aiofinetune.local._store.attempts import AttemptStore
from aiofinetune.local._trainers import claims, remote
from aiofinetune.local._trainers.claims import Claims
from aiofinetune.local._trainers.remote import RemoteTrainers
from tests.local.plainclient import KEY, Client, connected

WORKER = "a-token-for-workers"
RUNNER, OTHER = "0" * 32, "1" * 32
RESULTS = b"step,elapsed_tokens,elapsed_examples,training_loss,training_sequence_accuracy\n"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model of ada, as a trainer writes it."""
    path = tmp_path_factory.mktemp("model") / "model.npz"
    engine.save(engine.load_base("ada"), path)
    return path.read_bytes()


@attrs.define
class Worker:
    """A worker by hand: it calls what a test says."""

    http: aiohttp.ClientSession
    url: str
    trainers: RemoteTrainers
    token: str = WORKER
    runner: str = RUNNER
    id: str = ""

    async def call(self, method: str, path: str = "", *, status: int = 200, **options: Any) -> Any:
        """Call one of the attempt's routes, check the status, and return the JSON, or the bytes."""
        headers = {"Authorization": f"Bearer {self.token}", "Aiofinetune-Runner": self.runner}
        url = URL(f"{self.url}/{self.id}{path}" if self.id else self.url, encoded=True)
        async with self.http.request(method, url, headers=headers | options.pop("headers", {}), **options) as response:
            body = await response.read()
            assert response.status == status, body
            return json.loads(body) if response.content_type == "application/json" else body

    async def claim(self, **resources: int) -> Worker:
        """Claim an attempt, and return a worker that has its token."""
        given = await self.call("POST", json={"resources": resources})
        return attrs.evolve(self, token=given["token"], id=given["id"])

    async def upload(self, model: bytes, results: bytes = RESULTS, *, start: int = 0) -> dict[str, str]:
        """Upload the two outputs from a byte on; return the digests of the whole ones by name."""
        digests = {}
        for name, content in zip((await self.call("GET"))["outputs"], (model, results), strict=True):
            await self.call("PUT", f"/outputs/{name}", params={"start": str(start)}, data=io.BytesIO(content[start:]))
            digests[name] = hashlib.sha256(content).hexdigest()
        return digests


@asynccontextmanager
async def serving(data: Path, **needs: Mapping[str, int]) -> AsyncIterator[tuple[Client, Worker]]:
    """A server that gives its attempts to workers, a client of it, and a worker by hand."""
    trainers = RemoteTrainers(Claims())
    async with (
        LocalServer(data, api_key=KEY, remote=trainers, worker_token=WORKER, needs=needs) as server,
        connected(server.base_url) as client,
        aiohttp.ClientSession() as http,
    ):
        yield client, Worker(http, f"{server.base_url}/attempts", trainers)


LINES = b'{"type": "started"}\n{"type": "epoch", "epoch": 1, "n_epochs": 1}\n{"type": "succeeded"}'
END = {"lines": 3, "is_well": True, "how": "with exit status 0"}


async def test_a_worker_by_hand(data: Path, examples: bytes, model: bytes) -> None:
    """The calls of a worker, one by one, end in a job with a model; each can be repeated."""
    async with serving(data) as (client, hand):
        job = await client.create(examples, n_epochs=1)
        worker = await hand.claim()
        work = await worker.call("GET", params={"where": "far away"})
        assert await worker.call("GET", params={"where": "elsewhere"}) == work
        assert work["job_id"] == job["id"]
        ((name, size),) = [(each["name"], each["bytes"]) for each in work["inputs"]]
        assert (await worker.call("GET", f"/inputs/{name}"), size) == (examples, len(examples))
        rest = await worker.call("GET", f"/inputs/{name}", headers={"Range": "bytes=10-"}, status=206)
        assert rest == examples[10:]
        for start in (0, 0, 1):
            lines = b"\n".join(LINES.split(b"\n")[start:])
            assert await worker.call("POST", "/lines", params={"start": str(start)}, data=lines) == {"next": 3}
        digests = await worker.upload(model)
        await worker.call("POST", "/end", json={**END, "outputs": digests}, status=204)
        await worker.call("POST", "/end", json={**END, "outputs": digests}, status=410)
        job = await client.finish(job["id"])
        assert job["status"] == "succeeded"
        messages = [event["message"] for event in job["events"]]
        assert messages.count("Training on far away") == messages.count("Completed epoch 1/1") == 1


async def test_an_upload_goes_on_where_it_broke(data: Path, examples: bytes, model: bytes) -> None:
    """A worker asks what has arrived and sends the rest; a gap is refused, and nothing is stored twice."""
    async with serving(data) as (client, hand):
        job = await client.create(examples, n_epochs=1)
        worker = await hand.claim()
        name, _ = (await worker.call("GET"))["outputs"]
        assert await worker.call("GET", f"/outputs/{name}") == {"bytes": 0}
        await worker.call("PUT", f"/outputs/{name}", params={"start": "3"}, data=b"x", status=409)
        await worker.upload(model[:4], RESULTS[:4])
        assert await worker.call("GET", f"/outputs/{name}") == {"bytes": 4}
        end = {**END, "outputs": await worker.upload(model, start=3)}
        await worker.call("POST", "/lines", data=LINES)
        # In the meantime the server has fewer lines than the trainer wrote.
        await worker.call("POST", "/end", json={**end, "lines": 4}, status=409)
        await worker.call("POST", "/end", json=end, status=204)
        await client.finish(job["id"])
        assert [path.read_bytes() for path in (data / "models").iterdir()] == [model]


async def test_keys_and_tokens_open_only_their_own(data: Path, examples: bytes) -> None:
    """The API's key opens no attempt; the workers' token only claims; an attempt's opens that attempt alone."""
    async with serving(data) as (client, hand):
        jobs = [await client.create(examples) for _ in range(2)]
        one, two = await hand.claim(), await hand.claim()
        for token in (KEY, WORKER, two.token, "", one.token + "x", one.token[:-1]):
            thief = attrs.evolve(one, token=token)
            for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/watch"), ("POST", "/lines"), ("POST", "/end")):
                assert (await thief.call(method, path, status=401))["error"]["code"] == "invalid_api_key"
        for token in (KEY, one.token):
            await attrs.evolve(hand, token=token).call("POST", json={}, status=401)
        for token in (WORKER, one.token):
            async with connected(client.base_url, token) as stranger:
                for path in ("/files", "/models", f"/fine-tunes/{jobs[0]['id']}", "/nowhere"):
                    await stranger.call("GET", path, status=401)
        await client.call("GET", "/nowhere", status=404)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER"])
async def test_the_scheme_of_a_token_may_be_in_any_case(data: Path, examples: bytes, scheme: str) -> None:
    """The routes of workers and those of clients both take ``Authorization: bearer TOKEN`` (RFC 9110)."""
    async with serving(data) as (client, hand):
        await client.create(examples)
        assert await hand.call("POST", json={"resources": {}}, headers={"Authorization": f"{scheme} {WORKER}"})
        await client.call("GET", "/models", headers={"Authorization": f"{scheme} {KEY}"})


@pytest.mark.parametrize("path", ["..", ".", "%2e%2e", "..%2f..%2ffiles", "attempt-%00", "attempt-" + "A" * 24, "%"])
async def test_a_path_in_an_id_or_a_name_leads_nowhere(data: Path, examples: bytes, path: str) -> None:
    """An id is only compared with those of attempts, and a name with those of the attempt's own files."""
    async with serving(data) as (client, hand):
        await client.create(examples)
        worker = await hand.claim()
        for method in ("GET", "DELETE"):
            async with hand.http.request(
                method, URL(f"{hand.url}/{path}", encoded=True), headers={"Authorization": f"Bearer {worker.token}"}
            ) as response:
                assert response.status in (400, 401, 404), await response.text()
        await worker.call("GET")
        for kind, method in (("inputs", "GET"), ("outputs", "GET"), ("outputs", "PUT")):
            for name in (path, f"{path}/server.sqlite3", "%2e%2e%2fserver.sqlite3", "..%2fserver.sqlite3"):
                async with hand.http.request(
                    method,
                    URL(f"{hand.url}/{worker.id}/{kind}/{name}", encoded=True),
                    headers={"Authorization": f"Bearer {worker.token}", "Aiofinetune-Runner": RUNNER},
                ) as response:
                    assert response.status in (400, 401, 404, 405), (name, await response.text())
        assert not list(data.glob("**/*.partial"))


async def test_a_late_attempt_is_told_so(data: Path, examples: bytes) -> None:
    """When its job is cancelled, every call of an attempt is answered with 410, the one that waits at once."""
    async with serving(data) as (client, hand):
        job = await client.create(examples)
        worker = await hand.claim()
        await worker.call("GET")
        await worker.upload(b"half")
        waiting = asyncio.create_task(worker.call("GET", "/watch", status=410))
        await asyncio.sleep(0)
        await client.call("POST", f"/fine-tunes/{job['id']}/cancel")
        await waiting
        for method, path in (("GET", ""), ("GET", "/watch"), ("POST", "/lines"), ("POST", "/end"), ("DELETE", "")):
            await worker.call(method, path, status=410)
        assert [len(list((data / part).iterdir())) for part in ("models", "files", "runs")] == [0, 1, 0]


async def test_an_end_takes_no_5xx(data: Path, examples: bytes, model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes to store an end, all that the worker asks meanwhile is answered with 410 after it."""
    async with serving(data) as (client, hand):
        job = await client.create(examples, n_epochs=1)
        worker = await hand.claim()
        await worker.call("GET")
        watches = [asyncio.create_task(worker.call("GET", "/watch", status=410))]
        stored, note_success = asyncio.Event(), AttemptStore.note_success

        async def note_late(self: AttemptStore, *arguments: Any) -> None:
            watches.append(asyncio.create_task(worker.call("GET", "/watch", status=410)))
            await asyncio.wait(watches, timeout=0.1)
            await note_success(self, *arguments)
            stored.set()

        monkeypatch.setattr(AttemptStore, "note_success", note_late)
        await worker.call("POST", "/lines", data=LINES)
        await worker.call("POST", "/end", json={**END, "outputs": await worker.upload(model)}, status=204)
        assert stored.is_set()
        await asyncio.gather(*watches)
        assert (len(watches), (await client.finish(job["id"]))["status"]) == (2, "succeeded")


async def test_only_one_process_runs_an_attempt(data: Path, examples: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a second process comes with the token of an attempt, the attempt is over for both, and another begins."""
    monkeypatch.setattr("aiofinetune.local._queue._FIRST_PAUSE", 0.01)
    async with serving(data) as (client, hand):
        job = await client.create(examples)
        worker = await hand.claim()
        await worker.call("GET")
        await attrs.evolve(worker, runner=OTHER).call("GET", status=410)
        again = await hand.claim()
        assert again.id != worker.id
        await worker.call("POST", "/lines", data=LINES, status=410)
        messages = [event["message"] for event in (await client.call("GET", f"/fine-tunes/{job['id']}"))["events"]]
        assert "Fine-tune interrupted: its worker was lost. It will start again from the beginning" in messages


async def test_a_worker_that_is_gone_is_not_waited_for(
    data: Path, examples: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the connection of a worker that waits is closed, and it does not come back, its job begins again."""
    monkeypatch.setattr("aiofinetune.local._queue._FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "_ABSENCE", 0.05)
    async with serving(data) as (client, hand):
        await client.create(examples)
        worker = await hand.claim()
        await worker.call("GET")
        live = hand.trainers.live[worker.id]
        waiting = asyncio.create_task(worker.call("GET", "/watch"))
        while not live.requests:
            await asyncio.sleep(0)
        waiting.cancel()
        again = await hand.claim()
        assert again.id != worker.id
        await worker.call("GET", status=410)


@pytest.mark.parametrize("resources", [{"gpu": -1}, {"gpu": 0}, {"": 1}, {"gpu": 1.5}, {str(n): 1 for n in range(101)}])
async def test_resources_that_cannot_be(data: Path, resources: dict[str, float]) -> None:
    """What a worker says that it has cannot be less than nothing, which would take from what others have."""
    async with serving(data) as (_, hand):
        await hand.call("POST", json={"resources": resources}, status=400)


async def test_a_job_goes_to_one_worker_that_has_all_it_needs(data: Path, examples: bytes) -> None:
    """What two workers have together is not enough for a job, which stays pending; those that fit one train."""
    async with serving(data, babbage={"gpu": 2}, curie={"gpu": 1}) as (client, hand):
        models = ("babbage", "ada", "ada", "curie")
        large, *jobs = [(await client.create(examples, model=model))["id"] for model in models]
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(hand.claim(gpu=1)) for _ in range(2)]
        assert {(await each.result().call("GET"))["job_id"] for each in asking} == set(jobs[:2])
        assert (await (await hand.claim(gpu=1)).call("GET"))["job_id"] == jobs[2]
        assert (await client.call("GET", f"/fine-tunes/{large}"))["status"] == "pending"
        assert (await (await hand.claim(gpu=2)).call("GET"))["job_id"] == large


async def test_a_worker_without_room_stops_no_other(
    data: Path, examples: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker whose disk is full gives its job back; its event and the log name the worker, and nothing pauses."""
    async with serving(data) as (client, hand):
        job = await client.create(examples)
        worker = await hand.claim()
        await worker.call("GET", params={"where": "far-away"})
        await worker.call("POST", "/lines", data=b'{"type": "short", "message": "No space left on device"}')
        reason = "its worker far-away has run out of a resource: No space left on device"
        await client.reach(job["id"], f"Fine-tune interrupted: {reason}. It will start again from the beginning")
        assert (await (await hand.claim()).call("GET"))["job_id"] == job["id"]
    assert f"fine-tune {job['id']} was interrupted on far-away: {reason}" in caplog.text
    assert "paused" not in caplog.text


async def test_an_attempt_whose_worker_left_does_not_run(
    data: Path, examples: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was begun for a worker that has left goes back into the queue, and waits for the next worker."""
    monkeypatch.setattr("aiofinetune.local._queue._FIRST_PAUSE", 0.01)
    monkeypatch.setattr(claims, "_FIRST_CLAIM", 0.01)
    async with serving(data) as (client, hand):
        asking = asyncio.create_task(hand.claim())
        engine = hand.trainers.engine
        while not engine.slots(0):
            await asyncio.sleep(0)
        start = engine.start

        async def start_late(order: remote.Order, live: remote.Live) -> None:
            asking.cancel()
            while engine.slots(0):
                await asyncio.sleep(0)
            await start(order, live)

        monkeypatch.setattr(engine, "start", start_late)
        job = await client.create(examples)
        lost = "Fine-tune interrupted: its worker was lost before it began. It will start again from the beginning"
        await client.reach(job["id"], lost)
        monkeypatch.setattr(engine, "start", start)
        assert (await (await hand.claim()).call("GET"))["job_id"] == job["id"]


async def test_a_worker_that_lies_about_its_model(data: Path, examples: bytes) -> None:
    """A model is taken only with the digest that the worker tells, and with all that belongs to it."""
    async with serving(data) as (client, hand):
        job = await client.create(examples, n_epochs=1)
        worker = await hand.claim()
        await worker.call("GET")
        await worker.call("POST", "/lines", data=LINES)
        digests = await worker.upload(b"weights")
        model = next(name for name in digests if name.startswith("model-"))
        for lie, status in (
            ({**digests, model: "0" * 64}, 422),
            ({model: digests[model]}, 400),
            ({**digests, "server.sqlite3": "0" * 64}, 400),
            ({}, 400),
        ):
            await worker.call("POST", "/end", json={**END, "outputs": lie}, status=status)
        # What did not have its digest is gone.
        assert await worker.call("GET", f"/outputs/{model}") == {"bytes": 0}
        await worker.call("POST", "/end", json={**END, "outputs": digests}, status=422)
        assert (await client.call("GET", f"/fine-tunes/{job['id']}"))["status"] == "running"
        assert (await client.call("GET", "/models"))["data"][-1]["id"] == "davinci"


async def test_a_model_has_a_limit(data: Path, examples: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that is too large is refused, whether or not it says how large it is."""
    monkeypatch.setattr(routes, "MAX_OUTPUT_BYTES", 10)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"12345"

    async with serving(data) as (client, hand):
        await client.create(examples)
        worker = await hand.claim()
        model, *_ = (await worker.call("GET"))["outputs"]
        await worker.call("PUT", f"/outputs/{model}", data=b"1" * 11, status=413)
        await worker.call("PUT", f"/outputs/{model}", data=pieces(), status=413)
        await worker.call("PUT", f"/outputs/{model}", params={"start": "8"}, data=b"123", status=413)
        assert all(path.stat().st_size <= 10 for path in (data / "models").iterdir())


async def test_no_token_is_kept(data: Path, examples: bytes) -> None:
    """The folder of the server has the digests of tokens, and no token."""
    async with serving(data) as (client, hand):
        await client.create(examples)
        worker = await hand.claim()
        await worker.call("GET")
        kept = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
        assert hashlib.sha256(worker.token.encode()).digest() in kept
        assert worker.token.encode() not in kept
        assert WORKER.encode() not in kept


async def test_tokens_do_not_travel_in_the_clear(data: Path) -> None:
    """A server that other machines reach gives them no attempts over http, unless it is told that it may."""
    for url in ("http://example.com:8000", "ftp://example.com", "http://user:pass@example.com"):
        with pytest.raises(ConfigurationError, match="public_url"):
            RemoteTrainers(Claims(), url)
    RemoteTrainers(Claims(), "http://example.com:8000", allow_plain_http=True)
    RemoteTrainers(Claims(), "https://example.com/v1")
    with pytest.raises(ConfigurationError, match=r"public_url: .* in plain text"):
        async with LocalServer(data, host="0.0.0.0", api_key=KEY, remote=RemoteTrainers(Claims()), worker_token=WORKER):
            pass
    with pytest.raises(ConfigurationError, match="a token of their own"):
        LocalServer(api_key=KEY, worker_token=KEY)


@pytest.mark.parametrize(
    "lines",
    [
        b'{"type": "epoch", "epoch": 3, "n_epochs": 3}',
        b'{"type": "epoch", "epoch": 0, "n_epochs": 2}',
        b'{"type": "epoch", "epoch": 1, "n_epochs": 1000000}',
        b'{"type": "odd", "text": "%b"}' % (b"x" * 100_000),
        b'{"type": "failed", "message": "%b"}' % (b"x" * 100_000),
        b'{"type": "failed", "message": "\\ud800"}',
        b'{"type": "succeeded", "trained_tokens": 1%b}' % (b"0" * 400),
        b"\xff\n\0",
    ],
    ids=[
        "too many epochs",
        "no epoch",
        "another number",
        "unknown",
        "long",
        "half a character",
        "large",
        "no JSON",
    ],
)
async def test_a_worker_that_says_anything(data: Path, examples: bytes, model: bytes, lines: bytes) -> None:
    """Whatever a worker sends for lines fails its job in few words, and no other job."""
    async with serving(data) as (client, hand):
        job = await client.create(examples, n_epochs=2)
        worker = await hand.claim()
        await worker.call("GET")
        digests = await worker.upload(model)
        await worker.call("POST", "/lines", data=lines)
        end = {**END, "lines": lines.count(b"\n") + 1, "outputs": digests}
        headers = {"Authorization": f"Bearer {worker.token}", "Aiofinetune-Runner": RUNNER}
        async with worker.http.post(f"{worker.url}/{worker.id}/end", json=end, headers=headers) as response:
            assert response.status in (204, 410)
        job = await client.finish(job["id"])
        assert job["status"] == "failed"
        assert sum(len(event["message"]) for event in job["events"]) < 5000
        await client.create(examples)
        assert (await hand.claim()).id != worker.id


@pytest.mark.parametrize(
    "line",
    [
        b'{"type": "epoch", "epoch": 1, "n_epochs": 1, "step": 2}',
        b'{"type": "started"}',
        b'{"type": "epoch", "epoch": 1, "n_epochs": 1, "step": 1, "figures": {"training_loss": "none"}}',
    ],
    ids=["an epoch twice", "two starts", "no figures"],
)
async def test_a_worker_that_contradicts_itself(data: Path, examples: bytes, model: bytes, line: bytes) -> None:
    """A job fails whose worker reports what cannot be, though it reports a success too."""
    async with serving(data) as (client, hand):
        job = await client.create(examples, n_epochs=1)
        worker = await hand.claim()
        digests = await worker.upload(model)
        started, epoch, succeeded = LINES.split(b"\n")
        told = [started, line, succeeded] if b"figures" in line else [started, epoch, line, succeeded]
        await worker.call("POST", "/lines", data=b"\n".join(told))
        end = {**END, "lines": len(told), "outputs": digests}
        headers = {"Authorization": f"Bearer {worker.token}", "Aiofinetune-Runner": RUNNER}
        await (await worker.http.post(f"{worker.url}/{worker.id}/end", json=end, headers=headers)).read()
        assert (await client.finish(job["id"]))["status"] == "failed"


@pytest.mark.parametrize("is_model", [False, True])
async def test_an_upload_that_is_no_model_fails_its_job(
    data: Path, examples: bytes, model: bytes, *, is_model: bool
) -> None:
    """Other bytes than those of a model, or of results, make no model, whatever their digest; the job says why."""
    async with serving(data) as (client, hand):
        job = await client.create(examples, n_epochs=1)
        worker = await hand.claim()
        await worker.call("GET")
        digests = await (worker.upload(model, b"weights") if is_model else worker.upload(b"weights"))
        await worker.call("POST", "/lines", data=LINES)
        answer = await worker.call("POST", "/end", json={**END, "outputs": digests}, status=400)
        why = "is no results file" if is_model else "is no model of ada: "
        assert f"what was uploaded {why}" in answer["error"]["message"]
        job = await client.finish(job["id"])
        told = job["events"][-2]["message"]
        assert told.startswith(f"The trainer ended well, but what its worker uploaded {why}")
        assert (job["status"], job["fine_tuned_model"]) == ("failed", None)
        assert [len(list((data / part).iterdir())) for part in ("models", "files", "runs")] == [0, 1, 0]


async def test_what_was_checked_does_not_change(data: Path, examples: bytes, model: bytes) -> None:
    """Once its outputs are checked, an attempt cannot exchange them, not even before its job is over."""
    async with serving(data) as (client, hand):
        job = await client.create(examples, n_epochs=1)
        worker = await hand.claim()
        name, _ = (await worker.call("GET"))["outputs"]
        digests = await worker.upload(model)
        await worker.call("POST", "/lines", data=LINES)
        live = hand.trainers.live[worker.id]
        async with live.writing:
            end = asyncio.create_task(worker.call("POST", "/end", json={**END, "outputs": digests}, status=204))
            while not live.requests:
                await asyncio.sleep(0)
            headers = {"Authorization": f"Bearer {worker.token}", "Aiofinetune-Runner": RUNNER}
            late = asyncio.create_task(
                worker.http.put(f"{worker.url}/{worker.id}/outputs/{name}", data=b"other", headers=headers)
            )
            while live.requests < 2:
                await asyncio.sleep(0)
        assert (await late).status in (409, 410)
        await end
        assert (await client.finish(job["id"]))["status"] == "succeeded"
        assert [path.read_bytes() for path in (data / "models").iterdir()] == [model]


async def test_a_file_that_is_missing_fails_its_job(data: Path, examples: bytes) -> None:
    """A job whose training file is no longer on the server's disk fails, and its worker does not wait for the file."""
    async with serving(data) as (client, hand):
        job = await client.create(examples)
        (data / "files" / job["training_files"][0]["id"]).unlink()
        worker = await hand.claim()
        await worker.call("GET", status=410)
        job = await client.finish(job["id"])
        assert job["events"][-2]["message"] == "The trainer ended because one of its files is missing on the server"
