# ruff: noqa: S311  # damage at random is no secret
"""What becomes of a batch whose journal is killed, copied, moved, deleted or damaged: no job is made twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import pytest

from aiofinetune import Batch, JournalUnusable
from aiofinetune.batch._rerun import look_back
from tests.servers.batchserver import BatchServer, talking_to
from tests.support.damage import COUNT, Case, child, corrupted, entries, flipped, sent, write_version_1
from tests.support.limits import limited

HEADER: Final = 76
"""Bytes of a journal before its first line."""


@pytest.mark.parametrize("killed", [False, True])
async def test_a_journal_is_its_file_alone(tmp_path: Path, *, killed: bool) -> None:
    """A copy of the file is the whole journal, be it closed or left by kill -9."""
    async with sent(tmp_path, killed=killed) as case:
        copy = tmp_path / "copy.journal"
        shutil.copyfile(case.journal, copy)
        assert await case.run(copy) == "whole"


@pytest.mark.parametrize("killed", [False, True])
async def test_bits_that_flip(tmp_path: Path, *, killed: bool) -> None:
    """Whichever bit of a journal flips, it is refused: no job is made again, and no service is blamed."""
    chance = random.Random(11)
    async with sent(tmp_path, killed=killed) as case:
        data = case.journal.read_bytes()
        path = tmp_path / "flipped.journal"
        for bit in chance.sample(range(8 * len(data)), 40):
            path.write_bytes(flipped(data, bit))
            assert await case.run(path) == "refused", bit


@pytest.mark.parametrize("killed", [False, True])
async def test_random_damage(tmp_path: Path, *, killed: bool) -> None:
    """Whatever part of a journal is lost, changed or moved, it is refused, unless all of it is there."""
    chance = random.Random(12)
    async with sent(tmp_path, killed=killed) as case:
        data = case.journal.read_bytes()
        path = tmp_path / "damaged.journal"
        for _ in range(40):
            damaged = corrupted(data, chance)
            path.write_bytes(damaged)
            # What an `add` that did not return may leave is dropped.
            expected = "whole" if damaged.startswith(data) and b"\n" not in damaged[len(data) :] else "refused"
            assert await case.run(path) == expected
            if expected == "refused":
                assert path.read_bytes() == damaged


async def test_a_journal_that_is_cut_anywhere(tmp_path: Path) -> None:
    """A journal is refused wherever it is cut, be it between two lines; an empty one is."""
    async with sent(tmp_path, killed=True) as case:
        data = case.journal.read_bytes()
        path = tmp_path / "cut.journal"
        borders = [number + 1 for number, byte in enumerate(data[:-1]) if byte == ord("\n")]
        for border in borders:
            path.write_bytes(data[:border])
            assert await case.run(path) == "refused", border
        path.write_bytes(b"")
        assert await case.run(path) == "refused"


@pytest.mark.parametrize("torn", [False, True])
async def test_a_process_that_dies_as_it_writes(tmp_path: Path, *, torn: bool) -> None:
    """Lines that the header does not count yet are good, as far as they are whole, and refused if they are damaged."""
    async with sent(tmp_path, killed=True) as case:
        whole = case.journal.read_bytes()
        async with Batch(case.session, case.wanted, journal=case.journal) as batch:
            await batch.run()
        more = case.journal.read_bytes()
        path = tmp_path / "torn.journal"
        path.write_bytes(whole[:HEADER] + (more[HEADER:-1] if torn else more[HEADER:]))
        assert await case.run(path) == "whole"
        for bit in range(8 * len(whole), 8 * (len(more) - 1), 997):
            damaged = flipped(more, bit)
            path.write_bytes(whole[:HEADER] + damaged[HEADER:])
            assert await case.run(path) == "refused"


async def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Killed again and again, and gone on with from a copy of the journal alone, a batch makes each job once."""
    chance = random.Random(13)
    server = BatchServer(lasts=0.05)
    server.lose = lambda _endpoint: "after" if chance.random() < 0.1 else ""
    file = server.add_file("train.jsonl", b"train")
    journal = tmp_path / "journal-0"
    async with server.listening() as url:
        for number in range(5):
            async with child(url, journal, file, 30) as process:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(chance.uniform(0.05, 0.25)):
                        await process.wait()
            if journal.exists():
                journal = shutil.copyfile(journal, tmp_path / f"journal-{number + 1}")
        lines: list[bytes] = []
        while len(lines) < 30:
            async with child(url, journal, file, 30) as process:
                said, _ = await process.communicate()
                assert process.returncode == 0
                lines = [line for line in said.splitlines() if line != b"None"]
    assert len(server.jobs) == len(set(lines)) == 30
    assert len({job["hyperparams"]["n_epochs"] for job in server.jobs.values()}) == 30


