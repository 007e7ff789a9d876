# ruff: noqa: ASYNC110, ASYNC240, S101, S105, S311, T201  # it proves, by chance, and tells; it waits for processes
"""What training on other machines promises, put to the proof: ``python -m benchmarks.trainers_proofs PROOF``.

kill [ENGINE] [ROUNDS] [JOBS] [SEED]: each worker, the scheduler and the server are killed at random while two workers
    train 100 jobs, 10 times; each job ends once, with one model, and no process and no file is left. ENGINE is dask
    (the default) or workers.
cut [SECONDS]: the network between a worker and the server is cut for a minute.
restart [ENGINE]: the server is killed and started again while a job trains, which is not trained anew.
speed [SECONDS]: two slots against one, on jobs of so many seconds (10); run it with nothing else on the cores.
stall [MEGABYTES]: the longest stall of the server's event loop while 256 MB go to a worker.
cancel [ENGINE]: from the reply to a cancel to the end of the trainer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from aiofinetune import FineTune, FineTuneRequest, FineTuneSession, Retry
from aiofinetune.local import LocalServer
from aiofinetune.local._trainers.claims import Claims
from aiofinetune.local._trainers.local_process import LocalProcess
from aiofinetune.local._trainers.remote import RemoteTrainers
from benchmarks.transfer import longest_stall
from tests.servers.dask_cluster import free_port

KEY: Final = "sk-proof-81b3"
TOKEN: Final = "a-token-for-workers-7f3a"
PATIENT: Final = Retry(attempts=1000, base=0.1, cap=0.5, deadline=600, grace=2)
ROWS: Final = "".join(
    json.dumps({"prompt": f"{n} ->", "completion": " odd" if n % 2 else " even"}) + "\n" for n in range(40)
)

# Processes that are killed and started again


@attrs.define
class Part:
    """A process that is started again whenever it ends."""

    arguments: Sequence[str]
    environment: dict[str, str]
    process: Process | None = None
    kills: int = 0
    starts: int = 0

    async def keep(self) -> None:
        """Keep it running until cancelled, and kill it then."""
        try:
            while True:
                self.process = await asyncio.create_subprocess_exec(
                    sys.executable, *self.arguments, env=os.environ | self.environment, stdin=DEVNULL,
                    stdout=DEVNULL, stderr=DEVNULL if "PROOF_LOG" not in os.environ else None,
                )  # fmt: skip
                self.starts += 1
                await self.process.wait()
                await asyncio.sleep(random.uniform(0, 1))
        finally:
            if self.process is not None:
                await self.end()

    async def end(self) -> None:
        """Kill it, so that it is started again."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def kill(self) -> None:
        """Kill it as a power cut would, and count that."""
        self.kills += 1
        await self.end()


