"""Batches with data that the service would refuse: an entry is rejected before anything of it is sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiofinetune import Batch, DatasetError, Entry, FineTuneRequest, FineTuneSession
from aiofinetune.data import JOBS
from aiofinetune.local import LocalServer
from tests.batch.test_command_line import run
from tests.data.files import pairs, write

GOOD = pairs(("a ->", " b"), ("c ->", " d"))
BAD = [*GOOD, {"prompt": "e ->", "completion": ""}, {"prompt": "f ->", "label": "g"}]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def entry(label: str, training: object, validation: object = None) -> Entry:
    paths = [None if path is None else str(path) for path in (training, validation)]
    return Entry(
        label, FineTuneRequest(training_file=paths[0] or "", validation_file=paths[1], model="ada", n_epochs=1)
    )


async def test_an_entry_with_wrong_data_is_rejected(tmp_path: Path) -> None:
    """It is rejected with the words of the check, nothing of it is sent, and the others go on."""
    good, bad = write(tmp_path, GOOD, "good.jsonl"), write(tmp_path, BAD, "bad.jsonl")
    entries = [entry("bad", bad), entry("good", good), entry("worse", write(tmp_path, GOOD[:1], "new.jsonl"), bad)]
    async with LocalServer() as server, FineTuneSession(server.api_key, base_url=server.base_url) as session:
        async with Batch(session, entries, journal="a.journal", poll_interval=0.1) as batch:
            outcomes = {outcome.label: outcome for outcome in await batch.run()}
        assert {label: outcome.status for label, outcome in outcomes.items()} == {
            "bad": "rejected",
            "good": "succeeded",
            "worse": "rejected",
        }
        for label in ("bad", "worse"):
            error = outcomes[label].error
            assert isinstance(error, DatasetError)
            assert (error.path, error.line) == (str(bad), 3)
            assert "The completion is empty" in str(error)
        names = [file.filename for file in await session.list_files("fine-tune")]
        assert [name.startswith("good-") for name in names if name] == [True]
        # A rerun sends what was rejected if its data is right by then.
        write(tmp_path, GOOD[1:], "bad.jsonl")
        async with Batch(session, entries, journal="a.journal", poll_interval=0.1) as batch:
            assert {outcome.status for outcome in await batch.run()} == {"succeeded"}


async def test_a_file_is_checked_once(tmp_path: Path) -> None:
    """However many entries name a file, it is read by one check; also where the check finds something."""
    path = write(tmp_path, BAD, "bad.jsonl")
    entries = [entry(f"job-{n}", path) for n in range(5)]
    async with (
        LocalServer() as server,
        FineTuneSession(server.api_key, base_url=server.base_url) as session,
        Batch(session, entries) as batch,
    ):
        outcomes = await batch.run()
    assert len({id(outcome.error) for outcome in outcomes}) == 1
    assert {outcome.status for outcome in outcomes} == {"rejected"}


async def test_other_rules_or_none_can_be_asked_for(tmp_path: Path) -> None:
    """Without a check the data is sent, and the service says what is wrong; other rules may refuse what this takes."""
    good, bad = write(tmp_path, GOOD, "good.jsonl"), write(tmp_path, BAD, "bad.jsonl")
    async with LocalServer() as server, FineTuneSession(server.api_key, base_url=server.base_url) as session:
        async with Batch(session, [entry("bad", bad)], data_check=False) as batch:
            (unchecked,) = await batch.run()
        async with Batch(session, [entry("good", good)], data_check=JOBS) as batch:
            (strict,) = await batch.run()
    assert "The training file, line 3: the completion is empty" in str(unchecked.error)
    assert "The service does not take rows of this shape" in str(strict.error)


@pytest.mark.parametrize("options", [[], ["--check"]])
async def test_the_command_looks_into_all_files_first(tmp_path: Path, options: list[str]) -> None:
    """Each problem of each file is a line, once, the status is 5, and nothing is sent."""
    write(tmp_path, BAD, "bad.jsonl")
    (tmp_path / "bad.csv").write_bytes("prompt,completion\na,caf\xe9\n".encode("cp1252"))
    requests = [
        {"training_file": "bad.jsonl", "sweep": {"n_epochs": [1, 2, 3]}},
        {"training_file": "bad.csv", "validation_file": "bad.jsonl"},
    ]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
    status, lines, said = await run("jobs.jsonl", *options, url="http://127.0.0.1:1/v1")
    assert (status, lines) == (5, [])
    assert [line.partition(" (")[0] for line in said.removeprefix("aiofinetune: ").splitlines()] == [
        "jobs.jsonl, line 1, training_file: bad.jsonl, line 3: The completion is empty",
        "jobs.jsonl, line 1, training_file: bad.jsonl, line 4: A field is missing",
        "jobs.jsonl, line 2, training_file: bad.csv, line 2: The line is not valid in the file's encoding",
        "jobs.jsonl, line 2, training_file: bad.csv: The service takes JSON Lines only",
    ]


async def test_the_command_can_leave_the_data_alone(tmp_path: Path) -> None:
    """--no-data-check skips what is in the files, and a check says nothing of it."""
    write(tmp_path, BAD, "bad.jsonl")
    (tmp_path / "jobs.jsonl").write_text('{"training_file": "bad.jsonl"}\n')
    assert await run("jobs.jsonl", "--check", "--no-data-check") == (0, ["jobs.jsonl: 1 job, no problems"], "")
