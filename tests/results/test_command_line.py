"""The commands ``results``, ``compare`` and ``try``, run in this process."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from aiofinetune import (
    AuthenticationFailed,
    Batch,
    ConfigurationError,
    FineTuneError,
    FineTuneRequest,
    FineTuneSession,
    JournalUnusable,
    LocalFileError,
    NotFound,
    read_manifest,
)
from aiofinetune.batch._core import AttemptId
from aiofinetune.batch._journal import Journal
from aiofinetune.cli._commands import cli
from aiofinetune.cli._compare import Options, compare
from aiofinetune.cli._results import show_results
from aiofinetune.cli._shell import Shell
from aiofinetune.cli._try import Options as TryOptions
from aiofinetune.cli._try import try_models
from aiofinetune.local import LocalServer
from tests.batch.runs import entries, outcomes_of
from tests.cli import ashell, objects
from tests.servers.batchserver import RESULTS, BatchServer
from tests.servers.rawserver import KEY

HEADER = "step,training_loss,validation_loss,validation_token_accuracy,classification/accuracy,classification/recall\n"


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pipe be a pipe: ``COLUMNS`` would give it a width."""
    monkeypatch.delenv("COLUMNS", raising=False)


class Screen:
    """What is printed, at a width, on a terminal of some encoding or in a pipe (width 0)."""

    def __init__(self, width: int = 0, encoding: str = "utf-8") -> None:
        self._bytes = io.BytesIO()
        file = io.TextIOWrapper(self._bytes, encoding=encoding, errors="replace", write_through=True)
        self.console = Console(file=file, width=width or None, force_terminal=bool(width), no_color=True)

    @property
    def text(self) -> str:
        """What was printed, without styles and without spaces at the ends of lines."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", self._bytes.getvalue().decode())
        return "\n".join(line.rstrip() for line in plain.splitlines())


def write(path: Path, loss: float, accuracy: float) -> str:
    rows = [f"{step},{4 / step},,,," for step in range(1, 10)]
    path.write_text(HEADER + "\n".join([*rows, f"10,0.4,{loss},0.5,{accuracy},0.25"]))
    return str(path)


async def shown(jobs: list[str], screen: Screen, *, as_csv: bool = False, as_json: bool = False) -> str:
    shell = Shell(screen.console, Screen().console, as_json=as_json)
    status = await show_results(jobs, shell, plot=None, epochs=None, as_csv=as_csv)
    assert status == 0
    return screen.text


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BatchServer]:
    """A service that the environment points to."""
    server = BatchServer()
    async with server.listening() as url:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        yield server


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
async def test_results_of_files(width: int, encoding: str, tmp_path: Path) -> None:
    """Files need no service; a curve and a summary fit any width, and have no signs that the terminal lacks."""
    path = write(tmp_path / "spam-0123abcd.ft-abc.csv", 0.5, 0.75)
    text = await shown([path], Screen(width, encoding))
    lines = text.splitlines()
    assert lines[0] == "spam  10 steps"
    assert "validation" in text
    assert re.search(r"^accuracy +0\.7500 +0\.7500 +10$", text, re.MULTILINE)
    assert max(map(len, lines)) <= width
    assert "?" not in text
    assert ("\u2502" in text) == (encoding == "utf-8")


async def test_results_of_several_files(tmp_path: Path) -> None:
    """Several jobs are drawn together, and their final figures are a table in which the best is marked."""
    paths = [write(tmp_path / "a.csv", 0.5, 0.75), write(tmp_path / "b.csv", 0.25, 0.5)]
    text = await shown(paths, Screen(100))
    assert "a\u2501 a" in text
    assert re.search(r"^a +0\.7500\* +0\.5000 +0\.5000\*", text, re.MULTILINE)
    assert re.search(r"^b +0\.5000 +0\.2500\*", text, re.MULTILINE)


def write_losses(path: Path, *losses: str) -> str:
    path.write_text("step,training_loss\n" + "".join(f"{step},{loss}\n" for step, loss in enumerate(losses, 1)))
    return str(path)


async def test_a_training_that_diverged_is_said_to_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A job whose last loss is NaN is said to have diverged, is not the best, and is sorted last."""
    paths = [
        write_losses(tmp_path / "div.csv", "0.9", "0.5", "nan", "nan"),
        write_losses(tmp_path / "good.csv", "0.9", "0.8", "0.7", "0.6"),
    ]
    words = "div diverged: at the end its training loss is nan"
    text, _ = await compared(paths, Screen(), sort="training_loss")
    assert [line.split() for line in text.splitlines()[2:5]] == [["good", "0.6000*"], ["div", "nan"], words.split()]
    assert (await shown(paths, Screen())).count(words) == 1
    text = await shown(paths[:1], Screen())
    assert text.splitlines()[1] == words
    assert re.search(r"^training loss +nan +0\.5000 +2$", text, re.MULTILINE)
    capsys.readouterr()
    await shown(paths[:1], Screen(), as_json=True)
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told["diverged"] is True
    assert told["summary"]["training_loss"] == {"final": None, "final_step": 4, "best": 0.5, "best_step": 2}
    text = await shown([write_losses(tmp_path / "lost.csv", "nan", "inf")], Screen())
    assert "lost diverged: at the end its training loss is inf" in text