# While a batch runs


@asynccontextmanager
async def half(folder: Path) -> AsyncIterator[tuple[Case, Batch]]:
    """A batch that runs, with two jobs active and no room for more; run again in the end, it makes each job once."""
    server = BatchServer(lasts=None)
    wanted = entries(server.add_file("train.jsonl", b"train"))
    async with talking_to(server) as session, asyncio.timeout(30):
        case = Case(server, session, wanted, folder / "sweep.journal")
        async with Batch(case.session, wanted, journal=case.journal, max_active=2, poll_interval=0.01) as batch:
            # Their ids are in the journal.
            await server.until(lambda: server.asked["stream"] == 2)
            yield case, batch
        server.lasts = 0
        for job_id in list(server.active):
            server.end(job_id)
        async with Batch(case.session, wanted, journal=case.journal) as batch:
            assert len(await batch.run()) == COUNT
    assert len(server.jobs) == COUNT


async def stops(case: Case, batch: Batch, words: str) -> None:
    """Check that the batch ends with an error of its journal, and sends nothing more."""
    case.server.end(next(iter(case.server.active)))
    with pytest.raises(JournalUnusable, match=words):
        await batch.run()
    assert len(case.server.jobs) == 2


async def is_refused(case: Case, path: Path, words: str) -> None:
    """Check that another batch cannot have the journal at a path."""
    with pytest.raises(JournalUnusable, match=words):
        async with Batch(case.session, case.wanted, journal=path):
            pass


async def test_a_journal_that_is_deleted_while_a_batch_runs(tmp_path: Path) -> None:
    """No other batch begins in its place, and this one sends nothing more."""
    async with half(tmp_path) as (case, batch):
        data = case.journal.read_bytes()
        case.journal.unlink()
        await is_refused(case, case.journal, "sweep.journal: another process is running this batch$")
        await stops(case, batch, "sweep.journal: was deleted while this batch was running")
        case.journal.write_bytes(data)


async def test_a_journal_that_is_moved_while_a_batch_runs(tmp_path: Path) -> None:
    """No other batch begins with it, nor in its place; this one sends nothing more, and it holds what was sent."""
    async with half(tmp_path) as (case, batch):
        moved = case.journal.rename(tmp_path / "moved.journal")
        for path in (moved, case.journal):
            await is_refused(case, path, f"{path.name}: another process is running this batch$")
        await stops(case, batch, "is no longer the file that this batch started with")
        case.journal = moved


async def test_a_journal_that_is_replaced_while_a_batch_runs(tmp_path: Path) -> None:
    """A batch whose journal is replaced by a copy of it sends nothing more, for the copy would not know of it."""
    async with half(tmp_path) as (case, batch):
        moved = case.journal.rename(tmp_path / "moved.journal")
        shutil.copyfile(moved, case.journal)
        await stops(case, batch, "is no longer the file that this batch started with")


