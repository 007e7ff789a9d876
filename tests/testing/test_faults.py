"""Faults on demand: each is met by the requests or jobs that it is for, and a session survives it as it promises."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Collection
from typing import Any

import aiohttp
import attrs
import pytest
from aiohttp import web

from aiofinetune import (
    ConfigurationError,
    CreateUncertain,
    FineTune,
    FineTuneFailed,
    FineTuneRequest,
    FineTuneSession,
    NotFound,
    QuotaExceeded,
    Retry,
    Status,
    Timeout,
)
from aiofinetune.local import LocalServer
from aiofinetune.local._routes.replies import event_stream
from aiofinetune.testing import Address, Faults, FineTuneServer, Requests
from aiofinetune.testing._middleware import Middleware
from aiofinetune.testing._plans import Plans
from tests.local.plainclient import Client, connected, jsonl

EXAMPLES = jsonl([("wren ->", " bird"), ("carp ->", " fish")])


def endless() -> list[object]:
    """Return a list that is in itself."""
    found: list[object] = []
    found.append(found)
    return found


async def new_request(session: FineTuneSession) -> FineTuneRequest:
    return FineTuneRequest(training_file=(await session.upload_file(EXAMPLES)).id, model="ada")


async def until(session: FineTuneSession, job: FineTune, statuses: Collection[str]) -> FineTune:
    """Return a job once its status is one of these; `wait` would ask every two seconds in some dialects."""
    async with asyncio.timeout(30):
        while job.status not in statuses:
            job = await session.retrieve_fine_tune(job.id)
    return job


async def test_a_failure_is_met_as_often_as_asked(
    fine_tune_server: FineTuneServer, fine_tune_session: FineTuneSession
) -> None:
    """Two creates are throttled and make no job; the third makes one."""
    request = await new_request(fine_tune_session)
    fine_tune_server.faults.fail_next("create", status=429, retry_after=0, times=2)
    await fine_tune_session.create_fine_tune(request)
    assert [asked.status for asked in fine_tune_server.requests.to("create")] == [429, 429, 200]
    assert fine_tune_session.times_throttled == 2
    assert len(await fine_tune_session.list_fine_tunes()) == 1


@pytest.mark.parametrize(("seconds", "header"), [(0, "0"), (100, "100"), (0.01, "0.01"), (1234567, "1234567")])
async def test_a_pause_has_no_exponent(
    fine_tune_server: FineTuneServer, client: Client, seconds: float, header: str
) -> None:
    """Clients read the pause as a plain number of seconds."""
    fine_tune_server.faults.fail_next("list", retry_after=seconds)
    async with client.http.get(f"{client.base_url}/fine-tunes") as reply:
        assert reply.headers["Retry-After"] == header


async def test_the_fields_of_an_odd_reply_are_a_copy(fine_tune_server: FineTuneServer, client: Client) -> None:
    """What a test does with its values afterwards does not change the reply that it has asked for."""
    rows: list[object] = [1]
    fine_tune_server.faults.odd_reply("list", {"data": rows})
    rows.append(object())
    assert (await client.call("GET", "/fine-tunes"))["data"] == [1]


async def test_a_failure_has_a_code_and_a_pause(fine_tune_server: FineTuneServer, client: Client) -> None:
    """The reply of a failure is the API's own envelope, with what was asked for."""
    fine_tune_server.faults.fail_next(
        "list", status=429, message="No money left", code="insufficient_quota", retry_after=1.5
    )
    async with client.http.get(f"{client.base_url}/fine_tuning/jobs") as reply:
        assert (reply.status, reply.headers["Retry-After"]) == (429, "1.5")
        error = {"message": "No money left", "type": "invalid_request_error", "param": None}
        assert await reply.json() == {"error": {**error, "code": "insufficient_quota"}}
    fine_tune_server.faults.fail_next("list", status=429, code="insufficient_quota")
    async with FineTuneSession(fine_tune_server.api_key, base_url=fine_tune_server.base_url) as session:
        with pytest.raises(QuotaExceeded):
            await session.list_fine_tunes()