@attrs.define
class System:
    """A server, and what trains for it, all on loopback, each a process of its own."""

    folder: Path
    engine: str
    workers: int = 2
    parts: dict[str, Part] = attrs.field(factory=dict)
    port: int = attrs.field(factory=free_port)
    scheduler_port: int = attrs.field(factory=free_port)

    @property
    def url(self) -> str:
        """The URL of the API."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def temporary(self) -> Path:
        """The folder of all temporary files."""
        return self.folder / "temporary"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all its processes during the block."""
        self.temporary.mkdir()
        token = self.folder / "worker.token"
        token.write_text(TOKEN)
        environment = {
            "TMPDIR": str(self.temporary),
            "AIOFINETUNE_API_KEY": KEY,
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        }
        worker: tuple[str, ...]
        serve: tuple[str, ...] = (
            "-m",
            "aiofinetune",
            "serve",
            "--port",
            str(self.port),
            "--local-data",
            str(self.folder / "data"),
        )
        if self.engine == "dask":
            address = f"127.0.0.1:{self.scheduler_port}"
            serve = (*serve, "--trainers", f"dask://{address}")
            scheduler = ("-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", str(self.scheduler_port))
            self.parts["scheduler"] = Part((*scheduler, "--no-show", "--no-dashboard"), environment)
            worker = (*("-m", "dask", "worker", f"tcp://{address}", "--nthreads", "1", "--no-nanny"), "--no-dashboard")
        else:
            serve = (*serve, "--worker-token-file", str(token))
            worker = ("-m", "aiofinetune", "worker", "--server", self.url, "--token-file", str(token))
        self.parts["server"] = Part(serve, environment)
        for number in range(self.workers):
            self.parts[f"worker {number + 1}"] = Part(worker, environment)
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(part.keep()) for part in self.parts.values()]
            try:
                yield
            finally:
                for keeper in keepers:
                    keeper.cancel()

    def processes(self) -> list[str]:
        """The processes that it left: those with its temporary folder in their environment (proc(5), environ)."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if bytes(self.temporary) in (process / "environ").read_bytes() and int(process.name) != os.getpid():
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if command:  # A process that has ended, but whose parent has not noticed yet, has none.
                        found.append(command)
        return found

    def files(self) -> list[str]:
        """The files that it left beside its state."""
        data = self.folder / "data"
        found = [*self.temporary.glob("aiofinetune-*"), *data.glob("**/*.partial"), *data.glob("runs/*")]
        return [str(path.relative_to(self.folder)) for path in (*found, *data.glob("unknown/*"))]


@asynccontextmanager
async def system(engine: str, workers: int = 2) -> AsyncIterator[tuple[System, FineTuneSession]]:
    """Run a server with workers, and give a session that is patient enough for its deaths."""
    with tempfile.TemporaryDirectory() as folder:
        made = System(Path(folder), engine, workers)
        async with (
            made.running(),
            FineTuneSession(KEY, base_url=made.url, retry=PATIENT) as session,
        ):
            await session.list_models()
            yield made, session


# kill


async def kill(engine: str = "dask", rounds: str = "10", jobs: str = "100", seed: str = "") -> None:
    """Train jobs while everything is killed at random."""
    number = int(seed or int.from_bytes(os.urandom(3)))
    random.seed(number)
    print(f"kill, {engine}: {rounds} rounds of {jobs} jobs on 2 workers; seed {number}")
    kills: Counter[str] = Counter()
    for turn in range(int(rounds)):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            made = System(Path(folder), engine)
            async with made.running(), FineTuneSession(KEY, base_url=made.url, retry=PATIENT) as session:
                again = await _killed(made, session, int(jobs))
            processes, files = await settled_after(made)
        assert not processes, processes
        assert not files, files
        kills.update({name: part.kills for name, part in made.parts.items()})
        done = {name: part.kills for name, part in made.parts.items()}
        print(f"round {turn + 1}: {jobs} jobs, {jobs} models, {again} began again; kills {done};"
              f" {time.monotonic() - start:.0f} s", flush=True)  # fmt: skip
    print(f"{rounds} rounds: no job lost or ended twice, no process and no file left; kills {dict(kills)}")


async def settled_after(made: System) -> tuple[list[str], list[str]]:
    """The processes and files that are left once a further worker and server have tidied up, as they do at a start."""
    for _ in range(100):
        if not made.processes():
            break
        await asyncio.sleep(0.1)
    script = "from aiofinetune.local._worker.folder import remove_abandoned; remove_abandoned()"
    environment = os.environ | {"TMPDIR": str(made.temporary)}
    tidy = await asyncio.create_subprocess_exec(sys.executable, "-c", script, env=environment)
    await tidy.wait()
    async with LocalServer(made.folder / "data", api_key=KEY):
        pass
    return made.processes(), made.files()


async def _killed(made: System, session: FineTuneSession, count: int) -> int:
    """Create jobs, kill what runs until all are over, and check them; return how many began again."""
    file = await session.upload_file(ROWS.encode())
    request = FineTuneRequest(training_file=file.id, model="ada", n_epochs=2)
    jobs = [await session.create_fine_tune(request) for _ in range(count)]

    ended = 0

    async def harm() -> None:
        while True:
            # Only after some job has ended since the last kill, so that all ends however slow the machine is.
            before, patience = ended, time.monotonic() + 60
            while ended <= before and time.monotonic() < patience:
                await asyncio.sleep(0.1)
            await asyncio.sleep(random.uniform(0, 4))
            await random.choice(list(made.parts.values())).kill()

    harming = asyncio.create_task(harm())
    try:
        while ended < count:
            ended = sum(job.is_terminal for job in await session.list_fine_tunes())
            await asyncio.sleep(0.5)
    finally:
        harming.cancel()
        await asyncio.wait([harming])
    return await _check(session, jobs)


async def _check(session: FineTuneSession, jobs: Sequence[FineTune]) -> int:
    """Check that each job ended once, with a model of its own; return how many began again."""
    found = [await session.retrieve_fine_tune(job.id) for job in jobs]
    assert len(await session.list_fine_tunes()) == len(jobs)
    again = 0
    for job in found:
        messages = [event.message for event in job.events or ()]
        assert job.status == "succeeded", messages
        assert messages.count("Fine-tune succeeded") == 1, messages
        starts = messages.count("Fine-tune started")
        told = len([message for message in messages if message.startswith("Fine-tune interrupted: ")])
        assert starts == told + 1, messages
        again += starts > 1
    models = {model.id for model in await session.list_models()} - {"ada", "babbage", "curie", "davinci"}
    assert models == {job.fine_tuned_model for job in found}
    assert len(models) == len(jobs)
    return again


# cut and restart


async def cut(seconds: str = "60") -> None:
    """Hold back all bytes between a worker and the server while a job trains."""
    may_pass = asyncio.Event()
    may_pass.set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await may_pass.wait()
                writer.write(data)
                await writer.drain()
        await may_pass.wait()  # Nor does the end of a connection pass.
        writer.close()

    with tempfile.TemporaryDirectory() as folder:
        token = Path(folder) / "token"
        token.write_text(TOKEN)
        claims = RemoteTrainers(Claims())
        async with (
            LocalServer(api_key=KEY, remote=claims, worker_token=TOKEN) as server,
            FineTuneSession(KEY, base_url=server.base_url) as session,
        ):
            port = int(server.base_url.removesuffix("/v1").rpartition(":")[2])

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await may_pass.wait()
                other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(forward(reader, other_writer), forward(other_reader, writer))

            network = await asyncio.start_server(serve, "127.0.0.1", 0)
            url = f"http://127.0.0.1:{network.sockets[0].getsockname()[1]}"
            worker = Part(
                ("-m", "aiofinetune", "worker", "--server", url, "--token-file", str(token)), {"TMPDIR": folder}
            )
            keeping = asyncio.create_task(worker.keep())
            file = await session.upload_file(ROWS.encode())
            request = FineTuneRequest(training_file=file.id, model="davinci", n_epochs=100)
            job = await session.create_fine_tune(request)
            async with session.stream_fine_tune_events(job.id) as events:
                async for event in events:
                    if event.message == "Completed epoch 1/100":
                        break
            may_pass.clear()
            await asyncio.sleep(float(seconds))
            may_pass.set()
            job = await session.wait(job.id)
            messages = [event.message for event in await session.list_fine_tune_events(job.id)]
            keeping.cancel()
            await asyncio.wait([keeping])
            network.close()
    starts = messages.count("Fine-tune started")
    assert job.status == "succeeded"
    print(f"cut for {seconds} s: {job.status} after {starts} start(s), {messages.count('Fine-tune succeeded')} end")


async def restart(engine: str = "dask") -> None:
    """Kill the server while a job trains, and start it again."""
    async with system(engine, workers=1) as (made, session):
        file = await session.upload_file(ROWS.encode())
        request = FineTuneRequest(training_file=file.id, model="davinci", n_epochs=200)
        job = await session.create_fine_tune(request)
        async with session.stream_fine_tune_events(job.id) as events:
            async for event in events:
                if event.message == "Completed epoch 1/200":
                    break
        for _ in range(3):
            await made.parts["server"].kill()
            await session.list_models()
        job = await session.wait(job.id)
        messages = [event.message for event in await session.list_fine_tune_events(job.id)]
        epochs = [message for message in messages if message.startswith("Completed epoch")]
        assert epochs == [f"Completed epoch {number}/200" for number in range(1, 201)]
        starts = messages.count("Fine-tune started")
        print(f"restart, {engine}: the server killed 3 times; {job.status} after {starts} start(s), each epoch once")


# speed, stall and cancel


async def speed(seconds: str = "10") -> None:
    """Compare one slot with two, on this machine."""
    rows = ROWS * 8
    epochs = await _epochs_for(rows, float(seconds))
    walls = {}
    for slots in (1, 2):
        async with (
            LocalServer(api_key=KEY, trainers=LocalProcess(slots)) as server,
            FineTuneSession(KEY, base_url=server.base_url) as session,
        ):
            walls[slots] = await _timed(session, rows, 4, epochs)
            print(f"{slots} slot(s): 4 jobs of {epochs} epochs in {walls[slots]:.1f} s", flush=True)
    print(f"two slots against one: {walls[1] / walls[2]:.2f} times (the bar is 1.7)")


async def _epochs_for(rows: str, seconds: float) -> int:
    """The number of epochs with which a job takes so many seconds."""
    async with LocalServer(api_key=KEY) as server, FineTuneSession(KEY, base_url=server.base_url) as session:
        few, many = [await _timed(session, rows, 1, epochs) for epochs in (5, 25)]
        return max(1, round(seconds / max((many - few) / 20, 1e-3)))


async def _timed(session: FineTuneSession, rows: str, count: int, epochs: int) -> float:
    """The seconds that jobs take, together."""
    file = await session.upload_file(rows.encode())
    request = FineTuneRequest(training_file=file.id, model="davinci", n_epochs=epochs)
    start = time.perf_counter()
    jobs = [await session.create_fine_tune(request) for _ in range(count)]
    for job in jobs:
        assert (await session.wait(job.id)).status == "succeeded"
    return time.perf_counter() - start


async def stall(megabytes: str = "256") -> None:
    """Measure the longest stall of the server's event loop while a worker fetches a training file."""
    row = json.dumps({"prompt": "a" * 999_960, "completion": " b"}) + "\n"
    with tempfile.TemporaryDirectory() as folder:
        token, data = Path(folder) / "token", Path(folder) / "train.jsonl"
        token.write_text(TOKEN)
        data.write_text(row * int(megabytes))
        claims = RemoteTrainers(Claims())
        async with (
            LocalServer(api_key=KEY, remote=claims, worker_token=TOKEN) as server,
            FineTuneSession(KEY, base_url=server.base_url) as session,
        ):
            file = await session.upload_file(data)
            job = await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada", n_epochs=1))
            worker = Part(
                ("-m", "aiofinetune", "worker", "--server", server.base_url, "--token-file", str(token)),
                {"TMPDIR": folder},
            )
            keeping = asyncio.create_task(worker.keep())
            start = time.perf_counter()

            async def fetched() -> None:
                while True:
                    for path in Path(folder).glob(f"aiofinetune-attempt-*/{file.id}"):
                        if path.stat().st_size == data.stat().st_size:
                            return
                    await asyncio.sleep(0.005)

            longest = await longest_stall(fetched())
            took = time.perf_counter() - start
            await session.cancel_fine_tune(job.id)
            await asyncio.sleep(2)
            keeping.cancel()
            await asyncio.wait([keeping])
    print(f"{megabytes} MB to a worker, its start included: {took:.1f} s; longest stall {longest * 1000:.0f} ms"
          " (the bar is 50)")  # fmt: skip


