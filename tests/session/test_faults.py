"""Every fault at every endpoint: what comes out of the call, what is left at the service, what is left here."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

import attrs
import pytest

from aiofinetune import CreateUncertain, FineTuneError, FineTuneRequest, FineTuneSession, Retry, errors
from tests.servers.faults import FAULTS
from tests.servers.faultserver import FaultServer
from tests.servers.jobs_service import JobsService
from tests.servers.service import Service
from tests.servers.together_service import TogetherService
from tests.support.checks import OnRetry, assert_hidden, nothing_left_open, session_for

pytestmark = pytest.mark.fastforward

CONTENT: Final = b'{"prompt": "a", "completion": " b"}\n' * 100


@attrs.define
class World:
    """A server with something to ask for, and what the client reported to have made there."""

    server: FaultServer
    folder: Path
    file: str
    over: str
    """A job that has succeeded."""
    running: str
    model: str
    jobs: set[str]
    """Those of before, and those that the client reported."""
    files: set[str]


def populated(server: FaultServer, folder: Path) -> World:
    service = server.service
    file = service.add_file("train.jsonl", CONTENT)
    over = service.add_job({"training_file": file, "model": "ada", "n_epochs": 1}, age=60)
    running = service.add_job({"training_file": file, "model": "ada", "n_epochs": 2}, age=60)
    for message in ("Fine-tune enqueued", "Fine-tune started", "Completed epoch 1/1"):
        service.tell(over, message)
    service.finish(over)
    model = service.jobs[over]["fine_tuned_model"]
    return World(server, folder, file, over, running, model, set(service.jobs), set(service.files))


# Each calls an endpoint, and checks that what it gives is what the service holds.

Call: TypeAlias = Callable[[FineTuneSession, World], Awaitable[None]]


async def create_fine_tune(session: FineTuneSession, world: World) -> None:
    request = FineTuneRequest(training_file=world.file, model="ada", n_epochs=3, suffix="new")
    job = await session.create_fine_tune(request)
    assert (job.model, job.hyperparams.n_epochs) == ("ada", 3)
    assert job.id not in world.jobs
    world.jobs.add(job.id)


async def list_fine_tunes(session: FineTuneSession, world: World) -> None:
    assert [job.id for job in await session.list_fine_tunes()] == list(world.server.service.jobs)


async def retrieve_fine_tune(session: FineTuneSession, world: World) -> None:
    job = await session.retrieve_fine_tune(world.over)
    assert (job.id, job.status, job.fine_tuned_model) == (world.over, "succeeded", world.model)


async def cancel_fine_tune(session: FineTuneSession, world: World) -> None:
    job = await session.cancel_fine_tune(world.running)
    assert job.status == world.server.service.jobs[world.running]["status"] == "cancelled"


def messages(world: World) -> list[str]:
    return [event["message"] for event in world.server.service.events[world.over]]


async def list_fine_tune_events(session: FineTuneSession, world: World) -> None:
    assert [event.message for event in await session.list_fine_tune_events(world.over)] == messages(world)


async def stream_fine_tune_events(session: FineTuneSession, world: World) -> None:
    async with session.stream_fine_tune_events(world.over) as events:
        assert [event.message async for event in events] == messages(world)


async def wait(session: FineTuneSession, world: World) -> None:
    job = await session.wait(world.over)
    assert job.fine_tuned_model == world.model


async def list_models(session: FineTuneSession, world: World) -> None:
    assert [model.id for model in await session.list_models()] == [world.model]


async def retrieve_model(session: FineTuneSession, world: World) -> None:
    assert (await session.retrieve_model(world.model)).id == world.model


async def delete_model(session: FineTuneSession, world: World) -> None:
    assert (await session.delete_model(world.model)).deleted
    assert world.server.service.models == {}


async def create_completion(session: FineTuneSession, world: World) -> None:
    assert (await session.create_completion(world.model, "x")).text == " after x"


async def upload_file(session: FineTuneSession, world: World) -> None:
    file = await session.upload_file(CONTENT, filename="new.jsonl")
    assert world.server.service.contents[file.id] == CONTENT
    world.files.add(file.id)


async def upload_path(session: FineTuneSession, world: World) -> None:
    source = world.folder / "new.jsonl"
    await asyncio.to_thread(source.write_bytes, CONTENT)
    file = await session.upload_file(source)
    assert world.server.service.contents[file.id] == CONTENT
    world.files.add(file.id)


async def list_files(session: FineTuneSession, world: World) -> None:
    assert {file.id for file in await session.list_files()} == world.files


async def retrieve_file(session: FineTuneSession, world: World) -> None:
    assert (await session.retrieve_file(world.file)).bytes == len(CONTENT)


async def download_file(session: FineTuneSession, world: World) -> None:
    assert await session.download_file(world.file) == CONTENT


async def download_path(session: FineTuneSession, world: World) -> None:
    path = await session.download_file(world.file, world.folder / "down.jsonl")
    assert await asyncio.to_thread(path.read_bytes) == CONTENT


async def delete_file(session: FineTuneSession, world: World) -> None:
    unused = world.server.service.add_file("unused.jsonl", CONTENT)
    world.files.add(unused)
    try:
        assert (await session.delete_file(unused)).deleted
        assert unused not in world.server.service.files
    finally:
        world.files &= set(world.server.service.files)


@attrs.frozen
class Case:
    """A call, and the endpoint and the kind of service where the fault comes."""

    call: Call
    endpoint: str
    service: Callable[[], Service] = Service


Columns: TypeAlias = "Mapping[str, tuple[Case, ...]]"
"""Of each column of the table, the cases that take turns at it."""

COLUMNS: Final[Columns] = {
    "plain": (
        Case(list_fine_tunes, "list_fine_tunes"),
        Case(retrieve_fine_tune, "retrieve_fine_tune"),
        Case(list_fine_tune_events, "list_fine_tune_events"),
        Case(create_completion, "create_completion"),
        Case(list_models, "list_models"),
        Case(retrieve_model, "retrieve_model"),
        Case(list_files, "list_files"),
        Case(retrieve_file, "retrieve_file"),
    ),
    "delete": (Case(delete_model, "delete_model"), Case(delete_file, "delete_file")),
    "cancel": (Case(cancel_fine_tune, "cancel_fine_tune"),),
    "create": (Case(create_fine_tune, "create_fine_tune"),),
    "upload": (Case(upload_file, "upload_file"), Case(upload_path, "upload_file")),
    "download": (Case(download_file, "download_file"), Case(download_path, "download_file")),
    "stream": (Case(stream_fine_tune_events, "stream_fine_tune_events"),),
    "wait": (Case(wait, "stream_fine_tune_events"),),
}

OTHER_COLUMNS: Final[Columns] = {
    "plain": (
        Case(stream_fine_tune_events, "list_fine_tune_events", JobsService),
        Case(stream_fine_tune_events, "list_fine_tune_events", TogetherService),
    ),
    "cancel": (Case(cancel_fine_tune, "cancel_fine_tune", TogetherService),),
    "create": (
        Case(create_fine_tune, "create_fine_tune", JobsService),
        Case(create_fine_tune, "create_fine_tune", TogetherService),
    ),
}
"""What is done in another way at OpenAI's jobs or at Together: there, events are listed, not streamed.

