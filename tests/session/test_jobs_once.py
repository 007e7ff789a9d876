"""A create at a service of OpenAI's jobs: made once and never lost, with a key in the metadata or without."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import attrs
import pytest

from aiofinetune import CreateUncertain, FineTuneRequest
from aiofinetune.dialects._dialect import KEY_NAME
from tests.servers.faults import FAULTS
from tests.servers.faultserver import Exchange, Fault, FaultServer
from tests.servers.jobs_service import JobsService
from tests.servers.service import Object, Reply, Request, json_reply
from tests.session.creates import CREATE, LIST, talking

pytestmark = pytest.mark.fastforward

LOST = FAULTS["reset after the request"]
VAIN = FAULTS["reset after the request, no effect"]


def asked(request: FineTuneRequest, **more: object) -> dict[str, object]:
    """What another program asks for to get an equal job."""
    hyperparameters = {"n_epochs": request.n_epochs}
    return {"training_file": request.training_file, "model": request.model, "hyperparameters": hyperparameters, **more}


def keys_sent(server: FaultServer) -> list[str | None]:
    """The key in each create that came in."""
    bodies = [json.loads(each.body) for each in server.seen if each.endpoint[0] == CREATE]
    return [(body.get("metadata") or {}).get(KEY_NAME) for body in bodies]


async def test_key_is_kept_over_resends() -> None:
    """An attempt has one key, in whatever it sends again; the next create has another."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        server.fail(CREATE, VAIN, VAIN)
        await session.create_fine_tune(request)
        await session.create_fine_tune(request)
    first, again, third, other = keys_sent(server)
    assert first == again == third
    assert other not in (None, first)
    assert len(service.jobs) == 2


async def test_users_metadata_is_kept() -> None:
    """The user's own metadata is sent beside the key, and is in the job."""
    async with talking(service=JobsService()) as (_server, session, request):
        job = await session.create_fine_tune(attrs.evolve(request, metadata={"team": "blue"}))
    assert job.metadata is not None
    assert job.metadata["team"] == "blue"


async def test_found_by_its_key_among_equal_jobs() -> None:
    """A lost job is found by its key among equal jobs that other programs made at the same moment."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        for key in ("0" * 32, "1" * 32):
            service.add_job(asked(request, metadata={KEY_NAME: key}))
        service.add_job(asked(request))
        server.fail(CREATE, LOST)
        job = await session.create_fine_tune(request)
    (ours,) = keys_sent(server)
    assert job.metadata == {KEY_NAME: ours}
    assert len(service.jobs) == 4


async def test_found_by_its_key_however_changed() -> None:
    """It is found by its key even if the service has changed its model, its hyperparameters and its time."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        service.overrides["n_epochs"] = 99
        service.skew = 1e6
        server.fail(CREATE, LOST)
        job = await session.create_fine_tune(request)
    assert job.id in service.jobs
    assert len(service.jobs) == 1


async def test_two_jobs_with_one_key() -> None:
    """If two jobs show the key, it is uncertain which one is ours; both are named."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        server.fail(CREATE, LOST)
        service.twins = True
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(request)
    assert set(caught.value.candidate_ids) == set(service.jobs)
    assert len(service.jobs) == 2
    assert str(caught.value.key) in str(caught.value)


@pytest.mark.parametrize("echoed", [False, True])
async def test_not_made_is_sent_again(echoed: bool) -> None:
    """A create that made nothing is sent again, whether or not the list has shown a key of ours before."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        if echoed:
            await session.create_fine_tune(attrs.evolve(request, n_epochs=7))
        server.fail(CREATE, VAIN)
        await session.create_fine_tune(request)
    assert len(service.jobs) == 1 + echoed


async def test_keyless_job_that_fits_is_not_sent_again() -> None:
    """Where keys are shown, a job without one that fits keeps a lost create from being sent again, and is not ours."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        await session.create_fine_tune(attrs.evolve(request, n_epochs=7))
        theirs = service.add_job(asked(request))
        server.fail(CREATE, VAIN)
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(request)
    assert caught.value.candidate_ids == (theirs,)
    assert len(service.jobs) == 2


async def test_keyless_job_that_does_not_fit_is_no_matter() -> None:
    """Where keys are shown, a job without one and with other parameters is not ours: the create is sent again."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        await session.create_fine_tune(attrs.evolve(request, n_epochs=7))
        service.add_job(asked(attrs.evolve(request, n_epochs=9)))
        server.fail(CREATE, VAIN)
        await session.create_fine_tune(request)
    assert len(service.jobs) == 3


