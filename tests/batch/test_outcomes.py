"""Every request has its outcome, as the service's books have it; progress; real jobs."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from aiofinetune import (
    File,
    FineTune,
    FineTuneCancelled,
    FineTuneFailed,
    FineTuneRequest,
    FineTuneSession,
    Hyperparams,
    LocalFileError,
    NotFound,
    Retry,
)
from aiofinetune.batch._batch import MAX_STREAMS, Batch
from aiofinetune.batch._journal import Journal
from aiofinetune.batch._manifest import Entry
from aiofinetune.batch._outcomes import BatchStopped, Outcome, parameters_of
from aiofinetune.local import LocalServer
from tests.batch.runs import POLL, entries, outcomes_of, write
from tests.servers.batchserver import BatchServer, error, ok, talking_to


def labels(outcomes: list[Outcome]) -> list[str]:
    return sorted(outcome.label for outcome in outcomes)


# To the end


async def test_every_request_has_an_outcome() -> None:
    """Each request is made a job once, and its outcome holds the job as the service has it."""
    server = BatchServer()
    wanted = entries(server, 20)
    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, wanted))
    assert labels(outcomes) == sorted(entry.label for entry in wanted)
    assert len(server.jobs) == 20
    for outcome in outcomes:
        assert outcome.job is not None
        assert outcome.job.hyperparams.n_epochs == outcome.request.n_epochs
        assert outcome.job.fine_tuned_model == server.jobs[outcome.job.id]["fine_tuned_model"]
        assert outcome.error is None
        assert outcome.sent_at is not None
        assert outcome.ended_at >= outcome.sent_at


async def test_an_outcome_comes_as_soon_as_its_job_is_over() -> None:
    """Outcomes come in the order in which jobs end, while others run."""
    server = BatchServer(lasts=None)
    async with talking_to(server) as session, asyncio.timeout(60), Batch(session, entries(server, 3)) as batch:
        await server.until(lambda: len(server.active) == 3)
        by_epochs = {job["hyperparams"]["n_epochs"]: job_id for job_id, job in server.jobs.items()}
        for number in (2, 3, 1):
            server.end(by_epochs[number])
            assert (await anext(batch)).label == f"job-{number}"
        with pytest.raises(StopAsyncIteration):
            await anext(batch)
        with pytest.raises(StopAsyncIteration):
            await anext(batch)


async def test_no_requests() -> None:
    """A batch of nothing is over at once, and asks the service for nothing."""
    server = BatchServer()
    async with talking_to(server) as session:
        assert await outcomes_of(Batch(session, [])) == []
    assert not server.asked


async def test_requests_without_labels_are_called_by_their_number() -> None:
    """A bare request is labelled with its number, from 1."""
    server = BatchServer()
    bare = [entry.request for entry in entries(server, 3)]
    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, bare))
    assert labels(outcomes) == ["1", "2", "3"]


async def test_an_async_iterable() -> None:
    """Requests may come from an async iterable, with or without labels."""
    server = BatchServer()

    async def coming() -> AsyncIterator[Entry | FineTuneRequest]:
        for entry in entries(server, 3):
            await asyncio.sleep(0)
            yield entry if entry.label == "job-2" else entry.request

    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, coming()))
    assert labels(outcomes) == ["1", "3", "job-2"]


@pytest.mark.parametrize("how", ["stopped", "left"])
async def test_an_input_that_has_nothing_yet_holds_nothing_up(how: str) -> None:
    """A batch that is fed from a queue can be stopped and left while it waits for the next request."""
    server = BatchServer(lasts=None)
    queue: asyncio.Queue[Entry] = asyncio.Queue()
    queue.put_nowait(entries(server, 1)[0])

    async def coming() -> AsyncIterator[Entry]:
        while True:
            yield await queue.get()

    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, coming()) as batch,
    ):
        await server.until(lambda: server.asked["stream"] == 1)
        if how == "stopped":
            batch.stop()
            with pytest.raises(BatchStopped):
                await batch.run()


async def test_an_async_generator_is_closed_when_the_batch_is_left() -> None:
    """A generator that was not read to its end has cleaned up by the time the context is left."""
    server = BatchServer(lasts=None)
    log = []

    async def coming() -> AsyncIterator[Entry]:
        try:
            for entry in entries(server, 3):
                yield entry
        finally:
            log.append("closed")

    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, coming(), max_active=1, poll_interval=POLL):
            await server.until(lambda: len(server.active) == 1)
        assert log == ["closed"]


async def test_a_failure_of_the_input_lets_what_is_sent_settle(tmp_path: Path) -> None:
    """An exception of the caller's own iterable is raised as it is, after the creates under way are known."""
    server = BatchServer(lasts=None)
    server.held["create"] = asyncio.Event()

    async def coming() -> AsyncIterator[Entry]:
        for entry in entries(server, 2):
            yield entry
        await server.until(lambda: len(server.active) == 2)
        asyncio.get_running_loop().call_soon(server.held["create"].set)
        raise ZeroDivisionError

    async with talking_to(server) as session, asyncio.timeout(60):
        async with Batch(session, coming(), journal=tmp_path / "journal") as batch:
            with pytest.raises(ZeroDivisionError):
                await batch.run()
        async with Journal(tmp_path / "journal", session.base_url).opened() as known:
            assert (await known.owners()).keys() == server.active


