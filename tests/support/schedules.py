"""Schedules: what several coroutines of one session do while things go wrong, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import attrs

from aiofinetune import FineTune, FineTuneError, FineTuneRequest, FineTuneSession, StreamInterrupted
from aiofinetune.errors import StreamHistoryChanged
from aiofinetune.models import CreateUncertain
from tests.servers.faults import FAULTS
from tests.servers.faultserver import Exchange, Fault, FaultServer
from tests.servers.jobs_service import JobsService, NebiusService, OddGateway
from tests.servers.service import Service
from tests.servers.together_service import TogetherService
from tests.support.checks import QUICK, session_for

T = TypeVar("T")

FINE: Final = "fine"
FAULT_NAMES: Final = (
    FINE,
    "reset before the request is read",
    "reset after the request's head",
    "reset after the request, no effect",
    "reset after the request",
    "closed after the request",
    "reset inside the headers",
    "closed inside the body",
    "bad chunk size",
    "no HTTP",
    "500",
    "500, no effect",
    "502 page",
    "502 page, no effect",
    "503 with Retry-After, no effect",
    "429 with Retry-After",
    "429, no quota",
    "400",
    "200 empty",
    "200 with broken JSON",
    "redirect within the origin",
    "redirect elsewhere",
    "gzip",
)
CUTS: Final = (0, 1, 60, 119, 120, 200, 300, 10_000)
"""Bytes after which a stream is cut."""


class Choose(Protocol):
    """Picks one of several: at random, or as hypothesis wants."""

    def __call__(self, options: Sequence[T], /) -> T:
        """Pick one."""
        ...


@attrs.frozen
class Step:
    """One step of a schedule.

    Args:
        action: What is begun; it goes on while the next steps are taken.
        which: Of creates, which of four requests (two are equal but for their suffix); else which of the jobs so far.
        faults: What goes wrong in its first exchanges.
        cut: Of streams, after how many bytes the first connection breaks.
        turns: Rounds of the event loop before the next step; the last of `TURNS` waits for all that was begun.
    """

    action: str
    which: int
    faults: tuple[str, ...]
    cut: int
    turns: int


ACTIONS: Final = ("create", "create", "create", "stream", "stream", "upload", "cancel", "tell", "finish", "give up")
TURNS: Final = (0, 1, 3, 10, 30, 1000)


def make_step(choose: Choose) -> Step:
    faults = tuple(choose(FAULT_NAMES) for _ in range(choose((0, 1, 1, 2, 4))))
    return Step(choose(ACTIONS), choose((0, 1, 2, 3)), faults, choose(CUTS), choose(TURNS))


@attrs.define
class Figures:
    """What a schedule came to."""

    created: int = 0
    """Jobs that the service holds."""
    reported: int = 0
    """Of them, those that the client gave to a caller."""
    spoken_of: int = 0
    """Creates that raised an error which says that a job may exist."""
    failed: int = 0
    """Creates that raised an error which says that none does."""
    sent: int = 0
    """Events that jobs told, for each stream that was read to its end."""
    given: int = 0
    """Events that these streams gave."""
    files_twice: int = 0
    """Files that are there besides the one reported: an upload is sent again where the list could not be read."""
    interrupted: int = 0
    """Streams that were given up."""

    def add(self, other: Figures) -> None:
        """Add what another schedule came to."""
        for field in attrs.fields(Figures):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@attrs.define
class _Run:
    server: FaultServer
    session: FineTuneSession
    requests: tuple[FineTuneRequest, ...]
    figures: Figures = attrs.field(factory=Figures)
    jobs: list[FineTune] = attrs.field(factory=list)
    uncertain: list[FineTuneRequest] = attrs.field(factory=list)
    creates: list[asyncio.Task[None]] = attrs.field(factory=list)
    tasks: list[asyncio.Task[None]] = attrs.field(factory=list)
    uploads: int = 0

    def take(self, step: Step) -> None:
        service = self.server.service
        known = [job for job in service.jobs if not service.is_over(job)]
        job = known[step.which % len(known)] if known else None
        match step.action:
            case "create":
                self.fail("create_fine_tune", step)
                task = asyncio.create_task(self.create(self.requests[step.which]))
                self.creates.append(task)
                self.tasks.append(task)
            case "upload":
                self.fail("upload_file", step)
                self.tasks.append(asyncio.create_task(self.upload()))
            case "give up" if self.creates:
                self.creates[step.which % len(self.creates)].cancel()
            case "stream" if job:
                if service.dialect == "fine-tunes":
                    self.server.fail("stream_fine_tune_events", _cut(step.cut))
                    self.fail("stream_fine_tune_events", step)
                else:
                    self.fail("list_fine_tune_events", step)
                self.tasks.append(asyncio.create_task(self.stream(job)))
            case "cancel" if job:
                self.fail("cancel_fine_tune", step)
                self.tasks.append(asyncio.create_task(self.cancel(job)))
            case "tell" if job:
                service.tell(job, "Something happened")
            case "finish" if job:
                service.finish(job, ("succeeded", "failed")[step.which % 2])
            case _:
                pass

    def fail(self, endpoint: str, step: Step) -> None:
        for name in step.faults:
            if name == FINE:
                self.server.fail(endpoint, Fault(_fine))
            else:
                self.server.fail("" if FAULTS[name].reads == "nothing" else endpoint, FAULTS[name])

    async def create(self, request: FineTuneRequest) -> None:
        try:
            job = await self.session.create_fine_tune(request)
        except CreateUncertain:
            self.uncertain.append(request)
        except FineTuneError:
            self.figures.failed += 1
        except asyncio.CancelledError as cancelled:
            if any("made a job" in note for note in getattr(cancelled, "__notes__", ())):
                self.uncertain.append(request)
        else:
            assert job.hyperparams.n_epochs == request.n_epochs, "a create was given another's job"
            self.jobs.append(job)

    async def upload(self) -> None:
        self.uploads += 1
        name, content = f"{self.uploads}.jsonl", b"x" * self.uploads
        file = None
        with contextlib.suppress(FineTuneError):
            file = await self.session.upload_file(content, filename=name)
        held = [file_id for file_id, found in self.server.service.files.items() if found["filename"] == name]
        if file is not None:
            assert file.id in held, "a file was reported that is not there"
            self.figures.files_twice += len(held) - 1
            assert self.server.service.contents[file.id] == content

    async def cancel(self, job: str) -> None:
        try:
            cancelled = await self.session.cancel_fine_tune(job)
        except FineTuneError:
            return
        assert cancelled.status == self.server.service.jobs[job]["status"] == "cancelled"

    async def stream(self, job: str) -> None:
        given: list[str] = []
        is_whole = True
        try:
            async with self.session.stream_fine_tune_events(job) as events:
                async for event in events:
                    given.append(event.message)  # noqa: PERF401  # what came before a failure is wanted too
        except StreamHistoryChanged:
            raise
        except StreamInterrupted:
            self.figures.interrupted += 1
            is_whole = False
        except FineTuneError:
            is_whole = False
        told = [event["message"] for event in self.server.service.events[job]]
        assert given == (told if is_whole else told[: len(given)]), "a stream gave other events than the job told"
        if is_whole:
            self.figures.sent += len(told)
            self.figures.given += len(given)

    def check(self) -> None:
        """Hold what was reported against what is there."""
        held, reported = self.server.service.jobs, [job.id for job in self.jobs]
        assert len(set(reported)) == len(reported), "two creates were given one job"
        assert set(reported) <= set(held), "a job was reported that is not there"
        left = [held[job] for job in held if job not in reported]
        spoken_of = [request.n_epochs for request in self.uncertain]
        for job in left:
            assert job["hyperparams"]["n_epochs"] in spoken_of, f"nobody spoke of {job['id']}"
            spoken_of.remove(job["hyperparams"]["n_epochs"])
        self.figures.created = len(held)
        self.figures.reported = len(reported)
        self.figures.spoken_of = len(self.uncertain)


async def _fine(exchange: Exchange) -> None:
    if exchange.request.endpoint[0] == "stream_fine_tune_events" and exchange.reply.status == 200:
        await exchange.server.stream(exchange)
    else:
        await exchange.send(exchange.reply.raw)


def _cut(position: int) -> Fault:
    async def play(exchange: Exchange) -> None:
        if exchange.reply.status != 200:
            await exchange.send(exchange.reply.raw)
            return
        await exchange.server.stream(exchange, cut_at=position)
        await exchange.reset()

    return Fault(play)


def _without_metadata() -> JobsService:
    service = JobsService()
    service.keeps_metadata = False
    return service


def _in_small_pages() -> JobsService:
    service = NebiusService()
    service.page_size = 2
    return service


SERVICES: Final[Mapping[str, Callable[[], Service]]] = {
    "fine-tunes": Service,
    "jobs": JobsService,
    "nebius in small pages": _in_small_pages,
    "jobs without metadata": _without_metadata,
    "jobs behind an odd gateway": OddGateway,
    "together": TogetherService,
}
"""What schedules run against, by name."""


async def run(steps: Sequence[Step], kind: str = "fine-tunes") -> Figures:
    """Run a schedule; raise AssertionError where something was made twice, lost, or told wrong."""
    async with FaultServer(SERVICES[kind]()) as server:
        file = server.service.add_file("train.jsonl", b"{}\n")
        request = FineTuneRequest(training_file=file, model="ada", n_epochs=1, suffix="a")
        requests = (
            request,
            request,
            attrs.evolve(request, suffix="b"),
            attrs.evolve(request, n_epochs=2),
        )
        async with session_for(server, retry=attrs.evolve(QUICK, deadline=1000)) as session:
            this = _Run(server, session, requests)
            for step in steps:
                this.take(step)
                if step.turns == TURNS[-1]:
                    await _settle(this.creates)
                for _ in range(step.turns % TURNS[-1]):
                    await asyncio.sleep(0)
            await _settle(this.creates)
            server.heal()
            for job in server.service.jobs:
                if not server.service.is_over(job):
                    server.service.finish(job)
            await _settle(this.tasks)
            this.check()
        await server.left()
        return this.figures


async def _settle(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for all, and raise what one of them failed by."""
    async with asyncio.timeout(10_000):
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            # One that was given up before it began was never run.
            if isinstance(result, Exception):
                raise result
