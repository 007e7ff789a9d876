"""A batch's training files: uploaded once, by their content."""

from __future__ import annotations

import asyncio
import hashlib
from io import BufferedReader
from pathlib import Path

import pytest

from aiofinetune import FineTuneRequest, JournalUnusable, LocalFileError
from aiofinetune.batch._batch import Batch
from aiofinetune.batch._manifest import Entry
from aiofinetune.batch._rerun import look_back
from tests.batch.runs import entries, outcomes_of, write
from tests.servers.batchserver import BatchServer, error, talking_to


async def test_a_content_is_uploaded_once(tmp_path: Path) -> None:
    """Requests that name one file, and files of other names with the same content, share one upload."""
    server = BatchServer()
    train, same, valid = (write(tmp_path, f"{name}.jsonl", name[:5]) for name in ("train-1", "train-2", "valid"))
    wanted = [FineTuneRequest(training_file=file, validation_file=valid) for file in [train, same] * 5]
    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, wanted, data_check=False))
    assert [outcome.error for outcome in outcomes] == [None] * 10
    assert server.trained_on() == [b"train"] * 10
    assert server.asked["upload"] == 2


@pytest.mark.parametrize("name", ["train.json", "train.JSONL", "train.csv", "train.jsonl.gz", "train", "file-abc123"])
async def test_a_file_of_the_current_folder_is_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A request in code that names a file of the current folder trains on it, whatever its name looks like."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("train")
    server = BatchServer()
    at_service = server.add_file("other.jsonl", b"other")
    wanted = [FineTuneRequest(training_file=file, validation_file=at_service) for file in (name, at_service)]
    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, wanted, journal="journal", concurrency=1, data_check=False))
        assert [outcome.status for outcome in outcomes] == ["succeeded", "succeeded"]
        assert server.trained_on() == [b"train", b"other"]
        Path(name).unlink()
        again = await outcomes_of(Batch(session, wanted, journal="journal", data_check=False))
    assert [outcome.job_id for outcome in again] == [outcome.job_id for outcome in outcomes]


@pytest.mark.parametrize("name", ["train.json", "train.JSONL", "train.csv", "train.jsonl.gz"])
async def test_a_missing_data_file_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A request in code that names a data file which is not there is rejected, and the name is not sent as an id."""
    monkeypatch.chdir(tmp_path)
    server = BatchServer()
    async with talking_to(server) as session:
        (outcome,) = await outcomes_of(Batch(session, [FineTuneRequest(training_file=name)], data_check=False))
    assert isinstance(outcome.error, LocalFileError)
    assert str(outcome.error) == f"{name}: No such file or directory"
    assert (outcome.status, server.asked["create"]) == ("rejected", 0)


async def test_a_content_is_uploaded_once_whatever_happens_first(tmp_path: Path) -> None:
    """A file of another name with a content that this run has uploaded before needs no further upload."""
    server = BatchServer()
    train, same = (write(tmp_path, name, "train") for name in ("a.jsonl", "b.jsonl"))
    async with talking_to(server) as session:
        wanted = [FineTuneRequest(training_file=file) for file in (train, same, train)]
        await outcomes_of(Batch(session, wanted, concurrency=1, data_check=False))
    assert server.asked["upload"] == 1


async def test_files_are_told_by_their_content(tmp_path: Path) -> None:
    """Files of one name and other contents are not taken for one another."""
    server = BatchServer()
    contents = ["one", "two", "six"]
    for content in contents:
        (tmp_path / content).mkdir()
    wanted = [FineTuneRequest(training_file=write(tmp_path / name, "train.jsonl", name)) for name in contents]
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted, data_check=False))
    assert sorted(server.trained_on()) == [b"one", b"six", b"two"]


@pytest.mark.parametrize("has_journal", [True, False])
async def test_a_content_is_uploaded_once_across_runs(tmp_path: Path, *, has_journal: bool) -> None:
    """The next run finds what was uploaded: by the journal, and without one by the name at the service."""
    server = BatchServer()
    file = write(tmp_path, "train.jsonl", "train")
    journal = tmp_path / "journal" if has_journal else None
    async with talking_to(server) as session:
        for number in range(2):
            wanted = [Entry(f"job-{number}", FineTuneRequest(training_file=file))]
            await outcomes_of(Batch(session, wanted, journal=journal, data_check=False))
    assert server.asked["upload"] == 1
    assert server.trained_on() == [b"train"] * 2


async def test_a_run_reads_a_file_once_to_see_whether_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that is run again looks into the one file of all its requests once, though it begins with many."""
    read = []
    file_digest = hashlib.file_digest

    def counted(file: BufferedReader, name: str) -> object:
        read.append(file.name)
        return file_digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    server = BatchServer()
    file = write(tmp_path, "train.jsonl", "train")
    wanted = [Entry(f"job-{number}", FineTuneRequest(training_file=file, n_epochs=number)) for number in range(1, 9)]
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", data_check=False))
        read.clear()
        outcomes = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", data_check=False))
    assert [outcome.error for outcome in outcomes] == [None] * 8
    assert read == [file]