async def test_one_failure_stops_nothing() -> None:
    """Jobs that fail, are cancelled or are refused are outcomes with an error, and the others go on."""
    fates = {1: "failed", 2: "cancelled"}
    server = BatchServer(fate=lambda asked: fates.get(asked["n_epochs"], "succeeded"))
    wanted = entries(server, 5)
    wanted[2] = Entry("job-3", FineTuneRequest(training_file="file-unknown"))
    wanted[3] = Entry("job-4", FineTuneRequest(training_file="gone.jsonl"))
    async with talking_to(server) as session:
        batch = Batch(session, wanted)
        outcomes = {outcome.label: outcome for outcome in await outcomes_of(batch)}
    assert isinstance(outcomes["job-1"].error, FineTuneFailed)
    assert "Fine-tune failed" in str(outcomes["job-1"].error)
    assert isinstance(outcomes["job-2"].error, FineTuneCancelled)
    assert str(outcomes["job-3"].error).startswith("400: No such file: file-unknown")
    assert isinstance(outcomes["job-4"].error, LocalFileError)
    assert outcomes["job-5"].error is None
    assert {label: outcome.status for label, outcome in outcomes.items()} == {
        "job-1": "failed",
        "job-2": "cancelled",
        "job-3": "rejected",
        "job-4": "rejected",
        "job-5": "succeeded",
    }
    progress = batch.progress
    counts = (progress.succeeded, progress.failed, progress.cancelled, progress.rejected, progress.ended, progress.seen)
    assert counts == (1, 1, 1, 2, 5, 5)


async def test_an_outcome_in_short() -> None:
    """The summary of an outcome is JSON that a person can read."""
    server = BatchServer(fate=lambda asked: "failed" if asked["n_epochs"] == 1 else "succeeded")
    wanted = [*entries(server, 2), Entry("none", FineTuneRequest(training_file="file-unknown"))]
    async with talking_to(server) as session:
        told = {outcome.label: outcome.summary() for outcome in await outcomes_of(Batch(session, wanted))}
    assert json.loads(json.dumps(told)) == told
    assert [told[label]["status"] for label in ("job-1", "job-2", "none")] == ["failed", "succeeded", "rejected"]
    assert told["job-2"]["model"] == server.jobs[str(told["job-2"]["job"])]["fine_tuned_model"]
    assert (told["none"]["job"], told["job-2"]["error"]) == (None, None)


def test_an_outcome_has_its_parameters_as_fields() -> None:
    """Parameters that were asked for come first, then those that the service chose; "auto" is no value yet."""
    request = FineTuneRequest(training_file="./train.jsonl", model="ada", n_epochs=2)
    chosen = Hyperparams(n_epochs=3, batch_size=4, learning_rate_multiplier="auto", prompt_loss_weight=0.01)
    job = FineTune("ft-1", "succeeded", model="ada", hyperparams=chosen)
    outcome = Outcome("a", "succeeded", request, "ft-1", job, None, None, 0.0)
    expected = {"training_file": "./train.jsonl", "model": "ada", "n_epochs": 2, "batch_size": 4}
    assert outcome.parameters == outcome.summary()["parameters"] == {**expected, "prompt_loss_weight": 0.01}
    assert attrs.evolve(outcome, job=None).parameters == request.given()
    unchosen = attrs.evolve(request, n_epochs="auto", learning_rate_multiplier="auto")
    told = attrs.evolve(outcome, request=unchosen).parameters
    assert (told["n_epochs"], told["learning_rate_multiplier"]) == (3, "auto")
    assert parameters_of(None, None) == {}
    assert parameters_of(None, attrs.evolve(job, training_files=(File("file-1"),)))["training_file"] == "file-1"


async def test_a_job_that_the_service_forgets_is_an_outcome() -> None:
    """A job that is deleted at the service while it is followed ends as not found, and nothing waits for it."""
    server = BatchServer(lasts=None)
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 1), poll_interval=POLL) as batch,
    ):
        await server.until(lambda: bool(server.asked["stream"]))
        (job_id,) = server.active
        server.refuse = lambda endpoint: error(404, "gone") if endpoint in {"stream", "retrieve"} else None
        server.end(job_id)
        outcome = await anext(batch)
    assert isinstance(outcome.error, NotFound)
    assert outcome.job is None
    assert outcome.status == outcome.summary()["status"] == "vanished"
    assert (batch.progress.vanished, batch.progress.uncertain, batch.progress.ended) == (1, 0, 1)


