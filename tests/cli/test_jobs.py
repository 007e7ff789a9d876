"""The commands about jobs, files and models, run in this process against the embedded server and a small one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from aiofinetune.cli._commands import _LATER, cli
from aiofinetune.cli._files import _safe_name
from aiofinetune.cli._jobs import create
from aiofinetune.local import LocalServer
from aiofinetune.models import FineTuneRequest
from tests.cli import ashell, objects, shell
from tests.local.plainclient import jsonl
from tests.servers.batchserver import BatchServer, error, ok
from tests.servers.rawserver import KEY, answering, event, reply, serve


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_bytes(jsonl((f"{number} ->", " odd" if number % 2 else " even") for number in range(8)))


@pytest.fixture
async def embedded() -> AsyncIterator[LocalServer]:
    """The embedded server."""
    async with LocalServer(api_key=KEY) as server:
        yield server


def test_the_list_of_commands_says_what_they_say() -> None:
    """The lines of the list, which imports no command, are the beginnings of the commands' own help."""
    context = cli.make_context("aiofinetune", ["list"])
    for name, (_, line) in _LATER.items():
        command = cli.get_command(context, name)
        assert command is not None
        own = command.get_short_help_str(200).replace("JOB", "job").replace("TRAINING_FILE", "a training file")
        own = own.replace("JOURNAL", "journal")
        assert own.startswith(line.removesuffix(".")), name


def test_every_parameter_of_a_job_is_an_option() -> None:
    """Create has an option for each parameter of `FineTuneRequest`."""
    options = {param.name for param in create.params}
    assert {field.name for field in attrs.fields(FineTuneRequest)} <= options


async def test_from_a_file_to_a_model_and_back(embedded: LocalServer) -> None:
    """Create uploads, creates and follows; the other commands find what it made, in both dialects; all goes again."""
    url = embedded.base_url
    made = await ashell("create", "train.jsonl", "-m", "ada", "--n-epochs", 1, "--suffix", "s", "--follow", url=url)
    assert made.exit_code == 0, made.stderr
    assert "uploaded train.jsonl as file-" in made.stderr
    assert "Completed epoch 1/1" in made.stdout
    fields = dict(line.split("  ", 1) for line in made.stdout.splitlines() if line[0] in "jsfr" and "  " in line)
    job, model = fields["job"].strip(), fields["fine-tuned model"].strip()
    results = fields["results file"].strip()

    assert [found["id"] for found in objects(await ashell("list", "--json", url=url))] == [job]
    assert job in (await ashell("list", "--status", "succeeded", url=url)).stdout
    assert not (await ashell("list", "--status", "failed", url=url)).stdout
    shown = (await ashell("get", job, url=url)).stdout
    assert all(words in shown for words in (job, model, "n_epochs", "train.jsonl", "ago)"))
    assert "Fine-tune succeeded" in (await ashell("events", job, url=url)).stdout
    followed = objects(await ashell("follow", job, "--json", url=url))
    assert (followed[-1]["status"], followed[-2]["message"]) == ("succeeded", "Fine-tune succeeded")
    assert {line["object"] for line in followed} == {"fine-tune-event", "fine-tune"}

    assert objects(await ashell("get", job, "--dialect", "jobs", "--json", url=url))[0]["trained_tokens"] > 0
    limited = await ashell("list", "--limit", 1, "--dialect", "jobs", url=url)
    assert job in limited.stdout
    (saved,) = objects(await ashell("checkpoints", job, "--dialect", "jobs", "--json", url=url))
    assert saved["fine_tuned_model_checkpoint"] == model
    assert "train_loss" in (await ashell("checkpoints", job, "--dialect", "jobs", url=url)).stdout
    refused = await ashell("checkpoints", job, url=url)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("aiofinetune: checkpoints: the dialect 'fine-tunes' does not have this")

    assert model in (await ashell("models", url=url)).stdout
    assert objects(await ashell("models", "ada", "--json", url=url))[0]["id"] == "ada"
    assert (await ashell("delete-model", model, url=url)).stdout == f"deleted {model}\n"
    assert results in (await ashell("files", "list", "--purpose", "fine-tune-results", url=url)).stdout
    assert "compiled_results.csv" in (await ashell("files", "get", results, url=url)).stdout
    assert (await ashell("files", "download", results, url=url)).stdout == "compiled_results.csv\n"
    content = Path("compiled_results.csv").read_text()
    assert content.startswith("step,")
    assert (await ashell("files", "download", results, "-o", "-", url=url)).stdout == content
    again = await ashell("files", "download", results, url=url)
    assert (again.exit_code, "--overwrite" in again.stderr) == (2, True)
    assert objects(await ashell("files", "delete", results, "--json", url=url)) == [
        {"id": results, "deleted": True, "object": "file"}
    ]
    assert (await ashell("files", "get", results, url=url)).exit_code == 3


