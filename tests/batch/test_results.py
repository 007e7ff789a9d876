"""A batch's results: downloaded once, to a folder."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from aiofinetune import FineTuneRequest, LocalFileError, NoResults
from aiofinetune.batch._batch import Batch
from aiofinetune.batch._manifest import Entry
from aiofinetune.batch._results_folder import results_path
from aiofinetune.cli._batch_view import outcome_line
from aiofinetune.errors import FineTuneError, JournalUnusable
from tests.batch.runs import entries, outcomes_of, write
from tests.servers.batchserver import RESULTS, BatchServer, talking_to


async def test_results_are_downloaded_to_a_folder(tmp_path: Path) -> None:
    """Each results file is written under its label, made a file name where need be, and its last figures are given."""
    server = BatchServer(fate=lambda asked: "failed" if asked["n_epochs"] == 1 else "succeeded")
    failing, *wanted = entries(server, 4)
    names = ["spam/n_epochs=4,model=ada", "spam_n_epochs=4,model=ada", "../../etc"]
    wanted = [Entry(name, entry.request) for name, entry in zip(names, wanted, strict=True)]
    folder = tmp_path / "deep" / "results"
    async with talking_to(server) as session:
        outcomes = await outcomes_of(Batch(session, [failing, *wanted], results=folder))
    paths = sorted(folder.iterdir())
    assert sorted(tmp_path.rglob("*.csv")) == paths
    assert [path.read_bytes() for path in paths] == [RESULTS] * 3
    told = {outcome.label: outcome.job_id for outcome in outcomes}
    assert f"{names[1]}.{told[names[1]]}.csv" in {path.name for path in paths}
    for outcome in outcomes:
        assert dict(outcome.figures).get("training_loss") == (None if outcome.label == "job-1" else 0.25)


async def test_a_training_that_diverged(tmp_path: Path) -> None:
    """The last figures of a model that diverged are no numbers; its line says so, and its summary is JSON."""
    server = BatchServer()
    async with talking_to(server) as session:
        wanted = entries(server, 1)
        (outcome,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal"))
        assert outcome.job is not None
        path = results_path(tmp_path, outcome.label, outcome.job.id)
        path.write_bytes(b"step,training_loss\n1,0.5\n2,nan\n")
        (outcome,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", results=tmp_path))
    assert math.isnan(outcome.figures["training_loss"])
    assert outcome.summary()["figures"] == {"training_loss": None}
    assert outcome_line(outcome).endswith("; its training diverged: at the end its training loss is nan")


async def test_a_batch_that_was_not_entered_says_so() -> None:
    """A batch that is read outside its context, or entered again, raises at once rather than waits for ever."""
    server = BatchServer()
    async with talking_to(server) as session:
        batch = Batch(session, entries(server, 1))
        with pytest.raises(FineTuneError, match="async with"):
            await batch.run()
        await outcomes_of(batch)
        with pytest.raises(FineTuneError, match="create a new one"):
            await batch.__aenter__()


async def test_a_file_that_was_edited_is_a_change(tmp_path: Path) -> None:
    """A local file with another content than was sent makes its entry another one, which is refused until accepted."""
    server = BatchServer()
    path = tmp_path / "train.jsonl"
    path.write_text("first")
    wanted = [Entry("a", FineTuneRequest(training_file=str(path)))]
    async with talking_to(server) as session:
        (first,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", data_check=False))
        (again,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", data_check=False))
        assert again.job_id == first.job_id
        path.write_text("second")
        with pytest.raises(JournalUnusable, match=r"the content of .*train\.jsonl"):
            await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", data_check=False))
        (other,) = await outcomes_of(
            Batch(session, wanted, journal=tmp_path / "journal", accept_changes=True, data_check=False)
        )
        assert other.job_id != first.job_id
        path.unlink()
        (gone,) = await outcomes_of(Batch(session, wanted, journal=tmp_path / "journal", data_check=False))
        assert gone.job_id == other.job_id


async def test_results_that_are_missing_are_told(tmp_path: Path) -> None:
    """A job that succeeded without a results file is an outcome with its job, and an error that says so."""
    server = BatchServer()
    server.keeps_ended = False
    async with talking_to(server) as session:
        (outcome,) = await outcomes_of(Batch(session, entries(server, 1), results=tmp_path))
    assert outcome.job is not None
    assert isinstance(outcome.error, NoResults)
    assert str(outcome.error).startswith(f"fine-tune {outcome.job_id} has no results file, although it succeeded")


async def test_a_results_folder_that_cannot_be_is_told_first(tmp_path: Path) -> None:
    """Where the folder cannot be made, the batch is not begun."""
    server = BatchServer()
    folder = Path(write(tmp_path, "results", "a file in its place"))
    async with talking_to(server) as session:
        with pytest.raises(LocalFileError, match="File exists"):
            await outcomes_of(Batch(session, entries(server, 3), results=folder))
    assert not server.jobs


async def test_a_results_folder_that_goes_is_told(tmp_path: Path) -> None:
    """If the folder is deleted before the results arrive, each outcome has its job and a `LocalFileError`."""
    server = BatchServer(lasts=None)
    folder = tmp_path / "results"
    async with (
        talking_to(server) as session,
        asyncio.timeout(60),
        Batch(session, entries(server, 3), results=folder) as batch,
    ):
        await server.until(lambda: len(server.active) == 3)
        folder.rmdir()
        for job_id in list(server.active):
            server.end(job_id)
        outcomes = await batch.run()
    assert [type(outcome.error) for outcome in outcomes] == [LocalFileError] * 3
    assert all(outcome.job and outcome.job.fine_tuned_model for outcome in outcomes)


async def test_results_that_are_there_are_not_downloaded_again(tmp_path: Path) -> None:
    """A resumed batch gives the old figures from the files that it has, even if the service has them no more."""
    server = BatchServer()
    wanted = entries(server, 3)
    async with talking_to(server) as session:
        for _ in range(2):
            outcomes = await outcomes_of(
                Batch(session, wanted, results=tmp_path / "results", journal=tmp_path / "journal")
            )
            assert [(outcome.error, outcome.figures["training_loss"]) for outcome in outcomes] == [(None, 0.25)] * 3
            server.contents.clear()
    assert server.asked["download"] == 3