@pytest.mark.parametrize("is_named", [True, False])
async def test_another_jobs_end_is_not_taken(*, is_named: bool) -> None:
    """Where asking for a job gives another one, by whichever call, the list tells how the right one ended."""
    server = BatchServer(lasts=None)
    other = server.add_job()
    server.end(other, "failed")

    def mix_up(endpoint: str, right: bytes) -> bytes | None:
        if endpoint == "retrieve":
            return ok(server.jobs[other])
        if endpoint == "create" and is_named:
            return ok({"id": next(reversed(server.jobs))})
        return right

    server.rewrite = mix_up
    wanted = entries(server, 2)
    async with talking_to(server) as session, asyncio.timeout(60), Batch(session, wanted, poll_interval=POLL) as batch:
        await server.until(lambda: len(server.active) == 2)
        for job_id in list(server.active):
            server.end(job_id)
        outcomes = await batch.run()
    assert {outcome.job_id for outcome in outcomes} == server.jobs.keys() - {other}
    assert all(outcome.job is not None and outcome.job.id == outcome.job_id for outcome in outcomes)


async def test_jobs_whose_streams_fail_are_followed_by_the_list() -> None:
    """Where following a job fails for good, the list of jobs tells its end."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 2)
    server.refuse = lambda endpoint: error(403, "no streams") if endpoint in {"stream", "retrieve"} else None
    async with talking_to(server) as session, asyncio.timeout(60), Batch(session, wanted, poll_interval=POLL) as batch:
        await server.until(lambda: server.asked["stream"] == 2 and server.asked["list"] > 0)
        for job_id in list(server.active):
            server.end(job_id)
        assert [outcome.error for outcome in await batch.run()] == [None, None]


async def test_many_jobs_are_followed_by_the_list() -> None:
    """Past the number of streams, one look at the list tells the end of all; failures say why, with their events."""
    server = BatchServer(lasts=None)
    count = MAX_STREAMS + 10
    seen = set()
    async with talking_to(server) as session, asyncio.timeout(60):
        batch = Batch(
            session,
            entries(server, count),
            poll_interval=POLL,
            progress=lambda progress: seen.add(progress.followed_by),
        )
        async with batch:
            await server.until(lambda: len(batch.active) == count and server.asked["stream"] >= MAX_STREAMS)
            listed = sorted(server.active - server.streamed)
            server.end(listed[0], "failed")
            for job_id in sorted(server.active):
                server.end(job_id)
            outcomes = await batch.run()
    assert server.asked["stream"] >= MAX_STREAMS
    assert server.asked["list"] > 0
    assert {"streams", "list"} == seen
    assert [str(outcome.error) for outcome in outcomes if outcome.error] == [
        f"fine-tune {listed[0]} failed: Fine-tune failed"
    ]
    assert len(outcomes) == count


async def test_a_job_that_was_listed_as_over_and_is_gone_ended_as_listed() -> None:
    """A job that the list has as failed, and that is gone when its events are asked for, failed."""
    server = BatchServer(lasts=None)
    wanted = entries(server, 1)
    server.refuse = lambda endpoint: (
        error(404, "gone")
        if endpoint == "retrieve" and not server.active
        else error(403, "no streams")
        if endpoint in {"stream", "retrieve"}
        else None
    )
    async with talking_to(server) as session, asyncio.timeout(60), Batch(session, wanted, poll_interval=POLL) as batch:
        await server.until(lambda: server.asked["list"] > 0)
        server.end(next(iter(server.active)), "failed")
        (outcome,) = await batch.run()
    assert outcome.status == "failed"


async def test_a_listed_job_that_is_gone_is_an_outcome() -> None:
    """A job that is followed by the list, and is no longer in it, ends as not found."""
    server = BatchServer(lasts=None)
    count = MAX_STREAMS + 1
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, count), poll_interval=POLL) as batch,
    ):
        await server.until(lambda: len(batch.active) == count and server.asked["stream"] >= MAX_STREAMS)
        (gone,) = batch.active.keys() - server.streamed
        del server.jobs[gone]
        server.active.remove(gone)
        outcome = await anext(batch)
        assert isinstance(outcome.error, NotFound)
        for job_id in sorted(server.active):
            server.end(job_id)
        assert len(await batch.run()) == count - 1


async def test_looks_go_on_while_results_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A results file that does not come holds up neither the ends of other jobs nor new ones."""
    monkeypatch.setattr("aiofinetune.batch._batch.MAX_STREAMS", 0)
    server = BatchServer(lasts=None)
    server.held["download"] = asyncio.Event()
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 20), max_active=5, poll_interval=POLL, results=tmp_path) as batch,
    ):
        await server.until(lambda: len(server.jobs) == 5)
        first, *rest = server.jobs
        server.end(first)
        await server.until(lambda: server.asked["download"] == 1)
        for job_id in rest:
            server.end(job_id, "failed")
        told = [await anext(batch) for _ in rest]
        assert {outcome.job_id for outcome in told} == set(rest)
        await server.until(lambda: len(server.jobs) == 9)
        server.held["download"].set()