async def test_a_job_is_paused_resumed_and_cancelled(embedded: LocalServer) -> None:
    """Where the dialect has them, pause and resume say the new status; cancel does everywhere."""
    url, jobs = embedded.base_url, ("--dialect", "jobs")
    (file,) = objects(await ashell("files", "upload", "train.jsonl", "--json", url=url))
    parameters = ("-m", "ada", "--n-epochs", 50, "--metadata", "team=search", "--seed", 3)
    (made,) = objects(await ashell("create", file["id"], *parameters, *jobs, "--json", url=url))
    assert (made["seed"], made["metadata"]["team"]) == (3, "search")
    assert (await ashell("pause", made["id"], *jobs, url=url)).stdout == f"{made['id']} paused\n"
    assert (await ashell("resume", made["id"], *jobs, url=url)).exit_code == 0
    cancelled = await ashell("cancel", made["id"], "ft-none", *jobs, url=url)
    assert (cancelled.exit_code, cancelled.stdout) == (3, f"{made['id']} cancelled\n")
    assert "aiofinetune: ft-none: 404" in cancelled.stderr
    followed = await ashell("follow", made["id"], *jobs, url=url)
    assert (followed.exit_code, "cancelled" in followed.stdout) == (1, True)


def test_a_server_for_one_command() -> None:
    """--local needs no service and no key, whatever the environment says; --local-data keeps what it made."""
    assert "ada" in shell("models", "--local", key="").stdout
    (file,) = objects(shell("files", "upload", "train.jsonl", "--local-data", "folder", "--json", key=""))
    assert [it["id"] for it in objects(shell("files", "list", "--local-data", "folder", "--json"))] == [file["id"]]


@pytest.mark.parametrize("command", [["list"], ["serve", "--port", 0]], ids=["list", "serve"])
def test_a_folder_that_cannot_be_used_is_named_by_its_option(command: list[object]) -> None:
    """The error of the embedded server's folder begins with the option that names it."""
    told = shell(*command, "--local-data", "train.jsonl/folder")
    assert (told.exit_code, told.stderr.startswith("aiofinetune: --local-data: ")) == (2, True), told.stderr


@pytest.mark.parametrize("dialect", ["azure", "nebius", "together"])
def test_a_server_for_one_command_speaks_every_dialect(dialect: str) -> None:
    """With --local a job is created in a dialect that has another path, key header or no base URL of its own."""
    made = shell("create", "train.jsonl", "-m", "ada", "--dialect", dialect, "--local", "--json", url="", key="")
    assert made.exit_code == 0, made.stderr
    assert objects(made)[0]["model"] == "ada"