How a file is uploaded there has tests of its own.
"""

TABLE: Final = """
                                     plain     delete    cancel    create    upload    download  stream    wait
refused                              ok/down   ok/down   ok/down   ok/down   ok/down   ok/down   ok/down   ok/down
reset before the request is read     ok/lost   ok/lost   ok/lost   ok/unsure ok/lost   ok/lost   ok/lost   ok/lost
reset after the request's head       ok/lost   ok/lost   ok/lost   ok/lost   ok/lost   ok/lost   ok/lost   ok
reset inside the request's body      ok/lost   ok/lost   ok/lost   ok/lost   ok/lost   ok/lost   ok/lost   ok
reset after the request, no effect   ok/lost   ok/lost   ok/lost   ok/lost   ok/lost   ok/lost   ok/lost   ok
reset after the request              ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok/lost   ok
closed after the request, no effect  ok/lost   ok/lost   ok/lost   ok/lost   ok/lost   ok/lost   ok/lost   ok
closed after the request             ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok/lost   ok
reset inside the status line         ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok/lost   ok
reset inside the headers             ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok/lost   ok
closed inside the headers            ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok/lost   ok
reset after the headers              ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok/cut    ok
reset inside the body                ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok/cut    ok
closed inside the body               ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok/cut    ok
reset inside a chunked body          ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok/cut    ok
closed inside a chunked body         ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok/cut    ok
closed inside a chunk                ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok/cut    ok
bad chunk size                       odd       odd       ok        ok        ok        odd       odd       ok
no length, closed inside the body    odd       ok        ok        ok        ok        ok/lost   ok/cut    ok
no length, closed after the body     ok        ok        ok        ok        ok        ok        ok        ok
length too long                      ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok        ok
length too short                     odd       odd       ok        ok        ok        ok/lost   ok        ok
stall before the reply               ok/late   ok/late   ok/late   ok        ok        ok/late   ok/late   ok
stall before the reply, no effect    ok/late   ok/late   ok/late   ok/late   ok/late   ok/late   ok/late   ok
stall inside the headers             ok/late   ok/late   ok/late   ok        ok        ok/late   ok/late   ok
stall inside the body                ok/late   ok/late   ok/late   ok        ok        ok/late   ok/cut    ok
no HTTP                              odd       odd       ok        ok        ok        odd       odd       ok
no HTTP, the request echoed          odd       odd       ok        ok        ok        odd       odd       ok
no HTTP, the key echoed              odd       odd       ok        ok        ok        odd       odd       ok
500                                  ok/5xx    ok/5xx    ok/5xx    ok        ok        ok/5xx    ok/5xx    ok
500, no effect                       ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok
500 with Retry-After, no effect      ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok
502                                  ok/5xx    ok/5xx    ok/5xx    ok        ok        ok/5xx    ok/5xx    ok
502, no effect                       ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok
502 page                             ok/5xx    ok/5xx    ok/5xx    ok        ok        ok/5xx    ok/5xx    ok
502 page, no effect                  ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok
502 page of a megabyte, no effect    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok
503                                  ok/5xx    ok/5xx    ok/5xx    ok        ok        ok/5xx    ok/5xx    ok
503, no effect                       ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok
503 with Retry-After, no effect      ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok/5xx    ok
429                                  ok/429    ok/429    ok/429    ok/429    ok/429    ok/429    ok/429    ok
429 with Retry-After                 ok/429    ok/429    ok/429    ok/429    ok/429    ok/429    ok/429    ok
429, no quota                        quota     quota     quota     quota     quota     quota     quota     ok
429, too many jobs                   jobs      jobs      jobs      jobs      jobs      jobs      jobs      ok
400                                  400       400       400       400       400       400       400       ok
401                                  401       401       401       401       401       401       401       ok
403                                  403       403       403       403       403       403       403       ok
404                                  404       404       404       404       404       404       404       ok
418                                  api       api       api       api       api       api       api       ok
400 with the key echoed              400       400       400       400       400       400       400       ok
500 with the key echoed              ok/5xx    ok/5xx    ok/5xx    ok        ok        ok/5xx    ok/5xx    ok
200 with the key echoed              odd       ok        ok        ok        ok        ok/lost   odd       ok
200 with the key in a wrong field    odd       ok        ok        ok        ok        ok/lost   odd       ok
200 with the key in an error         odd       odd       ok        ok        ok        ok/lost   api       ok
200 empty                            odd       ok        ok        ok        ok        ok/lost   ok/cut    ok
200 with broken JSON                 odd       ok        ok        ok        ok        ok/lost   odd       ok
200 with another shape               odd       ok        ok        ok        ok        ok/lost   odd       ok
200 with a page                      odd       odd       ok        ok        ok        ok/lost   odd       ok
redirect within the origin           ok        ok        ok        ok        api       ok        ok        ok
redirect elsewhere                   api       api       api       api       api       api       api       ok
redirect elsewhere, with the key     api       api       api       api       api       api       api       ok
redirect in a circle                 ok/odd    ok/odd    ok/odd    ok/odd    api       ok/odd    ok/odd    ok
redirect in a circle, with the key   ok/odd    ok/odd    ok/odd    ok/odd    api       ok/odd    ok/odd    ok
drip                                 ok        ok        ok        ok        ok        ok        ok        ok
gzip                                 ok        ok        ok        ok        ok        ok        ok        ok
deflate                              ok        ok        ok        ok        ok        ok        ok        ok
gzip in two members                  odd       odd       ok        ok        ok        odd       odd       ok
deflate without its wrapper          ok        ok        ok        ok        ok        ok        ok        ok
gzip cut short                       ok/lost   ok/lost   ok/lost   ok        ok        ok/lost   ok        ok
gzip that is none                    odd       odd       ok        ok        ok        odd       odd       ok
gzip bomb                            odd       odd       ok        ok        ok        odd       odd       ok
encoding unknown                     odd       odd       ok        ok        ok        odd       odd       ok
headers twice                        ok        ok        ok        ok        ok        ok        ok        ok
headers odd                          ok        ok        ok        ok        ok        ok        ok        ok
header of 8,000 bytes                ok        ok        ok        ok        ok        ok        ok        ok
header of 100,000 bytes              odd       odd       ok        ok        ok        odd       odd       ok
103 first                            ok        ok        ok        ok        ok        ok        ok        ok
"""
"""What a call gives under each fault: when its first exchange goes wrong, and, after the slash, when every one does.

