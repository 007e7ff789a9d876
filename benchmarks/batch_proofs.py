# ruff: noqa: S101, S311, T201  # it proves, by chance, and tells
"""What a batch promises, put to the proof: ``python -m benchmarks.batch_proofs PROOF [SEED] [--dialect SERVICE]``.

kill: a process that runs a batch is killed again and again, by a service that loses replies; no job is made twice.
copy: the same, and each run goes on with a copy of the journal that the one before left.
damage: what becomes of a batch whose journal is damaged.
memory: what a batch of any length takes.
throttle: how well the limit of a service is used that throttles.
jobs: real jobs on the embedded server, never more active than allowed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from aiofinetune import FineTuneRequest, FineTuneSession, Retry
from aiofinetune.batch._batch import Batch
from aiofinetune.batch._manifest import Entry
from aiofinetune.local import LocalServer
from aiofinetune.models import CreateUncertain
from tests.servers.batchserver import BatchServer, Bucket
from tests.servers.jobs_batchserver import (
    JobsBatchServer,
    NebiusBatchServer,
    NoMetadataBatchServer,
    OddGatewayBatchServer,
)
from tests.servers.rawserver import KEY
from tests.servers.together_batchserver import TogetherBatchServer
from tests.support.damage import COUNT, Case, corrupted, flipped, sent, write_version_1

SERVICES: Final[Mapping[str, type[BatchServer]]] = {
    "fine-tunes": BatchServer,
    "jobs": JobsBatchServer,
    "jobs-without-metadata": NoMetadataBatchServer,
    "jobs-with-changed-metadata": OddGatewayBatchServer,
    "nebius": NebiusBatchServer,
    "together": TogetherBatchServer,
}
"""The services of the proofs, by name. Each says by its `dialect` how to speak to it."""
_HELP: Final = f"whose dialect is spoken: {', '.join(SERVICES)}"

# kill

KILLS = 100
COPIES = 50
JOBS = 50
FILES = 5
_UNCERTAIN = "uncertain"
LOSS = 0.15
"""Of the creates and uploads, how many lose their reply: half of them before they have an effect, half after."""


async def kill(asked: argparse.Namespace) -> None:
    """Run batches of 50 jobs, and kill each at random moments until it is over, 100 times in all."""
    chance = random.Random(asked.seed)
    kills = batches = 0
    print(f"{asked.dialect}, seed {asked.seed}; {JOBS} jobs of {FILES} files a batch; replies lost: {LOSS:.0%}")
    while kills < (asked.count or KILLS):
        with tempfile.TemporaryDirectory() as folder:
            kills += await _killed_batch(SERVICES[asked.dialect], chance, Path(folder))
        batches += 1
    print(f"{batches} batches, {kills} kills, no job made twice, none forgotten")


async def copy(asked: argparse.Namespace) -> None:
    """Kill batches 50 times in all, and let each run go on with a copy of the journal alone."""
    chance = random.Random(asked.seed)
    kills = 0
    print(f"{asked.dialect}, seed {asked.seed}")
    while kills < (asked.count or COPIES):
        with tempfile.TemporaryDirectory() as folder:
            kills += await _killed_batch(SERVICES[asked.dialect], chance, Path(folder), copies=True)
    print(f"{kills} kills, no job made twice, none forgotten")


async def _killed_batch(
    service: type[BatchServer], chance: random.Random, folder: Path, *, copies: bool = False
) -> int:
    for number in range(FILES):
        row = json.dumps({"prompt": f"{number} ->", "completion": f" {number}"})
        (folder / f"train-{number}.jsonl").write_text(f"{row}\n" * 1000)
    server = service(lasts=0.3)
    lost: Counter[str] = Counter()

    def lose(_endpoint: str) -> str:
        how = chance.choice(("before", "after")) if chance.random() < LOSS else ""
        lost[how] += 1
        return how

    server.lose = lose
    kills = uncertain = 0
    journal = folder / "journal"
    async with server.listening() as url:
        while True:
            child = ("child-kill", url, str(folder), str(journal), service.dialect)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.batch_proofs", *child),
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            await process.stdout.readline()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0, 1.0)):
                    await process.wait()
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            said, _ = await process.communicate()
            if copies and process.returncode and journal.exists():
                journal = shutil.copyfile(journal, folder / f"journal-{kills}")
            told = said.decode().splitlines()
            assert process.returncode in {0, -signal.SIGKILL}, process.returncode
            uncertain += told.count(_UNCERTAIN)
            if process.returncode == 0 and _UNCERTAIN not in told:
                break
    asked = Counter(
        (server.contents[job["training_files"][0]["id"]], job["hyperparams"]["n_epochs"])
        for job in server.jobs.values()
    )
    uploads = Counter(
        server.contents[file_id] for file_id, file in server.files.items() if file["purpose"] == "fine-tune"
    )
    print(
        f"  {kills:3} kills; {len(server.jobs)} jobs made, {len(asked)} of them unlike; {len(set(told))} outcomes"
        f" at the end, {uncertain} uncertain on the way; {len(uploads)} contents in {uploads.total()} uploads;"
        f" {lost['before']} replies lost before and {lost['after']} after the effect",
        flush=True,
    )
    assert len(server.jobs) == len(asked) == len(told) == len(set(told)) == JOBS
    assert len(uploads) == uploads.total() == FILES
    return kills


async def _child_kill(url: str, folder: Path, journal: Path, dialect: str) -> None:
    files = [FineTuneRequest(training_file=str(folder / f"train-{file}.jsonl"), model="ada") for file in range(FILES)]
    requests = [
        Entry(f"{file}/{epochs}", attrs.evolve(files[file], n_epochs=epochs))
        for epochs in range(1, JOBS // FILES + 1)
        for file in range(FILES)
    ]
    retry = Retry(attempts=10, base=0.01, cap=0.1, grace=0.4)
    async with FineTuneSession(KEY, base_url=url, dialect=dialect, retry=retry) as session:
        print("begins", flush=True)
        async with Batch(session, requests, max_active=4, poll_interval=0.1, journal=journal) as batch:
            async for outcome in batch:
                # A reply was lost, and so soon after a kill the list cannot tell: the next run knows more.
                is_uncertain = isinstance(outcome.error, CreateUncertain)
                assert is_uncertain or outcome.error is None, outcome.error
                print(_UNCERTAIN if is_uncertain else outcome.label, flush=True)


# damage

CORRUPTIONS = 60
FLIPS = 48


async def damage(asked: argparse.Namespace) -> None:
    """Damage journals in many ways, and count what became of their batches."""
    chance = random.Random(asked.seed)
    print(
        f"seed {asked.seed}; a batch of {COUNT} jobs; of each, {CORRUPTIONS} files damaged at random and {FLIPS} bits"
        " flipped"
    )
    for killed in (False, True):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            async with sent(folder, killed=killed) as case:
                await _damaged(case, chance, "killed" if killed else "closed", case.journal, case.journal)
                if not killed:
                    continue
                for what, is_old_killed in (("version 1, closed", False), ("version 1, killed", True)):
                    old = folder / "old"
                    write_version_1(case, old, killed=is_old_killed)
                    await _damaged(case, chance, what, old, old)
                    if is_old_killed:
                        await _damaged(case, chance, f"{what}, its log", old, folder / "old-wal")


async def _damaged(case: Case, chance: random.Random, what: str, journal: Path, target: Path) -> None:
    """Damage one of the files of a journal again and again."""
    files = {path: path.read_bytes() for path in (journal, journal.with_name(f"{journal.name}-wal")) if path.exists()}
    data = files[target]
    # Not where a database has nothing.
    used = [number for number, byte in enumerate(data) if byte]
    results: dict[str, Counter[str]] = {"corrupted": Counter(), "flipped": Counter()}
    kinds = ["corrupted"] * CORRUPTIONS + ["flipped"] * FLIPS
    for kind in kinds:
        bad = (
            corrupted(data, chance)
            if kind == "corrupted"
            else flipped(data, 8 * chance.choice(used) + chance.randrange(8))
        )
        path = journal.with_name("damaged")
        for file, content in files.items():
            file.with_name(file.name.replace(journal.name, "damaged")).write_bytes(bad if file == target else content)
        try:
            result = await case.run(path)
        except Exception as error:  # noqa: BLE001  # what there may not be
            result = f"foreign: {error!r}"
        results[kind][result] += 1
        path.with_name("damaged-wal").unlink(missing_ok=True)
    for kind, counts in results.items():
        print(
            f"  {what}, {kind}: {', '.join(f'{count} {result}' for result, count in counts.most_common())}", flush=True
        )


# memory


async def memory(_asked: argparse.Namespace) -> None:
    """Run long batches in a process of their own, with a journal and without, and say what they take."""
    for has_journal, count in itertools.product((False, True), (10_000, 100_000)):
        server = BatchServer()
        server.keeps_ended = False
        server.add_file("train.jsonl", b"train")
        async with server.listening() as url:
            begin = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "benchmarks.batch_proofs",
                    "child-memory",
                    url,
                    str(count),
                    str(int(has_journal)),
                ),
                stdout=asyncio.subprocess.PIPE,
            )
            said, _ = await process.communicate()
            seconds = time.monotonic() - begin
        assert process.returncode == 0
        told = json.loads(said)
        print(
            f"{count:7,} submissions {'with' if has_journal else 'without'} a journal: idle {told['idle']:.1f} MiB,"
            f" peak {told['peak']:.1f} MiB, over idle {told['peak'] - told['idle']:.1f} MiB;"
            f" after 1,000 {told['warm']:.1f} MiB; {seconds:.0f} s, {count / seconds:.0f} a second",
            flush=True,
        )


async def _child_memory(url: str, count: int, *, has_journal: bool) -> None:
    told: dict[str, float] = {}

    def requests() -> Iterator[FineTuneRequest]:
        for number in range(count):
            if number == 1000:
                told["warm"] = _peak()
            yield FineTuneRequest(training_file="file-1", n_epochs=number % 100 + 1)

    with tempfile.TemporaryDirectory() as folder:
        async with FineTuneSession(KEY, base_url=url) as session:
            await session.list_files()
            told["idle"] = _peak()
            journal = Path(folder) / "journal" if has_journal else None
            async with Batch(session, requests(), journal=journal) as batch:
                ended = 0
                async for outcome in batch:
                    assert outcome.error is None, outcome.error
                    ended += 1
            assert ended == count
    print(json.dumps({**told, "peak": _peak()}))


def _peak() -> float:
    """The most memory that this process has taken, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# throttle