async def test_results_by_the_service(service: BatchServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A job is given by its id; JSON has its parameters, its summary and its rows, CSV the rows alone."""
    async with FineTuneSession() as session:
        (outcome,) = await outcomes_of(Batch(session, entries(service, 1)))
    assert outcome.job_id is not None
    await shown([outcome.job_id], Screen(), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["job"] == told["label"] == outcome.job_id
    assert told["parameters"]["n_epochs"] == 1
    assert told["summary"]["training_loss"] == {"final": 0.25, "final_step": 2, "best": 0.25, "best_step": 2}
    assert [row["training_loss"] for row in told["rows"]] == [0.5, 0.25]
    await shown([outcome.job_id], Screen(), as_csv=True)
    assert capsys.readouterr().out.encode() == RESULTS
    with pytest.raises(NotFound):
        await shown(["ft-unknown"], Screen())


async def test_csv_of_several_jobs_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows of several jobs are one table with a column for the job."""
    paths = [write(tmp_path / "a.csv", 0.5, 0.75), write(tmp_path / "b.csv", 0.25, 0.5)]
    await shown(paths, Screen(), as_csv=True)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["label"], row["step"]) for row in rows] == [(label, str(n)) for label in "ab" for n in range(1, 11)]
    assert (rows[0]["validation_loss"], rows[9]["validation_loss"]) == ("", "0.5")


async def test_files_that_are_no_results(tmp_path: Path) -> None:
    """A file that is missing, or is another one, is named; it is not taken for the id of a job."""
    with pytest.raises(LocalFileError, match=r"nowhere\.csv: there is no such file"):
        await shown([str(tmp_path / "nowhere.csv")], Screen())
    with pytest.raises(LocalFileError, match=r"^/dev/null: is not a regular file$"):
        await shown(["/dev/null"], Screen())
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(FineTuneError, match=r"a\.csv: the results file has no column 'step'"):
        await shown([str(tmp_path / "a.csv")], Screen())


SWEEP = """
[defaults]
training_file = "file-1"
model = "ada"
[[requests]]
label = "a-label-that-is-long-enough-to-be-left-out"
sweep.n_epochs = [1, 2, 4]
"""


async def batch_in(folder: Path, service: BatchServer) -> Path:
    """A manifest whose batch has run, with its journal and its results."""
    file = service.add_file("train.jsonl", b"train")
    manifest = folder / "sweep.toml"
    manifest.write_text(SWEEP.replace("file-1", file))
    async with FineTuneSession() as session:
        wanted = list(read_manifest(manifest))[:2]
        await outcomes_of(Batch(session, wanted, journal=folder / "sweep.toml.journal", results=folder / "results"))
    for number, path in enumerate(sorted((folder / "results").iterdir()), 1):
        write(path, 0.5 / number, 0.75)
    return manifest