async def test_a_job_that_is_not_listed_is_given_up_after_looks_that_fail_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look that finds the job running, though the list does not hold it, makes good those that failed before."""
    monkeypatch.setattr("aiofinetune.batch._batch.MAX_STREAMS", 0)
    server = BatchServer(lasts=None)
    looks = itertools.count(1)

    def refuse(endpoint: str) -> bytes | None:
        if endpoint == "list":
            return ok({"object": "list", "data": []})
        return error(418, "odd") if endpoint == "retrieve" and next(looks) % 3 else None

    server.refuse = refuse
    async with (
        talking_to(server, retry=Retry(attempts=1)) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 1), poll_interval=0.001) as batch,
    ):
        await server.until(lambda: server.asked["retrieve"] >= 12)
        server.end(*server.active)
        (outcome,) = await batch.run()
    assert outcome.error is None


# Progress


async def test_progress_is_told(tmp_path: Path) -> None:
    """The callback is called on every change, and its counts only grow, to what the batch came to."""
    server = BatchServer(fate=lambda asked: "failed" if asked["n_epochs"] % 2 else "succeeded", lasts=0.001)
    told: list[tuple[int, int, int]] = []
    async with talking_to(server) as session:
        batch = Batch(
            session,
            entries(server, 10),
            journal=tmp_path / "journal",
            max_active=3,
            poll_interval=POLL,
            progress=lambda progress: told.append((progress.seen, progress.ended, progress.active)),
        )
        await outcomes_of(batch)
    assert max(active for _, _, active in told) in range(1, 4)
    for earlier, later in itertools.pairwise(told):
        assert earlier[:2] <= later[:2]
    assert told[-1] == (10, 10, 0)
    assert (batch.progress.succeeded, batch.progress.failed) == (5, 5)
    assert batch.progress.ended_per_minute > 0


async def test_jobs_of_others_are_counted() -> None:
    """Where there is a limit, progress tells how many jobs of other programs are active."""
    server = BatchServer(lasts=None)
    for _ in range(2):
        server.add_job()
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 1), max_active=5, poll_interval=POLL) as batch,
    ):
        await server.until(lambda: len(server.active) == 3 and batch.progress.active == 1)
        seen = server.asked["list"]
        await server.until(lambda: server.asked["list"] > seen + 1)
        assert (batch.progress.active, batch.progress.others) == (1, 2)


# For real


async def test_real_jobs_to_completion(tmp_path: Path) -> None:
    """A dozen jobs train on the embedded server, never more than three active, each with a model and figures."""
    rows = [{"prompt": f"{name} ->", "completion": f" {kind}"} for kind, name in [("bird", "owl"), ("fish", "eel")] * 4]
    file = write(tmp_path, "train.jsonl", "\n".join(map(json.dumps, rows)))
    wanted = [
        Entry(f"{number}", FineTuneRequest(training_file=file, model="ada", n_epochs=1, suffix=f"j{number}"))
        for number in range(12)
    ]
    async with (
        LocalServer(tmp_path / "data") as server,
        FineTuneSession(server.api_key, base_url=server.base_url) as session,
    ):
        batch = Batch(
            session, wanted, max_active=3, poll_interval=0.2, journal=tmp_path / "journal", results=tmp_path / "results"
        )
        outcomes = await batch_with_watcher(batch, session)
        assert len(await session.list_fine_tunes()) == len(wanted)
    assert [outcome.error for outcome in outcomes] == [None] * len(wanted)
    assert all(outcome.figures["training_loss"] > 0 for outcome in outcomes)
    assert len(list((tmp_path / "results").iterdir())) == len(wanted)


async def batch_with_watcher(batch: Batch, session: FineTuneSession) -> list[Outcome]:
    """Run a batch, and look after each outcome that no more than three jobs are active."""
    outcomes = []
    async with asyncio.timeout(120), batch:
        async for outcome in batch:
            outcomes.append(outcome)
            assert sum(not job.is_terminal for job in await session.list_fine_tunes()) <= 3
    return outcomes