async def test_where_no_key_was_shown_parameters_decide() -> None:
    """Where no key of ours was seen, a job without one and with other parameters may be ours, changed: uncertain."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        theirs = service.add_job(asked(attrs.evolve(request, n_epochs=9)))
        server.fail(CREATE, VAIN)
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(request)
    assert caught.value.candidate_ids == (theirs,)


async def test_a_proxy_that_drops_metadata() -> None:
    """A proxy that drops metadata leads to no second job: the lost one is found by its parameters."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        service.keeps_metadata = False
        server.fail(CREATE, LOST, LOST)
        first = await session.create_fine_tune(request)
        second = await session.create_fine_tune(attrs.evolve(request, n_epochs=5))
    assert {first.id, second.id} == set(service.jobs)


async def test_a_proxy_that_begins_to_drop_metadata() -> None:
    """One that kept it at first leads to no second job either: it is uncertain whose the job without a key is."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        await session.create_fine_tune(attrs.evolve(request, n_epochs=7))
        service.keeps_metadata = False
        server.fail(CREATE, LOST)
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(request)
    assert len(service.jobs) == 2
    assert caught.value.candidate_ids == (list(service.jobs)[-1],)


async def test_no_room_for_a_key() -> None:
    """Where the user's metadata leaves no room, nothing is added to it, and the job is found by its parameters."""
    full = {f"name-{number}": "x" for number in range(16)}
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        server.fail(CREATE, LOST)
        job = await session.create_fine_tune(attrs.evolve(request, metadata=full))
    assert job.metadata == full
    assert keys_sent(server) == [None]


async def test_key_in_the_suffix_is_none_of_the_metadata() -> None:
    """Where the user's metadata has the key's name, a key in the suffix does not make our own job another's."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        server.fail(CREATE, LOST)
        job = await session.create_fine_tune(attrs.evolve(request, suffix="{key}", metadata={KEY_NAME: "mine"}))
    assert list(service.jobs) == [job.id]
    assert keys_sent(server) == ["mine"]


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("page_size", [1, 3, 50])
async def test_search_reads_pages(newest_first: bool, page_size: int) -> None:
    """A lost job is found wherever in the list it is, and one that is not there is sent again."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        service.newest_first = newest_first
        service.page_size = page_size
        for number in range(10):
            service.add_job(asked(attrs.evolve(request, n_epochs=20 + number)), age=1000 - number)
        server.fail(CREATE, LOST, VAIN)
        first = await session.create_fine_tune(request)
        second = await session.create_fine_tune(request)
    assert len(service.jobs) == 12
    assert {first.id, second.id} < set(service.jobs)


async def test_search_stops_at_old_jobs() -> None:
    """A search reads no further than to jobs that are older than the create, if they come newest first."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        service.page_size = 2
        for number in range(40):
            service.add_job(asked(request), age=1000 - number)
        server.fail(CREATE, LOST)
        await session.create_fine_tune(request)
    assert server.asked().count(LIST) == 1


async def test_cursor_that_is_ignored() -> None:
    """A list that never goes on is no proof: the create is not sent again."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        service.page_size = 1
        service.ignores_cursor = True
        for _ in range(2):
            service.add_job(asked(attrs.evolve(request, training_file=request.training_file), seed=1))
        server.fail(CREATE, VAIN)
        with pytest.raises(CreateUncertain):
            await session.create_fine_tune(attrs.evolve(request, n_epochs=5))
    assert len(service.jobs) == 2


async def test_created() -> None:
    """A create that is answered 201 is a success."""
    service = JobsService()
    async with talking(service=service) as (_server, session, request):
        service.created = 201
        job = await session.create_fine_tune(request)
    assert list(service.jobs) == [job.id]


async def test_find_by_key() -> None:
    """A later session finds a recorded create by its key, however old; without the job it says that there is none."""
    service = JobsService()
    async with talking(service=service) as (_server, session, request):
        made = service.add_job(asked(request, metadata={KEY_NAME: "1" * 32}), age=7200)
        find = session._recovery.find
        job = await find(request, 1.0, key="1" * 32)
        assert job is not None
        assert job.id == made
        assert await find(request, service.now() - 60, key="2" * 32) is None


# Gateways that change what they hand on


def changing(service: JobsService, change: Callable[[str], str]) -> None:
    """Let something change the keys on their way to the service."""
    add_job = service.add_job

    def add_changed(asked: Object, *, age: float = 0) -> str:
        metadata = {name: change(text) for name, text in (asked.get("metadata") or {}).items()}
        return add_job({**asked, "metadata": metadata}, age=age)

    service.add_job = add_changed  # type: ignore[method-assign]  # it wraps the one of this service