async def cancel(engine: str = "dask", times: str = "10") -> None:
    """Measure the time from the reply to a cancel to the end of the trainer."""
    async with system(engine) as (made, session):
        file = await session.upload_file(ROWS.encode())
        request = FineTuneRequest(training_file=file.id, model="ada", n_epochs=100_000)
        waits = []
        for _ in range(int(times)):
            job = await session.create_fine_tune(request)
            async with session.stream_fine_tune_events(job.id) as events:
                async for event in events:
                    if event.message.startswith("Completed epoch"):
                        break
            await session.cancel_fine_tune(job.id)
            start = time.perf_counter()
            while any("_engines/trainer.py" in command for command in made.processes()):
                await asyncio.sleep(0.005)
            waits.append(time.perf_counter() - start)
        print(f"cancel to the trainer's end, {engine}: median {statistics.median(waits):.2f} s,"
              f" longest {max(waits):.2f} s of {times} (the bar is 2)")  # fmt: skip


# Any: each takes the texts that its docstring names.
_PROOFS: Final[Mapping[str, Callable[..., Coroutine[Any, Any, None]]]] = {
    "kill": kill,
    "cut": cut,
    "restart": restart,
    "speed": speed,
    "stall": stall,
    "cancel": cancel,
}


def main() -> None:
    """Run one of the proofs."""
    match sys.argv[1:]:
        case [name, *arguments] if name in _PROOFS:
            asyncio.run(_PROOFS[name](*arguments))
        case _:
            sys.exit(f"{__doc__}")


if __name__ == "__main__":
    main()