A DELETE is a success by its status, whatever its body is. `WORDS` says what the words stand for. Of a call that uses
several endpoints, the others work; but a fault before the request is read strikes whatever comes.
"""

WORDS: Final[Mapping[str, type[FineTuneError] | None]] = {
    "ok": None,
    "down": errors.ConnectFailed,
    "lost": errors.ConnectionLost,
    "late": errors.ReplyTimeout,
    "odd": errors.ProtocolViolation,
    "cut": errors.StreamInterrupted,
    "unsure": CreateUncertain,
    "api": errors.APIError,
    "400": errors.BadRequest,
    "401": errors.AuthenticationFailed,
    "403": errors.PermissionDenied,
    "404": errors.NotFound,
    "429": errors.RateLimited,
    "quota": errors.QuotaExceeded,
    "jobs": errors.TooManyJobs,
    "5xx": errors.ServerError,
}


@attrs.frozen
class Cell:
    """One cell: a fault in the first exchange of a case or in every one, and what is to come of it."""

    fault: str
    column: str
    case: Case
    always: bool
    expected: type[FineTuneError] | None

    @property
    def id(self) -> str:
        """What the test is called."""
        return f"{self.fault}, {'always' if self.always else 'once'}-{self.case.call.__name__}"


EVERY_CALL: Final = "EVERY_CALL" in os.environ
"""Whether each fault meets each call, rather than one call of each column."""


def table(columns: Columns, *, every: bool = EVERY_CALL) -> list[Cell]:
    """The table's cells in these columns: all, or those that do not say what others say.

    An error that follows at once follows whether or not the fault would come again. A fault that nothing minds, as
    often as it comes, does no harm when it comes once.
    """
    _, head, *lines = TABLE.splitlines()
    cells = []
    for number, line in enumerate(lines):
        words: dict[str, str] = dict(zip(head.split(), line[37:].split(), strict=True))
        is_harmless = set(words.values()) == {"ok"}
        for column, cases in columns.items():
            once_word, slash, always_word = words[column].partition("/")
            for always, word in ((False, once_word), (True, always_word or once_word)):
                says_more = slash or is_harmless == always or (word == "ok" and not is_harmless)
                # The cases take turns, and the turn of each comes at both.
                turn = (cases[(number + always * len(cases) // 2) % len(cases)],) if says_more else ()
                fault = line[:37].strip()
                cells += [Cell(fault, column, case, always, WORDS[word]) for case in (cases if every else turn)]
    return cells


CELLS = table(COLUMNS)
OTHER_CELLS = table(OTHER_COLUMNS)


@pytest.mark.parametrize(("columns", "cells"), [(COLUMNS, CELLS), (OTHER_COLUMNS, OTHER_CELLS)], ids=["one", "others"])
def test_every_fault_is_in_the_table(columns: Columns, cells: list[Cell]) -> None:
    """The table has a row for every fault that the server can play; each meets every column, and each case some."""
    assert {(cell.fault, cell.column) for cell in cells} == set(itertools.product(("refused", *FAULTS), columns))
    cases = {case for cases in columns.values() for case in cases}
    assert {(cell.case, cell.always) for cell in cells} == set(itertools.product(cases, (False, True)))


@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.id) for cell in CELLS])
async def test_fault(
    cell: Cell, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call gives the right result or the right error; the service holds what was reported, and nothing stays open."""
    await play(cell, tmp_path, caplog, monkeypatch)