async def throttle(asked: argparse.Namespace) -> None:
    """Run batches against services that throttle at random rates, and compare with what the limit allows."""
    chance = random.Random(asked.seed)
    print(f"{asked.dialect}, seed {asked.seed}")
    worst = 0.0
    for _ in range(6):
        rate, size = chance.uniform(5, 60), chance.randint(1, 10)
        count = int(rate * 12) + size
        worst = max(worst, await _throttled(SERVICES[asked.dialect], rate, size, count))
    print(f"the worst: {worst:.2f} times what the limit allows (the bar is 1.3)")


async def _throttled(service: type[BatchServer], rate: float, size: int, count: int) -> float:
    server = service(bucket=Bucket(rate, size))
    file = server.add_file("train.jsonl", b"train")
    asked: list[float] = []

    def note(endpoint: str) -> str:
        if endpoint == "create":
            asked.append(time.monotonic())
        return ""

    server.lose = note
    requests = (FineTuneRequest(training_file=file, model="ada", n_epochs=number + 1) for number in range(count))
    async with server.listening() as url, FineTuneSession(KEY, base_url=url, dialect=service.dialect) as session:
        begin = time.monotonic()
        async with Batch(session, requests) as batch:
            outcomes = await batch.run()
        seconds = max(server.created_at) - begin
    assert [outcome.error for outcome in outcomes] == [None] * count
    allowed = (count - size) / rate
    bursts = [sum(until <= at < until + 1 for at in asked) for until in server.throttled_until]
    print(
        f"  {rate:4.1f} a second, {size:2} at once: {count} jobs in {seconds:.1f} s, the limit allows {allowed:.1f} s:"
        f" {seconds / allowed:.2f}; {len(bursts)} of {len(asked)} creates refused;"
        f" the largest burst in the second after a pause {max(bursts, default=0)}",
        flush=True,
    )
    return seconds / allowed