async def compared(
    names: list[str], screen: Screen, *, as_json: bool = False, **options: Any
) -> tuple[str, str]:  # Any: as `Options` takes them
    warnings = Screen()
    shell = Shell(screen.console, warnings.console, as_json=as_json)
    assert await compare(names, shell, Options(**options)) == 0
    return screen.text, warnings.text


async def test_compare_reads_the_journal_alone(
    service: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifest and journal are read without a service, without a lock and without a change, also while a batch runs."""
    manifest = await batch_in(tmp_path, service)
    journal = tmp_path / "sweep.toml.journal"
    monkeypatch.delenv("OPENAI_API_KEY")
    async with Journal(journal, service_url()).opened():
        before, files = journal.read_bytes(), sorted(tmp_path.iterdir())
        text, _ = await compared([str(manifest)], Screen(), results=tmp_path / "results")
        text_of_journal, _ = await compared([str(journal)], Screen(), results=tmp_path / "results")
        assert (journal.read_bytes(), sorted(tmp_path.iterdir())) == (before, files)
    label = "a-label-that-is-long-enough-to-be-left-out/n_epochs="
    assert re.search(rf"^{label}1 +1 +succeeded +\d+\.\d +0\.7500\* +0\.5000 ", text, re.MULTILINE)
    assert re.search(rf"^{label}2 +2 +succeeded +\d+\.\d +0\.7500\* +0\.2500\*", text, re.MULTILINE)
    assert re.search(rf"^{label}4 +4 +not sent$", text, re.MULTILINE)
    assert f"{label}2" in text_of_journal
    assert f"{label}4" not in text_of_journal


def service_url() -> str:
    return os.environ["OPENAI_BASE_URL"]


async def test_compare_by_the_service(
    service: BatchServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a folder the results are downloaded; JSON has each job's parameters; without a key that is told."""
    manifest = await batch_in(tmp_path, service)
    await compared([str(manifest)], Screen(), as_json=True)
    told = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(row["n_epochs"], row["status"], row["training_loss"]) for row in told] == [
        (1, "succeeded", 0.25),
        (2, "succeeded", 0.25),
        (4, "not sent", None),
    ]
    monkeypatch.delenv("OPENAI_API_KEY")
    _, warning = await compared([str(manifest)], Screen())
    assert warning.startswith("no figures of 2 of 3 jobs, such as a-label")
    assert "OPENAI_API_KEY" in warning


async def test_a_narrow_table_says_which_job_is_which(service: BatchServer, tmp_path: Path) -> None:
    """Where there is little room the labels are folded, not left out."""
    manifest = await batch_in(tmp_path, service)
    text, _ = await compared([str(manifest)], Screen(40), results=tmp_path / "results")
    assert max(map(len, text.splitlines())) <= 40
    column = "".join(line.split()[0] for line in text.splitlines() if line)
    label = "a-label-that-is-long-enough-to-be-left-out/n_epochs="
    assert [column.count(f"{label}{epochs}") for epochs in (1, 2, 4)] == [1, 1, 1]


@pytest.mark.parametrize("width", [60, 80, 200])
async def test_compare_fits_a_terminal(service: BatchServer, tmp_path: Path, width: int) -> None:
    """A narrow table leaves out what tells least, and says what; a pipe gets all columns, each cell whole."""
    manifest = await batch_in(tmp_path, service)
    text, _ = await compared([str(manifest)], Screen(width), results=tmp_path / "results", sort="validation loss")
    assert max(map(len, text.splitlines())) <= width
    assert ("left out" in text) == (width < 200)
    assert re.findall(r"(\d) +(?:succeeded|not sent)", text) == ["2", "1", "4"]
    assert "0.7500*" in text


