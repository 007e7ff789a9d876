"""How far a batch is, from its journal alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import Result

from aiofinetune.batch._batch import Batch
from tests.batch.runs import POLL, entries, outcomes_of
from tests.cli import ashell, objects
from tests.servers.batchserver import BatchServer, error, talking_to
from tests.support.damage import sent, write_version_1


async def status(*arguments: object) -> Result:
    """Run the command, which asks no service."""
    return await ashell("batch", "status", *arguments, url="http://127.0.0.1:9/v1")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


async def test_each_entry_and_the_counts() -> None:
    """A table has each entry with its status and its job's id, the last lines the counts, the service and a limit."""
    server = BatchServer(fate=lambda asked: "failed" if asked["n_epochs"] == 2 else "succeeded")
    wanted = entries(server, 4)
    async with talking_to(server) as session:
        server.refuse = lambda endpoint: error(400, "no") if endpoint == "create" and len(server.jobs) == 3 else None
        await outcomes_of(Batch(session, wanted, concurrency=1, max_active=1, poll_interval=POLL, journal="j"))
    told = await status("j", "--json")
    assert [(it["label"], it["status"], it["job"]) for it in objects(told)] == [
        ("job-1", "succeeded", "ft-2"),
        ("job-2", "failed", "ft-4"),
        ("job-3", "succeeded", "ft-5"),
        ("job-4", "not sent", None),
    ]
    lines = (await status("j")).stdout.splitlines()
    assert lines[1].split()[:3] == ["job-1", "succeeded", "ft-2"]
    assert server.jobs["ft-2"]["fine_tuned_model"] in lines[1]
    assert lines[-3] == "4 entries: 2 succeeded, 1 failed, 1 not sent"
    assert lines[-2].startswith(f"at {session.base_url} (fine-tunes), last written ")
    assert lines[-1] == "entries that no run has tried to send yet are not in the journal"


async def test_a_journal_in_use_is_read_all_the_same() -> None:
    """While the batch runs its journal is read, nothing is locked or written, and it is said that it runs."""
    server = BatchServer(lasts=None)
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 2), journal="j") as batch,
    ):
        await server.until(lambda: server.asked["stream"] == 2)
        before = Path("j").read_bytes()
        told = await status("j")
        assert "2 entries: 2 active" in told.stdout
        assert told.stdout.splitlines()[-2] == "a batch is running with this journal"
        assert Path("j").read_bytes() == before
        for job_id in list(server.active):
            server.end(job_id)
        assert len(await batch.run()) == 2
    assert "is running" not in (await status("j")).stdout


@pytest.mark.parametrize("killed", [False, True])
async def test_a_journal_of_version_1(tmp_path: Path, *, killed: bool) -> None:
    """A journal of the first version is read as it is, with its log if its process was killed."""
    async with sent(tmp_path, killed=True) as case:
        path = tmp_path / "old.journal"
        write_version_1(case, path, killed=killed)
        before = path.read_bytes()
        told = objects(await status(path, "--json"))
        count = len(case.wanted)
    assert [it["status"] for it in told][:5] == ["succeeded"] * 3 + ["active"] * 2
    assert [it["status"] for it in told][5:] == ["uncertain"] * (count - 5)
    assert path.read_bytes() == before


async def test_what_was_left_out_is_not_counted() -> None:
    """Entries that are no longer in the manifest are shown as such, and not counted with the others."""
    server = BatchServer()
    wanted = entries(server, 1)
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted, journal="j"))
        row = {"label": "other", "training_file": wanted[0].request.training_file}
        Path("jobs.jsonl").write_text(json.dumps(row))
        options = ("--journal", "j", "--accept-changes")
        assert (await ashell("batch", "jobs.jsonl", *options, url=session.base_url)).exit_code == 0
    told = (await status("j")).stdout
    assert "succeeded (left out)" in told
    assert "1 entry: 1 succeeded; 1 no longer part of the batch" in told


async def test_what_is_no_journal() -> None:
    """A damaged journal says in which line, a manifest where its journal is; a missing file is a wrong one."""
    server = BatchServer()
    wanted = entries(server, 2)
    Path("jobs.jsonl").write_text("{}")
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted, journal="jobs.jsonl.journal"))
    told = await status("jobs.jsonl")
    assert (told.exit_code, "its journal is jobs.jsonl.journal" in told.stderr) == (2, True)
    lines = Path("jobs.jsonl.journal").read_bytes().splitlines(keepends=True)
    Path("damaged").write_bytes(b"".join([*lines[:2], lines[2].replace(b"ada", b"bad"), *lines[3:]]))
    told = await status("damaged")
    assert (told.exit_code, told.stderr.partition(" (")[0]) == (
        6,
        "aiofinetune: damaged: is damaged in line 3; restore an intact copy",
    )
    Path("empty").touch()
    assert (await status("empty")).exit_code == 6
    assert (await status("gone")).exit_code == 5