# jobs


async def jobs(asked: argparse.Namespace) -> None:
    """Train 200 small models on the embedded server, three active at most, and count them in its database."""
    count, most = asked.count or 200, 3
    dialect = SERVICES[asked.dialect].dialect
    rows = [{"prompt": f"{name} ->", "completion": f" {kind}"} for kind, name in [("bird", "owl"), ("fish", "eel")] * 4]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        request = FineTuneRequest(training_file=str(file), model="ada", n_epochs=1)
        data = Path(folder) / "data"
        async with (
            LocalServer(data) as server,
            FineTuneSession(server.api_key, base_url=server.url_of(dialect), dialect=dialect) as session,
            _counting(data) as seen,
        ):
            begin = time.monotonic()
            async with Batch(
                session, [request] * count, max_active=most, poll_interval=1, journal=f"{folder}/journal"
            ) as batch:
                outcomes = await batch.run()
            seconds = time.monotonic() - begin
            made = len(await session.list_fine_tunes())
            uploads = len(await session.list_files("fine-tune"))
    succeeded = sum(outcome.error is None for outcome in outcomes)
    shares = {number: f"{looks / sum(seen.values()):.0%}" for number, looks in sorted(seen.items())}
    print(
        f"{dialect}, {count} jobs: {made} made, {succeeded} succeeded, {uploads} file uploaded, {seconds:.1f} s;"
        f" active at the server, of {sum(seen.values())} looks: {shares}; at most {max(seen)} (allowed {most})"
    )
    assert (made, succeeded, uploads) == (count, count, 1)
    assert max(seen) <= most