@pytest.mark.parametrize("path", ["/fine-tunes", "/fine_tuning/jobs"])
async def test_a_fault_is_for_both_apis(fine_tune_server: FineTuneServer, client: Client, path: str) -> None:
    """The endpoints of jobs have the same names in both APIs."""
    file = await client.upload(EXAMPLES)
    job = await client.call("POST", path, json={"training_file": file["id"], "model": "ada"})
    calls = {
        "create": ("POST", path),
        "list": ("GET", path),
        "retrieve": ("GET", f"{path}/{job['id']}"),
        "cancel": ("POST", f"{path}/{job['id']}/cancel"),
        "events": ("GET", f"{path}/{job['id']}/events"),
    }
    for name, (method, called) in calls.items():
        fine_tune_server.faults.fail_next(name, status=503)
        error = await client.call(method, called, status=503)
        assert error["message"] == "A fault on demand"
        assert fine_tune_server.requests[-1].endpoint == name
    assert not fine_tune_server.faults.pending


async def test_a_lost_reply_leaves_one_job(
    fine_tune_server: FineTuneServer, fine_tune_session: FineTuneSession
) -> None:
    """The job of a create whose reply is lost is found in the list, and no second one is made."""
    request = await new_request(fine_tune_session)
    fine_tune_server.faults.lose_reply("create")
    job = await fine_tune_session.create_fine_tune(request)
    assert fine_tune_server.requests.only("create").status is None
    assert [row.id for row in await fine_tune_session.list_fine_tunes()] == [job.id]