def test_a_batch_on_a_server_of_its_own_leaves_no_journal() -> None:
    """A batch with --local prints its outcomes as JSON lines, and does not stand in the way of the batch itself."""
    row = {"label": "a", "training_file": "train.jsonl", "model": "ada", "n_epochs": 1}
    Path("jobs.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "label": "b", "model": "none"}))
    result = shell("batch", "jobs.jsonl", "--local", "--json", key="")
    assert result.exit_code == 1, result.stderr
    assert {line["label"]: line["status"] for line in objects(result)} == {"a": "succeeded", "b": "rejected"}
    assert result.stderr.splitlines()[-1].endswith(" 2 of 2 ended: 1 succeeded, 0 failed, 0 cancelled, 1 rejected")
    assert "no journal is kept" in result.stderr
    assert not list(Path().glob("*journal*"))


async def test_each_parameter_reaches_the_service() -> None:
    """Options, pairs and JSON values arrive as the service's parameters; a local file is uploaded once."""
    server = BatchServer()
    async with server.listening() as url:
        options = {
            "model": "ada",
            "n_epochs": 2,
            "batch_size": 4,
            "learning_rate_multiplier": 0.5,
            "prompt_loss_weight": 0.25,
            "classification_n_classes": 2,
            "suffix": "s",
        }
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        words += ["--compute-classification-metrics", "--classification-betas", "0.5,1", "--extra", 'x={"y": [1]}']
        result = await ashell("create", "train.jsonl", "--validation-file", "train.jsonl", *words, url=url)
    assert result.exit_code == 0, result.stderr
    (job,) = server.jobs.values()
    assert job["hyperparams"] == {
        **{name: value for name, value in options.items() if name not in ("model", "suffix")},
        "compute_classification_metrics": True,
        "classification_betas": [0.5, 1.0],
        "x": {"y": [1]},
    }
    assert (server.asked["upload"], job["training_files"]) == (1, job["validation_files"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--n-epochs", "0"], "--n-epochs: expected an integer of at least 1"),
        (["--n-epochs", "many"], "expected integer or auto, got 'many'"),
        (["--n-epochs", "auto"], "does not take 'auto'"),
        (["--method", "preference"], "method"),
        (["--method-option", "beta=0.1"], "--method-option"),
        (["--metadata", "team"], "expected name=text"),
        (["--estimate"], "--estimate: the dialect 'fine-tunes' does not have this"),
        (["--classification-betas", "a"], "expected numbers"),
        (["--seed", "1"], "seed: the dialect 'fine-tunes' does not have this parameter"),
        (["--grader", "train.jsonl", "--method", "reinforcement"], "grader: train.jsonl"),
    ],
)
async def test_a_wrong_parameter_is_refused_before_anything_is_sent(arguments: list[str], words: str) -> None:
    """Wrong use is status 2, and no file was uploaded for it."""
    server = BatchServer()
    async with server.listening() as url:
        result = await ashell("create", "train.jsonl", *arguments, url=url)
    assert (result.exit_code, dict(server.asked)) == (2, {})
    assert words in " ".join(result.stderr.split())


async def test_wrong_data_is_refused_before_anything_is_sent() -> None:
    """Both data files are checked before the first is uploaded; --no-data-check leaves that out."""
    Path("valid.jsonl").write_text('{"prompt": "a ->", "completion": " b"}\n{"prompt"\n')
    server = BatchServer()
    words = ("create", "train.jsonl", "--validation-file", "valid.jsonl")
    async with server.listening() as url:
        result = await ashell(*words, url=url)
        assert (result.exit_code, dict(server.asked)) == (5, {})
        assert "valid.jsonl, line 2: " in result.stderr
        assert (await ashell(*words, "--no-data-check", url=url)).exit_code == 0


@pytest.mark.parametrize(
    ("name", "words"), [("/dev/null", "is not a regular file"), ("./trian", "there is no such file")]
)
async def test_a_path_that_is_no_file_is_refused(name: str, words: str) -> None:
    """The error tells a path that leads nowhere from one that leads to a pipe or a device."""
    result = await ashell("create", name, url="http://127.0.0.1:9/v1")
    assert (result.exit_code, result.stderr) == (5, f"aiofinetune: {name}: {words}\n")


async def test_a_name_that_is_no_file_is_said_to_be_taken_for_an_id(embedded: LocalServer) -> None:
    """Where the service knows no such file, the error says that there is no local one; of a local file it does not."""
    for name in (".", "trian"):
        result = await ashell("create", name, "-m", "ada", url=embedded.base_url)
        assert result.exit_code == 3
        assert f"There is no local file {name!r}" in result.stderr
    server = BatchServer()
    async with server.listening() as url:
        assert "no local file 'trian'" in (await ashell("create", "trian", url=url)).stderr
        server.refuse = lambda _endpoint: error(400, "the file train.jsonl is odd")
        refused = await ashell("create", "train.jsonl", url=url)
    assert (refused.exit_code, "no local file" in refused.stderr) == (3, False)


async def test_a_status_that_no_job_has() -> None:
    """A misspelt status is wrong use, with the nearest; one that no job has at the moment is not."""
    server = BatchServer(lasts=None)
    async with server.listening() as url:
        server.add_job()
        wrong = await ashell("list", "--status", "runing", url=url)
        assert (wrong.exit_code, "did you mean 'running'?" in wrong.stderr) == (2, True)
        none = await ashell("list", "--status", "running", url=url)
    assert (none.exit_code, none.stderr) == (0, "no jobs with status running\n")


async def test_a_failed_job_is_the_status_of_follow() -> None:
    """A job that fails makes follow say so once, with status 1; its last words are no markup and steer nothing."""
    server = BatchServer(fate=lambda _asked: "failed")
    file = server.add_file("train.jsonl", b"train")
    async with server.listening() as url:
        result = await ashell("create", file, "--follow", url=url)
    assert (result.exit_code, result.stderr) == (1, "aiofinetune: fine-tune ft-2 failed\n")
    assert "status  failed" in result.stdout


async def test_an_uncertain_create_needs_a_person() -> None:
    """A create whose reply is lost, where no list can tell, ends with status 7 and says what to do."""
    server = BatchServer()
    file = server.add_file("train.jsonl", b"train")
    server.lose = lambda endpoint: "after" if endpoint == "create" else ""
    server.refuse = lambda endpoint: error(404, "no list here") if endpoint == "list" else None
    async with server.listening() as url:
        result = await ashell("create", file, url=url)
    assert result.exit_code == 7
    assert "a job may have been made" in result.stderr
    assert "paid for twice" in result.stderr
    assert len(server.jobs) == 1


async def test_what_a_service_refuses_is_one_line() -> None:
    """A refused key and a used-up quota are status 3, on one line whatever the service says."""
    server = BatchServer(quota=0)
    file = server.add_file("train.jsonl", b"train")
    async with server.listening() as url:
        result = await ashell("create", file, url=url)
        assert (result.exit_code, len(result.stderr.splitlines())) == (3, 2)
        server.refuse = lambda _endpoint: error(401, "\x1b[2Jno\n[/b]")
        result = await ashell("list", url=url)
    assert (result.exit_code, len(result.stderr.splitlines())) == (3, 2)
    assert "401:  [2Jno [/b]" in result.stderr
    assert "--api-key-file" in result.stderr


async def test_what_people_see_of_a_create_and_a_file() -> None:
    """Create shows the job and how to follow it; upload shows the id; -q leaves out the hints."""
    server = BatchServer(lasts=None)
    async with server.listening() as url:
        result = await ashell("create", "train.jsonl", "--base-url", url, url="")
        job, uploaded = *server.active, *server.files
        assert result.stdout.splitlines()[:2] == [f"job            {job}", "status         pending"]
        assert f"Follow it: aiofinetune follow {job} --base-url {url}" in result.stderr
        quiet = await ashell("create", uploaded, "-q", url=url)
        assert (quiet.exit_code, quiet.stderr) == (0, "")
        assert (await ashell("files", "upload", "train.jsonl", url=url)).stdout.startswith("file-")
        both = await ashell("get", *server.jobs, url=url)
        assert all(name in both.stdout for name in server.jobs)
        assert (await ashell("files", "delete", uploaded, url=url)).stdout == f"deleted {uploaded}\n"
        gone = await ashell("files", "download", "file-none", url=url)
    assert (gone.exit_code, "aiofinetune files list" in gone.stderr) == (3, True)


@pytest.mark.parametrize("retries", [0, 4])
async def test_a_broken_stream_is_resumed(monkeypatch: pytest.MonkeyPatch, retries: int) -> None:
    """Events that a broken connection gave are not printed again, also after the session itself gave up."""
    monkeypatch.setattr("aiofinetune.cli._following._PAUSE", 0.0)
    events = [event(f"event {number}") for number in range(3)]
    job = {"id": "ft-1", "object": "fine-tune", "status": "succeeded", "fine_tuned_model": "ada:ft-1"}
    streams = [b"".join(events[:2]), b"".join(events) + b"data: [DONE]\n\n"]
    first, second = (reply(200, content, content_type="text/event-stream") for content in streams)
    look = [] if retries else [ok({**job, "status": "running"})]
    async with serve(answering(first, *look, second, ok(job))) as url:
        result = await ashell("follow", "ft-1", "--retries", retries, url=url)
    assert result.exit_code == 0, result.stderr
    shown = [line.split("  ")[-1].strip() for line in result.stdout.splitlines()]
    assert shown[:4] == ["event 0", "event 1", "event 2", "ft-1"]
    assert ("following again" in result.stderr) is (retries == 0)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, ""),
        ("results.csv", "results.csv"),
        ("../../etc/passwd", "passwd"),
        ("..\\evil", "evil"),
        (".bashrc", "bashrc"),
        ("a\x1b[2J\n", "a [2J"),
        ("..", ""),
        ("x" * 999, "x" * 200),
    ],
)
def test_a_name_that_a_service_gives_stays_in_this_folder(given: str | None, name: str) -> None:
    """A download is written to no other folder, and to no hidden file, whatever the service calls it."""
    assert _safe_name(given) == name


async def test_lists_are_in_json_lines_and_an_empty_one_is_said() -> None:
    """An empty list prints nothing but a hint on stderr, which -q leaves out."""
    server = BatchServer()
    async with server.listening() as url:
        for words in (["list"], ["files", "list"]):
            result = await ashell(*words, url=url)
            assert (result.exit_code, result.stdout, result.stderr[:3]) == (0, "", "no ")
            assert not (await ashell(*words, "-q", url=url)).output
        for _ in range(2):
            server.add_job()
        lines = (await ashell("list", "--json", "--limit", 1, url=url)).stdout.splitlines()
    assert [json.loads(line)["object"] for line in lines] == ["fine-tune"]