@contextlib.asynccontextmanager
async def _counting(data: Path) -> AsyncIterator[Counter[int]]:
    """Count the active jobs in a server's database, a hundred times a second."""
    db = sqlite3.connect(f"file:{data / 'server.sqlite3'}?mode=ro", uri=True)
    seen: Counter[int] = Counter()

    async def look() -> None:
        while True:
            ((active,),) = db.execute("SELECT count(*) FROM jobs WHERE status IN ('pending', 'running')")
            seen[active] += 1
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        looking = group.create_task(look())
        yield seen
        looking.cancel()
    db.close()


_PROOFS: Final[Mapping[str, Callable[[argparse.Namespace], Coroutine[None, None, None]]]] = {
    "kill": kill,
    "copy": copy,
    "damage": damage,
    "memory": memory,
    "throttle": throttle,
    "jobs": jobs,
}
_OF_ANY_DIALECT: Final = ("kill", "copy", "throttle", "jobs")


def main() -> None:
    """Run one of the proofs."""
    match sys.argv[1:]:
        case "child-kill", url, folder, journal, dialect:
            asyncio.run(_child_kill(url, Path(folder), Path(journal), dialect))
        case "child-memory", url, count, has_journal:
            asyncio.run(_child_memory(url, int(count), has_journal=has_journal == "1"))
        case _:
            parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
            parser.add_argument("proof", choices=_PROOFS)
            parser.add_argument("seed", type=int, nargs="?", default=int.from_bytes(os.urandom(3)))
            parser.add_argument("--dialect", choices=SERVICES, default="fine-tunes", metavar="SERVICE", help=_HELP)
            parser.add_argument("--count", type=int, help="kills, or jobs, in place of those by default")
            asked = parser.parse_args()
            if asked.proof not in _OF_ANY_DIALECT and asked.dialect != "fine-tunes":
                parser.error(f"{asked.proof} is a proof of the reference alone; of any dialect are {_OF_ANY_DIALECT}")
            asyncio.run(_PROOFS[asked.proof](asked))


if __name__ == "__main__":
    main()