@pytest.mark.parametrize("damage", [b"", b"another program's"], ids=["truncated", "added to"])
async def test_a_journal_that_is_changed_while_a_batch_runs(tmp_path: Path, damage: bytes) -> None:
    """A batch whose journal another program writes to sends nothing more."""
    async with half(tmp_path) as (case, batch):
        data = case.journal.read_bytes()
        with case.journal.open("ab" if damage else "wb") as file:
            file.write(damage)
        await stops(case, batch, "was changed by another program while this batch was running$")
        case.journal.write_bytes(data)


async def test_a_copy_of_the_journal_of_a_running_batch(tmp_path: Path) -> None:
    """With a copy no second batch begins while the first one runs: both would send the rest."""
    async with half(tmp_path) as (case, _):
        copy = shutil.copyfile(case.journal, tmp_path / "copy.journal")
        await is_refused(case, copy, r"copy\.journal: is a copy of .*sweep\.journal, which a running batch uses$")


async def test_names_of_one_journal(tmp_path: Path) -> None:
    """A journal is open once, by whatever name: a symbolic link, a link, another way to its folder."""
    async with half(tmp_path) as (case, _):
        (tmp_path / "folder").symlink_to(tmp_path)
        (tmp_path / "symbolic").symlink_to(case.journal)
        (tmp_path / "hard").hardlink_to(case.journal)
        for path in ("symbolic", "hard", "folder/sweep.journal", "folder/symbolic"):
            await is_refused(case, tmp_path / path, "another process is running this batch$")


async def test_what_is_beside_a_journal(tmp_path: Path) -> None:
    """The file beside a journal while a batch runs is gone when it is over; one that kill -9 left harms nothing."""
    (tmp_path / ".sweep.journal.lock").touch()
    async with half(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"sweep.journal", ".sweep.journal.lock"}
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.journal"]


# What is no journal