@pytest.mark.parametrize("path", ["/fine-tunes", "/fine_tuning/jobs", "/together/v1/fine-tunes"])
async def test_every_reply_can_be_lost(
    fine_tune_server: FineTuneServer, client: Client, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing arrives of a download, an event stream, a completion, a refusal or any other reply; none is an error."""
    job = await client.create(EXAMPLES)
    completion: dict[str, Any] = {"model": "ada", "prompt": "wren ->"}
    root = client.base_url.removesuffix("/v1")
    calls: list[tuple[str, str, str, dict[str, Any] | None]] = [
        ("download", "GET", f"/v1/files/{job['training_files'][0]['id']}/content", None),
        ("events", "GET", f"/v1/fine-tunes/{job['id']}/events?stream=true", None),
        ("completion", "POST", "/v1/completions", completion),
        ("completion", "POST", "/v1/completions", {**completion, "stream": True}),
        ("create", "POST", "PATH", {"training_file": "none", "model": "ada"}),
        ("retrieve", "GET", "PATH/none", None),
        ("list", "GET", "PATH", None),
        ("unknown", "GET", "/v1/none", None),
    ]
    api = path if path.startswith("/together") else f"/v1{path}"
    for endpoint, method, called, body in calls:
        # aiohttp sends a GET once more.
        fine_tune_server.faults.lose_reply(endpoint, times=2 if method == "GET" else 1)
        with pytest.raises(aiohttp.ClientError):
            await client.http.request(method, root + called.replace("PATH", api), json=body)
        asked = fine_tune_server.requests[-1]
        assert (asked.endpoint, asked.status) == (endpoint, None)
        assert not fine_tune_server.faults.pending
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_a_session_of_the_jobs_api_meets_the_same_faults(fine_tune_server: FineTuneServer) -> None:
    """A throttled create, and then one whose reply is lost, make one job there too, and its failure is reported."""
    key, url, retry = fine_tune_server.api_key, fine_tune_server.base_url, Retry(base=0.01, grace=0.2)
    async with FineTuneSession(key, base_url=url, dialect="jobs", retry=retry) as session:
        request = await new_request(session)
        fine_tune_server.faults.fail_next("create", status=429, retry_after=0)
        fine_tune_server.faults.lose_reply("create")
        fine_tune_server.faults.fail_job("no more disk space")
        job = await session.create_fine_tune(request)
        assert [str(asked) for asked in fine_tune_server.requests.to("create")] == ["POST /fine_tuning/jobs"] * 2
        assert [row.id for row in await session.list_fine_tunes()] == [job.id]
        with pytest.raises(FineTuneFailed, match="no more disk space"):
            await session.wait(job.id)


async def test_an_odd_reply_has_other_fields(
    fine_tune_server: FineTuneServer, fine_tune_session: FineTuneSession
) -> None:
    """Fields of a reply are replaced or left out; the server's job stays as it is."""
    job = await fine_tune_session.create_fine_tune(await new_request(fine_tune_session))
    await fine_tune_session.wait(job.id)
    fine_tune_server.faults.odd_reply("retrieve", {"status": "pondering"}, without=["fine_tuned_model"])
    odd = await fine_tune_session.retrieve_fine_tune(job.id)
    assert (odd.status, odd.fine_tuned_model) == ("pondering", None)
    assert (await fine_tune_session.retrieve_fine_tune(job.id)).status == Status.SUCCEEDED


async def test_a_create_without_an_id_is_found(
    fine_tune_server: FineTuneServer, fine_tune_session: FineTuneSession
) -> None:
    """A reply to a create that names no job makes the session look for it."""
    request = await new_request(fine_tune_session)
    fine_tune_server.faults.odd_reply("create", {}, without=["id"])
    fine_tune_server.faults.odd_reply("list", {"data": []}, times=None)
    with pytest.raises(CreateUncertain):
        await fine_tune_session.create_fine_tune(request)
    fine_tune_server.faults.clear()
    assert len(await fine_tune_session.list_fine_tunes()) == 1


@pytest.mark.parametrize("path", ["/fine-tunes", "/fine_tuning/jobs"])
async def test_a_reply_without_fields_leaves_an_odd_reply_to_the_next(
    fine_tune_server: FineTuneServer, client: Client, path: str
) -> None:
    """A download, an event stream, a refusal and a reply without a body stay as they are; the next reply is odd."""
    job = await client.create(EXAMPLES)
    file = job["training_files"][0]["id"]
    await client.finish(job["id"])
    fine_tune_server.faults.odd_reply("any", {"id": "other"})
    async with client.http.get(f"{client.base_url}/files/{file}/content") as reply:
        assert await reply.read() == EXAMPLES
    assert await client.follow(job["id"])
    assert (await client.call("GET", f"{path}/none", status=404))["message"]
    await client.call("GET", "/none", status=404)
    async with client.http.head(f"{client.base_url}{path}/{job['id']}") as reply:
        assert reply.status == 200
    assert fine_tune_server.faults.unmet
    assert (await client.call("GET", f"{path}/{job['id']}"))["id"] == "other"
    assert not fine_tune_server.faults.pending


async def test_a_list_without_an_object_leaves_an_odd_reply_to_the_next(fine_tune_server: FineTuneServer) -> None:
    """Where Together's API answers with a list, or refers to another URL, there are no fields to change."""
    server = fine_tune_server
    async with FineTuneSession(server.api_key, base_url=server.url_of("together"), dialect="together") as session:
        server.faults.odd_reply("list_models", {"object": "odd"})
        server.faults.odd_reply("upload", {"id": "other"})
        assert await session.list_models()
        await session.upload_file(EXAMPLES)
        assert len(server.faults.unmet) == 2
        server.faults.clear()


async def test_a_stream_that_is_cut_is_resumed(
    fine_tune_server: FineTuneServer, fine_tune_session: FineTuneSession
) -> None:
    """A stream that ends after two events, and once more after four, goes on where it was."""
    job = await fine_tune_session.create_fine_tune(await new_request(fine_tune_session))
    fine_tune_server.faults.cut_stream(after=2)
    fine_tune_server.faults.cut_stream(after=4)
    async with fine_tune_session.stream_fine_tune_events(job.id) as events:
        messages = [event.message async for event in events]
    assert messages == [event.message for event in (await fine_tune_session.retrieve_fine_tune(job.id)).events]
    assert len(fine_tune_server.requests.to("events")) == 3


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_a_stream_is_cut_where_asked(fine_tune_server: FineTuneServer, client: Client, after: int) -> None:
    """So many events arrive, whole, and then the connection ends; the list of events is not a stream."""
    job = await client.create(EXAMPLES)
    fine_tune_server.faults.cut_stream(after=after)
    await client.call("GET", f"/fine-tunes/{job['id']}/events")
    received = b""
    with pytest.raises(aiohttp.ClientError):
        async with client.http.get(f"{client.base_url}/fine-tunes/{job['id']}/events?stream=true") as reply:
            async for piece in reply.content.iter_any():
                received += piece
    assert (received.count(b"\n\n"), received[-2:]) == (after, b"\n\n"[: 2 * after])


@pytest.mark.parametrize("fault", ["cut_stream", "stall"])
async def test_a_stream_that_is_short_or_refused_leaves_its_fault_to_the_next(
    fine_tune_server: FineTuneServer, client: Client, fault: str
) -> None:
    """A stream that ends before as many events, or is none, does not meet a fault that comes after them."""
    job = await client.create(EXAMPLES)
    messages = await client.follow(job["id"])
    getattr(fine_tune_server.faults, fault)("events", after=2)
    await client.call("GET", "/fine-tunes/none/events?stream=true", status=404)
    getattr(fine_tune_server.faults, fault)("events", after=1000)
    async with client.http.get(f"{client.base_url}/fine-tunes/{job['id']}/events?stream=true") as reply:
        for _ in range(4):
            await reply.content.readline()
        assert len(fine_tune_server.faults.unmet) == 1
    assert await client.follow(job["id"]) == messages
    assert len(fine_tune_server.faults.unmet) == 1
    fine_tune_server.faults.clear()


async def test_what_asks_for_a_stream_where_there_is_none_is_no_stream(
    fine_tune_server: FineTuneServer, client: Client
) -> None:
    """A list that is asked for as a stream meets the faults of other requests, and not those of streams."""
    fine_tune_server.faults.cut_stream("any")
    fine_tune_server.faults.odd_reply("list", {"id": "other"})
    assert (await client.call("GET", "/fine-tunes?stream=true"))["id"] == "other"
    assert len(fine_tune_server.faults.unmet) == 1
    fine_tune_server.faults.clear()


async def test_what_is_forgotten_is_not_met_again(fine_tune_server: FineTuneServer, client: Client) -> None:
    """A fault that a stream has not met yet does not come back once it is forgotten."""
    job = await client.create(EXAMPLES)
    fine_tune_server.faults.hold_jobs()
    held = await client.create(EXAMPLES)
    fine_tune_server.faults.cut_stream("events", after=1000)
    async with client.http.get(f"{client.base_url}/fine-tunes/{held['id']}/events?stream=true") as reply:
        assert await reply.content.readline()
        fine_tune_server.faults.clear()
        assert (await reply.read()).endswith(b"data: [DONE]\n\n")
    await client.follow(job["id"])
    assert not fine_tune_server.faults.pending


async def test_a_comment_is_no_event() -> None:
    """A stream is cut after events; the comments that keep it alive do not count, and arrive."""
    plans = Plans()
    Faults(plans).cut_stream("any", after=1)

    async def stream(request: web.Request) -> web.StreamResponse:
        async with event_stream(request) as response:
            await response.write(b": keep-alive\n\n: keep-alive\n\n")
            await response.write(b"data: 1\n\ndata: 2\n\n")
        return response

    def extend(application: web.Application) -> None:
        Middleware(plans, Requests()).add_to(application)
        application.router.add_get("/fine-tunes/{id}/events", stream)  # outside of /v1, whose own path comes first

    async with LocalServer(extend=extend) as server, connected(server.base_url, server.api_key) as client:
        received = b""
        with pytest.raises(aiohttp.ClientError):
            async with client.http.get(
                f"{server.base_url.removesuffix('/v1')}/fine-tunes/1/events?stream=true"
            ) as reply:
                async for piece in reply.content.iter_any():
                    received += piece
        assert received == b": keep-alive\n\n: keep-alive\n\ndata: 1\n\n"


@pytest.mark.parametrize(
    ("path", "body", "endpoint"),
    [
        ("/completions", {"prompt": "wren ->"}, "completion"),
        ("/chat/completions", {"messages": [{"role": "user", "content": "wren"}]}, "chat"),
    ],
)
async def test_a_stream_of_a_completion_is_cut(
    fine_tune_server: FineTuneServer, client: Client, path: str, body: dict[str, Any], endpoint: str
) -> None:
    """Completions are streams too, if they are asked for as such."""
    fine_tune_server.faults.cut_stream(endpoint, after=2)
    await client.call("POST", path, json={"model": "ada", **body})
    received = b""
    with pytest.raises(aiohttp.ClientError):
        async with client.http.post(client.base_url + path, json={"model": "ada", "stream": True, **body}) as reply:
            async for piece in reply.content.iter_any():
                received += piece
    assert received.count(b"data: ") == 2


async def test_a_stalled_request_is_not_carried_out(fine_tune_server: FineTuneServer, client: Client) -> None:
    """A create that stalls gets no reply and makes no job; the session finds none, and sends it again."""
    request = FineTuneRequest(training_file=(await client.upload(EXAMPLES))["id"], model="ada")
    fine_tune_server.faults.stall("create")
    key, url = fine_tune_server.api_key, fine_tune_server.base_url
    timeout, retry = Timeout(reply=0.3), Retry(base=0.01, grace=0.1)
    async with FineTuneSession(key, base_url=url, timeout=timeout, retry=retry) as session:
        job = await session.create_fine_tune(request)
        assert [asked.status for asked in fine_tune_server.requests.to("create")] == [None, 200]
        assert [row.id for row in await session.list_fine_tunes()] == [job.id]


async def test_a_stream_stalls_after_some_events(fine_tune_server: FineTuneServer, client: Client) -> None:
    """The events before the stall arrive, and nothing more until the faults are cleared."""
    job = await client.create(EXAMPLES)
    fine_tune_server.faults.stall("events", after=2)
    async with client.http.get(f"{client.base_url}/fine-tunes/{job['id']}/events?stream=true") as reply:
        for _ in range(4):  # two events, each with an empty line
            await reply.content.readline()
        more = asyncio.ensure_future(reply.content.readline())
        assert (await client.call("GET", f"/fine-tunes/{job['id']}"))["id"] == job["id"]
        assert not more.done()
        fine_tune_server.faults.clear()
        with pytest.raises(aiohttp.ClientError):
            await more


async def test_the_end_of_the_server_ends_what_is_stalled(fine_tune_address: Address) -> None:
    """A server does not wait for stalled requests, held jobs or slow replies: these are answered at once."""
    port, key = fine_tune_address.port, fine_tune_address.api_key
    async with connected(fine_tune_address.base_url, key) as client:
        async with FineTuneServer(port=port, api_key=key) as server:
            server.faults.hold_jobs()
            server.faults.stall("list_models")
            server.faults.slow("list_files", seconds=3600)
            await client.create(EXAMPLES)
            waiting = [asyncio.ensure_future(client.call("GET", path)) for path in ("/models", "/files")]
            while len(server.requests) < 4:
                await asyncio.sleep(0)
        stalled, slow = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(stalled, aiohttp.ClientError)
    assert isinstance(slow, dict)


async def test_a_slow_reply_comes_late(fine_tune_server: FineTuneServer, client: Client) -> None:
    """A reply, and each event of a stream, waits as long as asked."""
    fine_tune_server.faults.slow("create", seconds=0.05)
    before = time.monotonic()
    job = await client.create(EXAMPLES, n_epochs=1)
    assert time.monotonic() - before >= 0.05
    fine_tune_server.faults.slow("events", seconds=0.01)
    before = time.monotonic()
    messages = await client.follow(job["id"])
    assert time.monotonic() - before >= 0.01 * len(messages)


async def test_jobs_fail_on_demand(fine_tune_server: FineTuneServer, fine_tune_session: FineTuneSession) -> None:
    """The next job fails with the message; the one after it succeeds."""
    fine_tune_server.faults.fail_job("no more disk space")
    request = await new_request(fine_tune_session)
    jobs = [await fine_tune_session.create_fine_tune(request) for _ in range(2)]
    with pytest.raises(FineTuneFailed, match="no more disk space"):
        await fine_tune_session.wait(jobs[0].id)
    assert (await fine_tune_session.wait(jobs[1].id)).status == Status.SUCCEEDED


async def test_a_failure_of_a_job_has_a_parameter(fine_tune_server: FineTuneServer, client: Client) -> None:
    """The jobs API shows what is to blame."""
    fine_tune_server.faults.fail_job("bad line", param="training_file")
    file = await client.upload(EXAMPLES)
    job = await client.call("POST", "/fine_tuning/jobs", json={"training_file": file["id"], "model": "ada"})
    await client.follow(job["id"])
    shown = await client.call("GET", f"/fine_tuning/jobs/{job['id']}")
    assert shown["error"] == {"code": "invalid_training_file", "message": "bad line", "param": "training_file"}


async def test_held_jobs_stay(fine_tune_server: FineTuneServer, client: Client) -> None:
    """While jobs are held, one runs and the others are pending; they can be cancelled; released, the rest end."""
    fine_tune_server.faults.hold_jobs()
    jobs = [await client.create(EXAMPLES) for _ in range(3)]
    path = f"/fine_tuning/jobs/{jobs[0]['id']}"
    async with asyncio.timeout(30):
        while (await client.call("GET", path))["status"] != "running":
            await asyncio.sleep(0)
    assert (await client.call("GET", f"/fine-tunes/{jobs[2]['id']}"))["status"] == "pending"
    await client.call("POST", f"/fine-tunes/{jobs[0]['id']}/cancel")
    fine_tune_server.faults.release_jobs()
    ended = [(await client.finish(job["id"]))["status"] for job in jobs]
    assert ended == ["cancelled", "succeeded", "succeeded"]


@pytest.mark.parametrize("real_training", [False, True], ids=["instant", "trained"])
@pytest.mark.parametrize("dialect", ["fine-tunes", "jobs", "together"])
async def test_a_held_job_goes_on_as_others_do(dialect: str, real_training: bool) -> None:
    """A job that was held succeeds once it is released, and has the events of a job that was not held."""
    async with (
        FineTuneServer(real_training=real_training) as server,
        FineTuneSession(server.api_key, base_url=server.url_of(dialect), dialect=dialect) as session,
    ):
        request = attrs.evolve(await new_request(session), n_epochs=1)
        free = await until(session, await session.create_fine_tune(request), Status.TERMINAL)
        server.faults.hold_jobs()
        held = await until(session, await session.create_fine_tune(request), {Status.RUNNING})
        server.faults.release_jobs()
        held = await until(session, held, Status.TERMINAL)
        assert (free.status, held.status) == (Status.SUCCEEDED, Status.SUCCEEDED)
        # What follows the colon is the name of a job, a model or a file.
        told = [
            [event.message.partition(":")[0] for event in await session.list_fine_tune_events(job.id)]
            for job in (free, held)
        ]
        assert told[1] == told[0]


async def test_the_oldest_fault_that_fits_comes_first(fine_tune_server: FineTuneServer, client: Client) -> None:
    """A request meets one fault, in the order in which they were asked for; "any" fits every request."""
    faults = fine_tune_server.faults
    faults.fail_next("list_models", status=500)
    faults.fail_next("any", status=503, times=None)
    faults.fail_next("list_models", status=501)
    for status in (500, 503, 503):
        await client.call("GET", "/models", status=status)
    assert len(faults.pending) == 2
    assert "501" in repr(faults)
    assert "every any" in repr(faults)
    faults.clear()
    await client.call("GET", "/models")
    assert repr(faults) == "<Faults: none>"


async def test_an_unknown_path_is_no_endpoint(fine_tune_server: FineTuneServer, client: Client) -> None:
    """What the server does not have is recorded as unknown."""
    await client.call("GET", "/engines", status=404)
    assert fine_tune_server.requests.endpoints == ["unknown"]
    async with FineTuneSession(fine_tune_server.api_key, base_url=fine_tune_server.base_url) as session:
        with pytest.raises(NotFound):
            await session.retrieve_fine_tune("ft-none")


@pytest.mark.parametrize(
    ("fault", "arguments"),
    [
        ("fail_next", {"endpoint": "craete"}),
        ("fail_next", {"endpoint": "create", "status": 200}),
        ("fail_next", {"endpoint": "create", "status": True}),
        ("fail_next", {"endpoint": "create", "retry_after": -1}),
        *(("fail_next", {"endpoint": "create", "retry_after": each}) for each in (math.inf, math.nan, 10**400)),
        *(("fail_next", {"endpoint": "create", "code": each}) for each in (429, "\ud800")),
        ("fail_next", {"endpoint": "create", "message": None}),
        ("fail_next", {"endpoint": "create", "times": 0}),
        ("odd_reply", {"endpoint": "create", "fields": ["id"]}),
        *(("odd_reply", {"endpoint": "create", "fields": {"a": each}}) for each in ({1}, math.nan, endless())),
        ("odd_reply", {"endpoint": "create", "fields": {1: "a"}}),
        *(("odd_reply", {"endpoint": "create", "fields": {}, "without": each}) for each in (None, [1])),
        ("odd_reply", {"endpoint": "create", "fields": {}, "without": "id"}),
        ("odd_reply", {"endpoint": "create", "fields": {}}),
        ("odd_reply", {"endpoint": "download", "fields": {"id": "other"}}),
        ("cut_stream", {"after": -1}),
        ("cut_stream", {"endpoint": "create"}),
        ("stall", {"endpoint": "events", "after": 0.5}),
        ("slow", {"endpoint": "create", "seconds": "1"}),
        ("slow", {"endpoint": "create", "seconds": math.inf}),
        ("fail_job", {"message": "no", "times": None}),
        *(("fail_job", {"message": each}) for each in (None, "\ud800")),
        ("fail_job", {"message": "no", "param": 1}),
    ],
    ids=str,
)
def test_a_fault_that_cannot_be_is_refused(fault: str, arguments: dict[str, Any]) -> None:
    """A wrong argument is an error when the fault is asked for, not a fault that is never met."""
    faults = FineTuneServer().faults
    with pytest.raises(ConfigurationError, match="expected"):
        getattr(faults, fault)(**arguments)
    assert not faults.pending