async def test_compare_files_and_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results files are compared too, sorted by any column; one that is none is refused."""
    paths = [write(tmp_path / "a.csv", 0.5, 0.75), write(tmp_path / "b.csv", 0.25, 0.5)]
    await compared(paths, Screen(), as_csv=True, sort="validation_loss")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["label"], row["classification/accuracy"]) for row in rows] == [("b", "0.5"), ("a", "0.75")]
    with pytest.raises(ConfigurationError, match="nothing: is not a column"):
        await compared(paths, Screen(), sort="nothing")


async def test_compare_jobs_that_have_no_results(service: BatchServer) -> None:
    """Jobs are compared by ids too, and one that failed or still runs is a row without figures."""
    service.lasts = None
    file = service.add_file("a", b"a")
    ids = [service.add_job({"training_file": file, "n_epochs": epochs}) for epochs in (1, 2, 3)]
    service.end(ids[0])
    service.end(ids[1], "failed")
    text, warning = await compared(ids, Screen())
    assert warning == ""
    assert re.search(rf"^{ids[0]} +1 +succeeded +(\d\.\d)? +0\.2500 *$", text, re.MULTILINE)
    assert re.search(rf"^{ids[1]} +2 +failed( +\d\.\d)?$", text, re.MULTILINE)
    assert re.search(rf"^{ids[2]} +3 +pending$", text, re.MULTILINE)


async def test_compare_reads_the_journal_that_was_written_last(service: BatchServer, tmp_path: Path) -> None:
    """A batch with --fresh has a journal of another name; of several the last is read, and named, but for --journal."""
    manifest = await batch_in(tmp_path, service)
    fresh, old = tmp_path / "sweep.toml.2026-01-02-030405.journal", tmp_path / "sweep.toml.journal"
    old.rename(fresh)
    text, warnings = await compared([str(manifest)], Screen(), results=tmp_path / "results")
    assert (text.count("succeeded"), warnings) == (2, "")
    async with Journal(old, service_url()).opened():
        pass
    for time, is_fresh in ((1, True), (2**40, False)):
        os.utime(old, (time, time))
        text, warnings = await compared([str(manifest)], Screen(), results=tmp_path / "results")
        assert text.count("succeeded") == (2 if is_fresh else 0)
        assert f"read {fresh if is_fresh else old}, written last" in warnings.replace("\n", "")
    text, warnings = await compared([str(manifest)], Screen(), journal=fresh, results=tmp_path / "results")
    assert (text.count("succeeded"), warnings) == (2, "")


async def test_entries_that_have_not_ended(tmp_path: Path) -> None:
    """An entry stands where the journal has it: it was sent, but no job is known; or its job has not ended."""
    request = FineTuneRequest(training_file="file-1")
    async with Journal(tmp_path / "a.journal", "http://localhost/v1").opened() as journal:
        for label in ("lost", "running"):
            await journal.intend(AttemptId(label, 1), request, request, 1.0)
        await journal.create(AttemptId("running", 1), "ft-1")
    text, _ = await compared([str(tmp_path / "a.journal")], Screen())
    assert re.search(r"^lost +uncertain$", text, re.MULTILINE)
    assert re.search(r"^running +active$", text, re.MULTILINE)


async def test_a_journal_that_is_damaged(service: BatchServer, tmp_path: Path) -> None:
    """A journal with a changed line is refused as by a batch, and left as it is."""
    await batch_in(tmp_path, service)
    journal = tmp_path / "sweep.toml.journal"
    damaged = journal.read_bytes().replace(b'"intend"', b'"xntend"', 1)
    journal.write_bytes(damaged)
    with pytest.raises(JournalUnusable, match="is damaged in line"):
        await compared([str(journal)], Screen())
    assert journal.read_bytes() == damaged


async def test_try_asks_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts are answered by one model beside another; with completions of a file the accuracy is told."""
    path = tmp_path / "held_out.jsonl"
    async with LocalServer() as server:
        monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)

        async def tried(
            *prompts: str, file: Path | None = None, as_json: bool = False, **options: Any
        ) -> str:  # Any: as `Options` takes them
            screen, asked = Screen(), TryOptions(max_tokens=2, **options)
            shell = Shell(screen.console, Screen().console, as_json=as_json)
            assert await try_models(("ada", "babbage"), prompts, file, shell, asked) == 0
            return screen.text

        text = await tried("one prompt")
        assert re.fullmatch(r"'one prompt'\n  ada      '.*'\n  babbage  '.*'", text)
        await tried("one prompt", as_json=True)
        answer = json.loads(capsys.readouterr().out)["answers"]["ada"]
        rows = [{"prompt": "one prompt", "completion": answer if number % 2 else "x"} for number in range(44)]
        path.write_text("\n".join(map(json.dumps, rows)))
        text = await tried(file=path, show=2)
        assert "\nada: accuracy 0.500 (22 of 44), weighted F1 " in text
        assert len(re.findall(r"^'one prompt'  'x' +wrong  '", text, re.MULTILINE)) == 2
        assert "42 more; --show N" in text
        answered = await tried("one prompt", chat=True)
        assert re.fullmatch(r"'one prompt'\n  ada      '.*'\n  babbage  '.*'", answered)
        chat = tmp_path / "chat.jsonl"
        said = [{"role": "user", "content": "one prompt"}, {"role": "assistant", "content": "x"}]
        chat.write_text(json.dumps({"messages": said}))
        assert "ada: accuracy 0.000 (0 of 1)" in await tried(file=chat)
        assert (await tried(file=chat, show=0)).startswith("1 more; --show N")
        await tried("another", file=path, as_json=True)
        *answers, of_ada, of_babbage = map(json.loads, capsys.readouterr().out.splitlines())
        assert (of_ada["model"], of_ada["right"], of_babbage["model"]) == ("ada", 22, "babbage")
        assert len(answers) == 45
        with pytest.raises(ConfigurationError, match="there is no prompt"):
            await tried()
        monkeypatch.setenv("OPENAI_API_KEY", "another")
        with pytest.raises(AuthenticationFailed):
            await tried("one prompt")