async def test_a_file_that_is_gone_at_the_service_is_uploaded_again(tmp_path: Path) -> None:
    """A file that the journal knows and the service does not is uploaded again."""
    server = BatchServer()
    file = write(tmp_path, "train.jsonl", "train")
    async with talking_to(server) as session:
        for label in ("a", "b", "c"):
            wanted = [Entry(label, FineTuneRequest(training_file=file))]
            await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", data_check=False))
            if label == "a":
                for file_id in [key for key, value in server.files.items() if value["purpose"] == "fine-tune"]:
                    del server.files[file_id]
    assert server.asked["upload"] == 2


@pytest.mark.parametrize("wrong", [{"bytes": 2}, {"status": "error"}])
async def test_what_is_left_of_a_failed_upload_is_not_used(tmp_path: Path, wrong: dict[str, object]) -> None:
    """A file of the right name that the service has in part, or could not read, is uploaded again."""
    server = BatchServer()
    file = write(tmp_path, "train.jsonl", "train")
    async with talking_to(server) as session:
        await outcomes_of(Batch(session, [Entry("a", FineTuneRequest(training_file=file))], data_check=False))
        for known in server.files.values():
            known.update(wrong)
        await outcomes_of(Batch(session, [Entry("b", FineTuneRequest(training_file=file))], data_check=False))
    assert server.asked["upload"] == 2
    first, second = (job["training_files"][0]["id"] for job in server.jobs.values())
    assert first != second


async def test_a_file_that_changes_while_it_is_sent(tmp_path: Path) -> None:
    """What was sent under the name of another content is not trained on, and not left for later runs to find."""
    server = BatchServer()
    file = write(tmp_path, "train.jsonl", "train")
    server.held["list files"] = asyncio.Event()
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, [FineTuneRequest(training_file=file)], data_check=False) as batch,
    ):
        await server.until(lambda: server.asked["list files"] == 1)
        write(tmp_path, "train.jsonl", "other")
        server.held["list files"].set()
        (outcome,) = await batch.run()
    assert isinstance(outcome.error, LocalFileError)
    assert "changed during the upload" in str(outcome.error)
    assert (server.jobs, server.files) == ({}, {})


async def test_an_upload_that_fails_is_the_outcome_of_those_who_need_it(tmp_path: Path) -> None:
    """A file that the service refuses fails its own requests alone."""
    server = BatchServer()
    known = entries(server, 1)
    server.refuse = lambda endpoint: error(400, "Invalid file") if endpoint == "upload" else None
    wanted = [*known, Entry("bad", FineTuneRequest(training_file=write(tmp_path, "bad.jsonl", "bad")))]
    async with talking_to(server) as session:
        outcomes = {outcome.label: outcome for outcome in await outcomes_of(Batch(session, wanted, data_check=False))}
    assert outcomes["job-1"].error is None
    assert str(outcomes["bad"].error).startswith("400: Invalid file")


async def test_a_path_that_no_file_can_have() -> None:
    """A path with a null byte is the error of its own request, and no other's."""
    server = BatchServer()
    wanted = [*entries(server, 1), Entry("bad", FineTuneRequest(training_file="a\0.jsonl"))]
    async with talking_to(server) as session:
        outcomes = {outcome.label: outcome for outcome in await outcomes_of(Batch(session, wanted, data_check=False))}
    assert isinstance(outcomes["bad"].error, LocalFileError)
    assert outcomes["job-1"].error is None


@pytest.mark.parametrize("again", ["in/train.jsonl", "./in/../in/train.jsonl", "{folder}/in/train.jsonl", "copy.jsonl"])
async def test_a_rerun_in_another_folder_makes_no_job_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """A file is the same by its content, under whatever path a rerun names it."""
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "in" / "train.jsonl", tmp_path / "copy.jsonl"):
        path.write_text("train")
    server = BatchServer()
    journal = tmp_path / "journal"
    async with talking_to(server) as session:
        monkeypatch.chdir(tmp_path / "in")
        before = await outcomes_of(
            Batch(
                session, [Entry("a", FineTuneRequest(training_file="train.jsonl"))], journal=journal, data_check=False
            )
        )
        monkeypatch.chdir(tmp_path)
        wanted = [Entry("a", FineTuneRequest(training_file=again.format(folder=tmp_path)))]
        assert (await look_back(journal, session, wanted)).changes == ()
        after = await outcomes_of(Batch(session, wanted, journal=journal, data_check=False))
        assert [outcome.job_id for outcome in after] == [outcome.job_id for outcome in before]
        Path("in/train.jsonl").write_text("other")
        Path("copy.jsonl").write_text("other")
        with pytest.raises(JournalUnusable, match="the content of"):
            await outcomes_of(Batch(session, wanted, journal=journal, data_check=False))
    assert (server.asked["create"], server.asked["upload"]) == (1, 1)
