"""The journal of a batch: what it keeps, and what it refuses."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from aiofinetune import FineTune, FineTuneRequest
from aiofinetune.batch._core import AttemptId, AttemptRecord
from aiofinetune.batch._journal import Journal
from aiofinetune.batch._manifest import Entry
from aiofinetune.errors import JournalUnusable

URL = "http://127.0.0.1:1/v1"
ASKED = FineTuneRequest(training_file="data/train.jsonl", model="ada", n_epochs=2)
SENT = attrs.evolve(ASKED, training_file="file-1")
A, B, C = (AttemptId(label) for label in "abc")
JOB = FineTune(id="ft-1", status="succeeded", model="ada", created_at=1, training_files=(), fine_tuned_model="ada:ft-x")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep.journal"


@asynccontextmanager
async def opened(path: Path, base_url: str = URL, *, accept_base_url: bool = False) -> AsyncIterator[Journal]:
    async with Journal(path, base_url, accept_base_url=accept_base_url).opened() as journal:
        yield journal


async def record(journal: Journal, label: str, request: FineTuneRequest = ASKED) -> AttemptRecord | None:
    """Give what a journal knows of one entry."""
    (known,) = await journal.records([Entry(label, request)])
    if isinstance(known, JournalUnusable):
        raise known
    return known


async def test_a_new_entry_has_no_record(path: Path) -> None:
    """Nothing is known of an entry that was not sent."""
    async with opened(path) as journal:
        assert await record(journal, "a") is None


async def test_what_came_of_an_entry_is_known_to_the_next_run(path: Path) -> None:
    """Intent, job and end of an entry outlive the process that wrote them."""
    async with opened(path) as journal:
        await journal.intend(A, ASKED, SENT, 100.5)
        assert await journal.create(A, "ft-1")
        await journal.end(A, JOB, 200.25)
    async with opened(path) as journal:
        ended = AttemptRecord(A, ASKED, SENT, 100.5, job_id="ft-1", job=JOB, ended_at=200.25)
        assert await record(journal, "a") == ended
        assert await journal.owners() == {"ft-1": A}
        assert await journal.sent_labels() == {"a": None}


async def test_the_request_of_the_first_run_is_given_whatever_is_asked_now(path: Path) -> None:
    """A changed request does not change the record: whoever asks has to compare."""
    async with opened(path) as journal:
        await journal.intend(A, ASKED, SENT, 1.0)
    async with opened(path) as journal:
        known = await record(journal, "a", SENT)
        assert known is not None
        assert known.request == ASKED


async def test_an_entry_that_was_sent_and_has_no_job_is_lost(path: Path) -> None:
    """What was sent and got no answer is lost, until it is known to have made a job, or surely none."""
    async with opened(path) as journal:
        await journal.intend(A, ASKED, SENT, 1.0)
        await journal.intend(B, ASKED, SENT, 2.0)
    async with opened(path) as journal:
        assert await journal.lost() == [AttemptRecord(A, ASKED, SENT, 1.0), AttemptRecord(B, ASKED, SENT, 2.0)]
        await journal.withdraw(A)
        await journal.create(B, "ft-1")
        assert await journal.lost() == []


async def test_an_accepted_entry_is_lost_until_its_job_is_known(path: Path) -> None:
    """What was accepted by a reply that does not surely name the job is lost, with the id that the reply had."""
    async with opened(path) as journal:
        for attempt in (A, B, C):
            await journal.intend(attempt, ASKED, SENT, 1.0)
        await journal.accept(A, None)
        await journal.accept(B, "ft-1")
        await journal.accept(C, "ft-2")
        await journal.create(C, "ft-2")
    async with opened(path) as journal:
        assert await journal.lost() == [
            AttemptRecord(A, ASKED, SENT, 1.0, is_accepted=True),
            AttemptRecord(B, ASKED, SENT, 1.0, is_accepted=True, hint="ft-1"),
        ]
        assert await journal.owners() == {"ft-2": C}


async def test_a_job_belongs_to_one_attempt(path: Path) -> None:
    """The id of another attempt's job is refused, and nothing is noted; the own id may be noted twice."""
    async with opened(path) as journal:
        await journal.intend(A, ASKED, SENT, 1.0)
        await journal.intend(B, ASKED, SENT, 2.0)
        assert await journal.create(A, "ft-1")
        assert await journal.create(A, "ft-1")
        assert not await journal.create(B, "ft-1")
    async with opened(path) as journal:
        assert await journal.owners() == {"ft-1": A}
        assert await journal.lost() == [AttemptRecord(B, ASKED, SENT, 2.0)]


async def test_a_label_is_there_once_in_a_run(path: Path) -> None:
    """Two entries of one run cannot have one label; the entry of an earlier run can be asked for again."""
    async with opened(path) as journal:
        await record(journal, "a")
        with pytest.raises(
            JournalUnusable, match=r"^'a' is used twice; each entry of a batch needs a label of its own$"
        ):
            await record(journal, "a")
    async with opened(path) as journal:
        await record(journal, "a")