def database(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Path.touch, id="empty"),
        pytest.param(Path.mkdir, id="folder"),
        pytest.param(os.mkfifo, id="pipe"),
        pytest.param(lambda path: path.symlink_to("/dev/null"), id="device"),
        pytest.param(lambda path: path.symlink_to(path), id="loop"),
        pytest.param(lambda path: path.write_bytes(b"\n"), id="newline"),
        pytest.param(lambda path: path.write_bytes(random.Random(1).randbytes(5000)), id="noise"),
        pytest.param(lambda path: path.write_bytes(bytes(5000)), id="zeros"),
        pytest.param(lambda path: path.write_bytes(b"aiofinetune journal 3 \n"), id="newer"),
        pytest.param(lambda path: path.write_bytes(b"SQLite format 3\0"), id="start of a database"),
        pytest.param(lambda path: database(path, "CREATE TABLE entries (number)"), id="database"),
        pytest.param(lambda path: database(path, "PRAGMA user_version = 1"), id="empty database"),
        pytest.param(lambda path: path.with_name("sweep.journal-wal").touch(), id="log alone"),
    ],
)
async def test_what_is_no_journal_is_no_new_one(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """What is at the journal's path, and is none, is refused and left as it is; nothing is sent."""
    server = BatchServer()
    path = tmp_path / "sweep.journal"
    make(path)
    before = {path: path.lstat().st_size for path in tmp_path.iterdir()}
    async with talking_to(server) as session:
        batch = Batch(session, entries("file-1"), journal=path)
        with pytest.raises(JournalUnusable, match=r"sweep\.journal: "):
            async with batch:
                pass
    assert not server.asked
    assert {path: path.lstat().st_size for path in tmp_path.iterdir()} == before


async def test_a_folder_where_nothing_can_be_made() -> None:
    """A journal that cannot be made, for its folder takes no files, is an error that names it."""
    async with talking_to(BatchServer()) as session:
        with pytest.raises(JournalUnusable, match=r"^/proc/sweep\.journal: "):
            async with Batch(session, [], journal="/proc/sweep.journal"):
                pass


async def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    """A journal whose name the disk does not take is an error that names it, also where it is only compared."""
    path = tmp_path / ("long" * 70)
    async with talking_to(BatchServer()) as session:
        assert (await look_back(path, session, [])).changes == ()
        with pytest.raises(JournalUnusable, match=r"long: File name too long$"):
            async with Batch(session, [], journal=path):
                pass


async def test_a_full_disk(tmp_path: Path) -> None:
    """Where the journal cannot grow nothing more is sent; when it can again, the batch goes on where it was."""
    async with half(tmp_path) as (case, batch):
        with limited(resource.RLIMIT_FSIZE, case.journal.stat().st_size + 50):
            await stops(case, batch, r"sweep\.journal: File too large$")


# Journals of version 1


@pytest.mark.parametrize("killed", [False, True])
async def test_a_journal_of_version_1(tmp_path: Path, *, killed: bool) -> None:
    """A batch goes on with a journal of version 1, which becomes one of this version, as whole as any."""
    async with sent(tmp_path, killed=True) as case:
        path = tmp_path / "old.journal"
        write_version_1(case, path, killed=killed)
        assert await case.run(path) == "whole"
        # No log is left.
        assert list(tmp_path.glob("*old.journal*")) == [path]
        assert path.read_bytes().startswith(b"aiofinetune journal 3 ")
        assert await case.run(path) == "whole"


async def test_a_journal_of_version_1_without_its_log(tmp_path: Path) -> None:
    """A journal of version 1 that was killed is refused without its log, and with one that is cut to nothing."""
    async with sent(tmp_path, killed=True) as case:
        path = tmp_path / "old.journal"
        write_version_1(case, path, killed=True)
        log = tmp_path / "old.journal-wal"
        data, lines = path.read_bytes(), log.read_bytes()
        log.unlink()
        await is_refused(case, path, r"old\.journal: is empty: .* restore the log \(.*old\.journal-wal\)$")
        for length in (0, 31, 32, 1000):
            log.write_bytes(lines[:length])
            await is_refused(case, path, r"old\.journal")
        assert path.read_bytes() == data
        path.unlink()
        await is_refused(case, path, r"old\.journal: is missing, but its log exists \(.*old\.journal-wal\)")
        path.write_bytes(data)
        for length in (1, 23, 25, 4119):
            log.write_bytes(lines[:-length])
            await is_refused(case, path, r"old\.journal: .* its log is truncated;")
        # The process ended as it wrote: nothing depends on what was not written whole.
        log.write_bytes(lines + lines[-4120:][:24])
        assert await case.run(path) == "whole"


async def test_bits_that_flip_in_the_log_of_version_1(tmp_path: Path) -> None:
    """Of a journal of version 1 that was killed, each frame of the log counts, be it the last."""
    chance = random.Random(14)
    async with sent(tmp_path, killed=True) as case:
        path = tmp_path / "old.journal"
        write_version_1(case, path, killed=True)
        log = tmp_path / "old.journal-wal"
        lines = log.read_bytes()
        frames = range(32, len(lines), 4120)
        heads = [8 * frame + chance.randrange(8 * 24) for frame in frames]
        pages = [8 * frame + 8 * 24 + chance.randrange(8 * 4096) for frame in frames]
        for bit in (*range(0, 8 * 32, 7), *heads, *pages):
            log.write_bytes(flipped(lines, bit))
            assert await case.run(path) == "refused", bit


async def test_damage_to_journals_of_version_1(tmp_path: Path) -> None:
    """Damage to a journal of version 1 makes no job again, and is no error but one of the journal."""
    chance = random.Random(15)
    async with sent(tmp_path, killed=True) as case:
        old, path = tmp_path / "old.journal", tmp_path / "damaged.journal"
        write_version_1(case, old, killed=False)
        data = old.read_bytes()
        used = [8 * number for number, byte in enumerate(data) if byte]
        for damaged in (
            *(flipped(data, chance.choice(used) + chance.randrange(8)) for _ in range(30)),
            *(corrupted(data, chance) for _ in range(30)),
        ):
            path.write_bytes(damaged)
            assert await case.run(path) in {"refused", "whole", "another"}