@pytest.mark.parametrize("change", [str.upper, lambda key: key[:16], lambda key: f"x-{key}", lambda _key: ""])
@pytest.mark.parametrize("has_made", [False, True])
async def test_a_gateway_that_changes_keys(change: Callable[[str], str], has_made: bool) -> None:
    """One that cuts keys or changes their case leads to no second job: a lost one is found by its parameters."""
    service = JobsService()
    changing(service, change)
    async with talking(service=service) as (server, session, request):
        made = {(await session.create_fine_tune(attrs.evolve(request, n_epochs=7))).id} if has_made else set()
        server.fail(CREATE, LOST)
        made |= {(await session.create_fine_tune(request)).id}
        assert not session._recovery.has_echoed
    assert made == set(service.jobs)


@pytest.mark.parametrize("is_made", [True, False])
async def test_a_reply_with_the_key_of_another_create(is_made: bool) -> None:
    """A reply that shows another create's key is not believed: the job is found by its own key, or it is uncertain."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        other = service.add_job(asked(request, metadata={KEY_NAME: "0" * 32}))

        async def play(exchange: Exchange) -> None:
            await exchange.send(json_reply(service.job(other)).raw)

        server.fail(CREATE, Fault(play, has_effect=is_made))
        if is_made:
            job = await session.create_fine_tune(request)
            assert job.metadata == {KEY_NAME: keys_sent(server)[0]}
            assert set(service.jobs) == {other, job.id}
        else:
            with pytest.raises(
                CreateUncertain, match=f"the reply shows {other}, which has the key of another"
            ) as caught:
                await session.create_fine_tune(request)
            assert caught.value.accepted
            assert set(service.jobs) == {other}
    assert server.asked().count(CREATE) == 1


@pytest.mark.parametrize("page_size", [1, 3])
async def test_pages_in_a_circle(page_size: int, caplog: pytest.LogCaptureFixture) -> None:
    """A list whose cursor leads round in a circle ends, is said to be partial, and is no proof of anything."""
    service = JobsService()
    service.page_size = page_size
    page = service._page

    def circle(request: Request, rows: list[Object]) -> Reply:
        after = parse_qs(urlsplit(request.target).query).get("after", [""])[0]
        if rows and after == rows[-1]["id"]:
            request = attrs.evolve(request, target="/v1/fine_tuning/jobs")
        reply = page(request, rows)
        return json_reply({**json.loads(reply.body), "has_more": True})

    service._page = circle  # type: ignore[method-assign]  # it wraps the one of this service
    async with talking(service=service) as (server, session, request):
        made = [service.add_job(asked(attrs.evolve(request, n_epochs=20 + number))) for number in range(6)]
        assert sorted(job.id for job in await session.list_fine_tunes()) == sorted(made)
        assert "only part of the list" in caplog.text
        assert {job.id async for job in session.iter_fine_tunes()} == set(made)
        server.fail(CREATE, VAIN)
        with pytest.raises(CreateUncertain):
            await session.create_fine_tune(request)
    assert len(service.jobs) == 6


@pytest.mark.parametrize("ignores_cursor", [False, True])
async def test_lists_that_do_not_say_whether_there_is_more(ignores_cursor: bool) -> None:
    """A full page without ``has_more`` may not be the last: the next one is asked for before a create is sent again."""
    service = JobsService()
    service.newest_first = False
    service.ignores_cursor = ignores_cursor
    page = service._page

    def silent(request: Request, rows: list[Object]) -> Reply:
        said = json.loads(page(request, rows).body)
        return json_reply({"data": said["data"]})

    service._page = silent  # type: ignore[method-assign]  # it wraps the one of this service
    async with talking(service=service) as (server, session, request):
        for number in range(25):
            service.add_job(asked(attrs.evolve(request, n_epochs=20 + number)), age=1000 - number)
        server.fail(CREATE, LOST)
        if ignores_cursor:
            with pytest.raises(CreateUncertain):
                await session.create_fine_tune(request)
        else:
            job = await session.create_fine_tune(request)
            assert job.id == list(service.jobs)[-1]
            assert len(await session.list_fine_tunes()) == 26
    assert len(service.jobs) == 26


async def test_created_without_a_body() -> None:
    """A create that is answered 201 without a body made a job, which is found by its key, and is not sent again."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):

        async def play(exchange: Exchange) -> None:
            await exchange.send(Reply(201, b"").raw)

        server.fail(CREATE, Fault(play))
        job = await session.create_fine_tune(request)
    assert [job.id] == list(service.jobs)
    assert server.asked().count(CREATE) == 1


async def test_an_id_that_is_given_twice() -> None:
    """If a service answers two creates with one id, the second is uncertain, and is not sent again."""
    service = JobsService()
    async with talking(service=service) as (server, session, request):
        first = await session.create_fine_tune(request)
        service._count = int(first.id.removeprefix("ft-")) - 1
        with pytest.raises(CreateUncertain) as caught:
            await session.create_fine_tune(attrs.evolve(request, n_epochs=5))
    assert caught.value.accepted
    assert caught.value.candidate_ids == (first.id,)
    assert server.asked().count(CREATE) == 2