async def test_the_last_attempt_of_a_label_counts(path: Path) -> None:
    """A further attempt has a record of its own; the one before it is kept, and is not lost any more."""
    second = A.next
    async with opened(path) as journal:
        await journal.intend(A, ASKED, SENT, 1.0)
        await journal.intend(second, SENT, SENT, 2.0)
    async with opened(path) as journal:
        assert await journal.lost() == [AttemptRecord(second, SENT, SENT, 2.0)]
        await journal.create(A, "ft-1")
        await journal.create(second, "ft-2")
    async with opened(path) as journal:
        assert await record(journal, "a", SENT) == AttemptRecord(second, SENT, SENT, 2.0, job_id="ft-2")
        assert await journal.owners() == {"ft-1": A, "ft-2": second}
        assert await journal.sent_labels() == {"a": "ft-2"}


async def test_jobs_that_run_and_are_not_asked_for_any_more(path: Path) -> None:
    """Of earlier runs' entries, those that were sent, did not end and are not asked for now are told."""
    async with opened(path) as journal:
        for label in ("over", "running", "asked again"):
            await journal.intend(AttemptId(label), ASKED, SENT, 1.0)
            await journal.create(AttemptId(label), f"ft-{label}")
        await journal.end(AttemptId("over"), JOB, 2.0)
    async with opened(path) as journal:
        await record(journal, "asked again")
        assert await journal.unfinished_elsewhere() == {"running": "ft-running"}


async def test_entries_are_found_in_any_order(path: Path) -> None:
    """The last record of each of many entries is found, in the order of the journal or not, and each only once."""
    labels = [str(number) for number in range(500)]
    async with opened(path) as journal:
        for number in (1, 2):
            # Of every third entry there are two attempts.
            names = [AttemptId(label, number) for label in labels[:: 1 if number == 1 else 3]]
            await asyncio.gather(*(journal.intend(name, ASKED, SENT, float(number)) for name in names))
            await asyncio.gather(*(journal.create(name, f"ft-{name.label}-{name.number}") for name in names))
    orders = [labels, labels[::-1], random.Random(1).sample(labels, len(labels))]  # noqa: S311  # any order
    for order in orders:
        async with opened(path) as journal:
            for start in range(0, len(order), 7):
                entries = [Entry(label, ASKED) for label in order[start : start + 7]]
                for entry, found in zip(entries, await journal.records(entries), strict=True):
                    number = 2 if int(entry.label) % 3 == 0 else 1
                    name = AttemptId(entry.label, number)
                    job_id = f"ft-{entry.label}-{number}"
                    assert found == AttemptRecord(name, ASKED, SENT, float(number), job_id=job_id)
            for label in order[::50]:
                with pytest.raises(JournalUnusable, match=f"^'{label}' is used twice"):
                    await record(journal, label)
            assert await journal.unfinished_elsewhere() == {}


async def test_files_are_known_by_their_content(path: Path) -> None:
    """A digest leads to the id that it was last kept with."""
    async with opened(path) as journal:
        assert await journal.file_id("d1") is None
        await journal.keep_file("d1", "file-1")
        await journal.keep_file("d1", "file-2")
    async with opened(path) as journal:
        assert await journal.file_id("d1") == "file-2"


async def test_a_second_opener_is_refused(path: Path) -> None:
    """A journal is open once at a time, and can be opened again when it is closed."""
    async with opened(path):
        with pytest.raises(JournalUnusable, match=r"sweep\.journal: another process is running this batch$"):
            async with opened(path):
                pass
    async with opened(path):
        pass


async def test_another_file_is_no_journal(path: Path) -> None:
    """A file that is something else is refused, and left as it is."""
    text = b"label,model\n" * 1000
    path.write_bytes(text)
    with pytest.raises(JournalUnusable, match=r"sweep\.journal: is not a journal, or it is damaged$"):
        async with opened(path):
            pass
    assert path.read_bytes() == text


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param("CREATE TABLE runs (number INTEGER PRIMARY KEY, base_url TEXT)", id="another program's"),
        pytest.param("PRAGMA application_id = 0x61696674; PRAGMA user_version = 2; CREATE TABLE t (x)", id="newer"),
    ],
)
async def test_another_database_is_refused(path: Path, statements: str) -> None:
    """A database of another program, or a journal of a version to come, is not touched."""
    db = sqlite3.connect(path)
    db.executescript(statements)
    db.close()
    before = path.read_bytes()
    with pytest.raises(JournalUnusable, match=r"sweep\.journal: is not a journal of this version$"):
        async with opened(path):
            pass
    assert path.read_bytes() == before


async def test_opening_may_be_cancelled(path: Path) -> None:
    """Whoever is cancelled while a journal is being opened leaves it closed."""
    opening = asyncio.create_task(opened(path).__aenter__())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()
    async with opened(path):
        pass