@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.id) for cell in OTHER_CELLS])
async def test_fault_at_another_service(
    cell: Cell, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is at OpenAI's jobs and at Together."""
    await play(cell, tmp_path, caplog, monkeypatch)


async def play(cell: Cell, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a call under a fault, and check what comes of it."""
    caplog.set_level(logging.DEBUG, "aiofinetune")
    monkeypatch.setattr("aiofinetune._http.reply_body.MAX_REPLY_BYTES", 1 << 20)
    error = None
    async with (
        nothing_left_open(),
        FaultServer(listens="elsewhere" in cell.fault) as elsewhere,
        FaultServer(cell.case.service(), listens=cell.fault != "refused") as server,
    ):
        server.elsewhere = elsewhere.base_url
        world = populated(server, tmp_path)
        break_exchanges(server, cell)
        with OnRetry(lambda: None if cell.always else server.listen()):
            async with session_for(server, retry=retry_for(cell)) as session:
                try:
                    await cell.case.call(session, world)
                except FineTuneError as failure:
                    error = failure
        await server.left()
    assert type(error) is (type(None) if cell.expected is None else cell.expected), repr(error)
    assert set(server.service.jobs) == world.jobs
    assert set(server.service.files) == world.files
    assert not elsewhere.seen, "the request went to another origin"
    assert not left_in(tmp_path, error)
    assert_hidden(error, caplog.records)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def left_in(folder: Path, error: FineTuneError | None) -> list[Path]:
    """What a call that is over must not leave on the disk: parts of files, and files of downloads that failed."""
    return [path for path in folder.iterdir() if path.name.startswith(".") or (error and path.name == "down.jsonl")]


def break_exchanges(server: FaultServer, cell: Cell) -> None:
    if cell.fault != "refused":
        fault = FAULTS[cell.fault]
        endpoint = "" if fault.reads == "nothing" else cell.case.endpoint
        (server.fail_always if cell.always else server.fail)(endpoint, fault)


def retry_for(cell: Cell) -> Retry:
    """Throttling is tried again until the deadline, and so is waiting. No stream lasts so long that it is progress."""
    is_until_deadline = cell.always and (cell.fault.startswith("429") or cell.case.call is wait)
    return Retry(attempts=3, base=0.1, cap=1_000, deadline=1 if is_until_deadline else 10_000, grace=0.02)