def test_options_reach_the_commands(tmp_path: Path) -> None:
    """The command line passes its options on, and prints an error of this package on one line."""
    path = write(tmp_path / "a.csv", 0.5, 0.75)
    done = CliRunner().invoke(cli, ["results", path, "--epochs", "5", "--json"])
    assert (done.exit_code, len(json.loads(done.stdout)["rows"])) == (0, 10)
    assert "epoch" in CliRunner().invoke(cli, ["results", path, "--epochs", "5"]).stdout
    done = CliRunner().invoke(cli, ["compare", path, "--sort", "label", "--csv"])
    assert done.stdout.splitlines()[1].startswith("a,")
    done = CliRunner().invoke(cli, ["results", str(tmp_path / "b.csv")])
    assert (done.exit_code, done.output) == (5, f"aiofinetune: {tmp_path}/b.csv: there is no such file\n")
    (tmp_path / "jobs.jsonl").write_text('{"training_file": "file-1"}\n')
    done = CliRunner().invoke(cli, ["compare", str(tmp_path / "jobs.jsonl"), "--journal", str(tmp_path / "nope")])
    assert (done.exit_code, "nope' does not exist" in done.output) == (5, True)
    done = CliRunner().invoke(cli, ["try", "ada"])
    assert (done.exit_code, "there is no prompt" in done.output) == (2, True)


async def test_the_shared_options_count(service: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results, compare and try reach the service by options, variables and files, and each prints JSON lines."""
    url = service_url()
    async with FineTuneSession() as session:
        (outcome,) = await outcomes_of(Batch(session, entries(service, 1), journal=tmp_path / "a.journal"))
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.chdir(tmp_path)
    Path("key").write_text(KEY)
    Path("my.toml").write_text(f'base_url = "{url}"\napi_key_file = "key"\njson = true\n')
    for command in ("results", "compare"):
        for options in (["--config", "my.toml"], ["--base-url", url, "--api-key-file", "key", "--json"]):
            done = await ashell(command, outcome.job_id, *options, url="", key="")
            assert (done.exit_code, done.stderr) == (0, "")
            assert [told["job"] for told in objects(done)] == [outcome.job_id]
    for options, is_told in ((["-v"], True), (["-q"], False)):
        done = await ashell("compare", "a.journal", *options, url="", key="")
        assert (done.exit_code, "no figures of 1 of 1 jobs" in done.stderr) == (0, is_told)
    done = await ashell("try", "ada", "one prompt", "--max-tokens", 2, "--local", "--json", url="", key="")
    (answer,) = objects(done)
    assert (done.exit_code, answer["prompt"], list(answer["answers"])) == (0, "one prompt", ["ada"])