async def test_a_failure_that_nobody_waits_for(path: Path) -> None:
    """A note that fails after its caller was cancelled is reported nowhere."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
    async with opened(path) as journal:
        await record(journal, "a", ASKED)
        note = asyncio.create_task(record(journal, "a", ASKED))
        await asyncio.sleep(0)
        note.cancel()
        await asyncio.wait([note])
        assert note.cancelled()
        del note
        gc.collect()
    assert reported == []


async def test_a_journal_is_of_one_service(path: Path) -> None:
    """A journal of another service is refused, naming both, unless the other base URL is accepted."""
    async with opened(path) as journal:
        await journal.intend(A, ASKED, SENT, 100.0)
    other = "https://api.example.org/v1"
    with pytest.raises(JournalUnusable, match=f"belongs to a batch at {URL}, not at {other}; .*--accept-base-url"):
        async with opened(path, other):
            pass
    async with opened(path, other, accept_base_url=True):
        pass


async def test_a_journal_of_which_nothing_was_sent_is_of_any_service(path: Path) -> None:
    """A batch that was run at a wrong address, where nothing was made of it, runs with its journal at the right one."""
    async with opened(path) as journal:
        await journal.keep_file("digest", "file-1")
        await journal.intend(A, ASKED, SENT, 100.0)
        await journal.withdraw(A)
    async with opened(path, "https://api.example.org/v1") as journal:
        assert await record(journal, "a") == AttemptRecord(A, ASKED)
        # An id of the other service may be another file's here.
        assert await journal.file_id("digest") is None


async def test_a_journal_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """A journal that cannot be made is an error that names it."""
    with pytest.raises(JournalUnusable, match=r"nowhere/sweep\.journal: No such file or directory"):
        async with opened(tmp_path / "nowhere" / "sweep.journal"):
            pass
    with pytest.raises(JournalUnusable, match="embedded null"):
        async with opened(tmp_path / "a\0b"):
            pass


async def test_a_journal_that_cannot_be_written_says_so(path: Path) -> None:
    """An error of SQLite on the way is one of ours, which names the journal."""
    async with opened(path) as journal:
        journal.database.connection.execute("PRAGMA query_only = ON")
        with pytest.raises(JournalUnusable, match=r"sweep\.journal: attempt to write a readonly database"):
            await record(journal, "a", ASKED)
        journal.database.connection.execute("PRAGMA query_only = OFF")
        assert await record(journal, "a", ASKED) is None


async def test_what_is_noted_at_once_is_written_at_once(path: Path) -> None:
    """What is noted while the disk is busy goes there together: the first by itself, the rest with one commit."""
    commits = []
    labels = [str(number) for number in range(100)]
    async with opened(path) as journal:
        journal.database.connection.set_trace_callback(
            lambda statement: commits.append(statement) if statement == "COMMIT" else None
        )
        await asyncio.gather(*(journal.intend(AttemptId(label), ASKED, SENT, 1.0) for label in labels))
    assert len(commits) == 2
    async with opened(path) as journal:
        assert await journal.sent_labels() == dict.fromkeys(labels)


async def test_an_entry_that_is_refused_harms_no_other(path: Path) -> None:
    """Of entries that are noted together, the one that cannot be is refused, and all others are there."""
    async with opened(path) as journal:
        results = await asyncio.gather(
            *(record(journal, label, ASKED) for label in ("a", "b", "b", "c")), return_exceptions=True
        )
        assert [type(result) for result in results] == [type(None), type(None), JournalUnusable, type(None)]


async def test_a_note_that_is_refused_harms_none_that_is_written_with_it(path: Path) -> None:
    """Of notes that are written together, the one that cannot be is refused, and all others are on the disk."""
    async with opened(path) as journal:
        wrong: Any = object()
        notes = [journal.intend(A, ASKED, SENT, 1.0), journal.accept(A, wrong), journal.intend(B, ASKED, SENT, 2.0)]
        results = await journal.write(notes)
        assert [type(result) for result in results] == [type(None), TypeError, type(None)]
    async with opened(path) as journal:
        assert await journal.sent_labels() == {"a": None, "b": None}


async def test_a_note_outlives_the_one_who_takes_it(path: Path) -> None:
    """Whoever is cancelled while a note waits for its turn ends when it is written, and not before."""
    async with opened(path) as journal:
        first, second = (asyncio.ensure_future(journal.intend(attempt, ASKED, SENT, 1.0)) for attempt in (A, B))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        assert (first.done(), second.cancelled()) == (True, True)
        assert (await asyncio.to_thread(path.read_bytes)).count(b'{"note":"intend"') == 2


INTEND = """
import asyncio, sys
from pathlib import Path
from aiofinetune import FineTuneRequest
from aiofinetune.batch._journal import Journal
from aiofinetune.batch._core import AttemptId

async def main():
    async with Journal(Path(sys.argv[1]), sys.argv[2]).opened() as journal:
        request = FineTuneRequest(training_file="file-1")
        await journal.intend(AttemptId("a"), request, request, 1.5)
        print("intended", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_an_intent_outlives_kill_9(path: Path) -> None:
    """A process that is killed after it noted an intent leaves it to the next, which finds the journal free."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", INTEND, str(path), URL),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"intended\n"
    with pytest.raises(JournalUnusable, match="another process is running this batch"):
        async with opened(path):
            pass
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    request = FineTuneRequest(training_file="file-1")
    async with opened(path) as journal:
        assert await journal.lost() == [AttemptRecord(A, request, request, 1.5)]
