"""The batch command, run as its users run it: as a process, on a pipe or on a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiofinetune import FineTuneRequest, LocalFileError
from aiofinetune.batch._outcomes import Outcome
from aiofinetune.cli._summary import Summary
from tests.cli import ashell
from tests.servers.batchserver import BatchServer, error
from tests.servers.rawserver import KEY

COMMAND = (sys.executable, "-m", "aiofinetune", "batch")
PATIENCE = 30
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
"""What is before each line of a log, on stdout and on stderr."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)  # they go before the terminal's own size


def manifest(*lines: dict[str, object], name: str = "jobs.jsonl") -> str:
    Path(name).write_text("\n".join(map(json.dumps, lines)))
    return name


def sweep(server: BatchServer, count: int) -> str:
    """A manifest of so many jobs, called job-1 and so on, of a file that is at the service."""
    file = server.add_file("train.jsonl", b"train")
    return manifest(*({"label": f"job-{n}", "training_file": file, "n_epochs": n} for n in range(1, count + 1)))


@asynccontextmanager
async def running(*arguments: str, url: str = "", terminal: int | None = None) -> AsyncIterator[Process]:
    """The command, on pipes or on a terminal, killed in the end if it still runs."""
    environment = os.environ | {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, "TERM": "xterm"}
    output = PIPE if terminal is None else terminal
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, env=environment, stdin=terminal, stdout=output, stderr=output
    )
    try:
        async with asyncio.timeout(PATIENCE):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def run(*arguments: str, url: str = "") -> tuple[int | None, list[str], str]:
    """Run the command in this process to its end; its status, the lines on stdout, and what stderr says."""
    done = await ashell("batch", *arguments, url=url)
    told = [line for line in done.stderr.splitlines(keepends=True) if not TIME.match(line)]
    return done.exit_code, [TIME.sub("", line) for line in done.stdout.splitlines()], "".join(told)


async def line_of(process: Process) -> str:
    assert process.stdout is not None
    return TIME.sub("", (await process.stdout.readline()).decode().removesuffix("\n"))


async def test_check_says_that_nothing_is_wrong() -> None:
    """A check needs no service, sends nothing, leaves nothing behind, and gives the number of jobs."""
    name = manifest({"training_file": "file-1", "sweep": {"n_epochs": [1, 2, 3]}})
    assert await run(name, "--check") == (0, ["jobs.jsonl: 3 jobs, no problems"], "")
    assert list(Path().iterdir()) == [Path("jobs.jsonl")]


async def test_a_wrong_manifest_is_told_whole_and_nothing_is_sent() -> None:
    """All complaints are on stderr, a line each, and the service is not asked for anything."""
    server = BatchServer()
    name = manifest({"training_file": "gone.jsonl"}, {"training_file": "file-1", "epochs": 3})
    async with server.listening() as url:
        for options in ([], ["--check"]):
            status, lines, said = await run(name, *options, url=url)
            assert (status, lines) == (5, [])
            assert said.splitlines() == [
                "aiofinetune: jobs.jsonl, line 1, training_file: the file 'gone.jsonl' does not exist",
                "jobs.jsonl, line 2, epochs: is not a parameter of this request",
            ]
    assert not server.asked


async def test_plain_lines_and_a_summary() -> None:
    """Without a terminal there is a line for each outcome and one with the counts, and a JSON line each in the file."""
    server = BatchServer()
    async with server.listening() as url:
        status, lines, said = await run(sweep(server, 3), "--summary", "summary.jsonl", url=url)
    assert (status, said) == (0, "")
    assert sorted(re.sub(r" \d+\.\d s ", " 0.0 s ", line) for line in lines[:-1]) == [
        f"job-{n} succeeded 0.0 s {job['fine_tuned_model']}"
        for n in range(1, 4)
        for job in server.jobs.values()
        if job["hyperparams"]["n_epochs"] == n
    ]
    assert lines[-1] == "3 of 3 ended: 3 succeeded, 0 failed, 0 cancelled, 0 rejected"
    told = [json.loads(line) for line in Path("summary.jsonl").read_text().splitlines()]
    assert {outcome["job"] for outcome in told} == set(server.jobs)
    assert {outcome["status"] for outcome in told} == {"succeeded"}


async def test_a_failure_is_told_and_is_the_status() -> None:
    """One failed job makes the status 1; its line says why, and the others are run to their ends."""
    server = BatchServer(fate=lambda asked: "failed" if asked["n_epochs"] == 2 else "succeeded")
    async with server.listening() as url:
        status, lines, _ = await run(sweep(server, 3), "--results", "results", url=url)
    assert status == 1
    (failed,) = (line for line in lines if line.startswith("job-2 failed"))
    assert failed.endswith(": Fine-tune failed")
    assert lines[-1] == "3 of 3 ended: 2 succeeded, 1 failed, 0 cancelled, 0 rejected"
    assert sorted(path.name.partition(".")[0] for path in Path("results").iterdir()) == ["job-1", "job-3"]


@pytest.mark.parametrize("name", ["train.json", "train.JSONL", "train.csv", "train.jsonl.gz", "train"])
async def test_a_file_beside_the_manifest_is_uploaded(name: str) -> None:
    """What a manifest elsewhere names by the name of a file beside it is uploaded, whatever that looks like."""
    server = BatchServer()
    Path("sweeps").mkdir()
    Path("sweeps", name).write_text("train")
    path = manifest({"training_file": name}, name="sweeps/jobs.jsonl")
    async with server.listening() as url:
        status, lines, said = await run(path, "--no-data-check", url=url)
    assert (status, said) == (0, ""), lines
    assert server.trained_on() == [b"train"]


async def test_fail_fast_says_what_is_left() -> None:
    """With --fail-fast the first failure ends the sending, and the last lines say why and what is left."""
    server = BatchServer(fate=lambda _asked: "failed")
    async with server.listening() as url:
        status, lines, _ = await run(sweep(server, 9), "--fail-fast", "--concurrency", "1", url=url)
    assert status == 1
    shown = "\n".join(lines)
    assert "the batch sends no more requests: job-1 ended without a model: fine-tune ft-" in shown
    left = 9 - len(server.jobs)
    way_on = "To continue: aiofinetune batch jobs.jsonl --fail-fast --concurrency 1"
    assert lines[-1] == f"{left} of 9 entries have not ended. {way_on}"


async def test_fail_fast_after_a_refused_entry_is_no_refusal_of_the_batch() -> None:
    """An entry that is rejected gives the status 1 also where --fail-fast stops the batch, whose key is good."""
    server = BatchServer()
    server.refuse = lambda endpoint: error(404, "not this model") if endpoint == "create" else None
    async with server.listening() as url:
        status, lines, _ = await run(sweep(server, 3), "--fail-fast", "--concurrency", "1", url=url)
    assert status == 1
    assert not any("refused the key" in line for line in lines)


async def test_an_end_that_is_recorded_is_counted_where_its_results_are_still_fetched() -> None:
    """The last line of an interrupted batch counts the ends that its journal has, though no outcome was printed."""
    server = BatchServer(lasts=None)
    server.held["download"] = asyncio.Event()
    async with server.listening() as url, running(sweep(server, 2), "--results", "results", url=url) as process:
        await server.until(lambda: server.asked["stream"] == 2)
        server.end("ft-2")
        await server.until(lambda: server.asked["download"] == 1)
        process.send_signal(signal.SIGINT)
        stdout, _ = await process.communicate()
    lines = [TIME.sub("", line) for line in stdout.decode().splitlines()]
    counted = "0 of 2 ended: 0 succeeded, 0 failed, 0 cancelled, 0 rejected"
    assert f"{counted}; 1 more has ended, and the next run counts that" in lines
    assert lines[-1].startswith("1 of 2 entries have not ended. ")
    status = await ashell("batch", "status", "jobs.jsonl.journal", url="")
    assert "2 entries: 1 succeeded, 1 active" in status.stdout


async def test_a_quiet_batch_prints_only_ends() -> None:
    """With -q no line says which jobs were created and have started."""
    server = BatchServer()
    async with server.listening() as url:
        done = await ashell("batch", sweep(server, 2), "-q", url=url)
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3


async def test_interrupted_once_it_leaves_the_jobs_and_goes_on_by_the_same_command() -> None:
    """Ctrl-C sends no more and says where the journal is; the same command takes up the jobs and sends the rest."""
    server = BatchServer(lasts=None)
    name = sweep(server, 5)
    command = (name, "--max-active", "2", "--poll-interval", "0.05")
    async with server.listening() as url:
        async with running(*command, url=url) as process:
            await server.until(lambda: server.asked["stream"] == 2)
            process.send_signal(signal.SIGINT)
            assert await line_of(process) == (
                "Sending no more requests. Active jobs continue at the service. Press Ctrl-C again to quit at once"
            )
            stdout, stderr = await process.communicate()
        assert process.returncode == 130
        assert [line for line in stderr.decode().splitlines() if not TIME.match(line)] == []
        way_on = "To continue: aiofinetune batch jobs.jsonl --max-active 2 --poll-interval 0.05"
        assert TIME.sub("", stdout.decode().splitlines()[-1]) == f"5 of 5 entries have not ended. {way_on}"
        assert len(server.active) == len(server.jobs) == 2
        server.lasts = 0
        for job_id in list(server.active):
            server.end(job_id)
        status, lines, _ = await run(*command, url=url)
    assert (status, lines[-1]) == (0, "5 of 5 ended: 5 succeeded, 0 failed, 0 cancelled, 0 rejected")
    assert len(server.jobs) == 5


async def test_interrupted_twice_it_ends_now() -> None:
    """A second Ctrl-C does not wait for what is being sent; what that made is found by the same command."""
    server = BatchServer(lasts=None)
    name = sweep(server, 3)
    server.held["create"] = asyncio.Event()
    async with server.listening() as url:
        async with running(name, url=url) as process:
            await server.until(lambda: len(server.active) == 3)
            process.send_signal(signal.SIGINT)
            assert (await line_of(process)).startswith("Sending no more requests.")
            process.send_signal(signal.SIGINT)
            stdout, _ = await process.communicate()
        assert process.returncode == 130
        assert b"What was being sent is looked for by: aiofinetune batch jobs.jsonl\n" in stdout
        del server.held["create"]
        for job_id in list(server.active):
            server.end(job_id)
        status, lines, _ = await run(name, url=url)
    assert (status, lines[-1]) == (0, "3 of 3 ended: 3 succeeded, 0 failed, 0 cancelled, 0 rejected")
    assert len(server.jobs) == 3


async def test_interrupted_with_cancel_on_exit_it_cancels() -> None:
    """With --cancel-on-exit an interrupt cancels the jobs that are active."""
    server = BatchServer(lasts=None)
    async with server.listening() as url, running(sweep(server, 2), "--cancel-on-exit", url=url) as process:
        await server.until(lambda: server.asked["stream"] == 2)
        process.send_signal(signal.SIGINT)
        stdout, _ = await process.communicate()
        assert process.returncode == 130
    assert [job["status"] for job in server.jobs.values()] == ["cancelled"] * 2
    assert TIME.sub("", stdout.decode().splitlines()[-1]) == (
        "2 of 2 entries had not ended; active jobs are being cancelled."
        " To send the rest: aiofinetune batch jobs.jsonl --cancel-on-exit"
    )


async def test_a_changed_manifest_is_refused_unless_it_is_accepted() -> None:
    """A manifest that is not what the journal knows is refused with every change; --accept-changes goes on."""
    server = BatchServer()
    name = sweep(server, 3)
    async with server.listening() as url:
        assert (await run(name, url=url))[0] == 0
        manifest(
            {"label": "job-1", "training_file": "file-1", "n_epochs": 1}, {"label": "job-2", "training_file": "file-1"}
        )
        status, lines, said = await run(name, url=url)
        assert (status, lines) == (5, [])
        assert said.splitlines() == [
            "aiofinetune: jobs.jsonl has changed since jobs.jsonl.journal was started:",
            "job-2: n_epochs was 2 and is now None",
            "job-3: was sent, but is no longer in the manifest",
            "To create a new job for each changed request, and leave out what is gone, pass --accept-changes",
        ]
        assert len(server.jobs) == 3
        assert (await run(name, "--accept-changes", url=url))[0] == 0
    assert len(server.jobs) == 4


async def test_an_old_job_that_may_still_run_is_told_with_its_id() -> None:
    """A change of an entry whose job runs names the job: in the refusal, and how to cancel it once it is accepted."""
    server = BatchServer(lasts=None)
    name = sweep(server, 1)
    async with server.listening() as url:
        async with running(name, url=url) as process:
            await server.until(lambda: server.asked["stream"] == 1)
            process.terminate()
            assert await process.wait() == 143
        (old,) = server.jobs
        manifest({"label": "job-1", "training_file": "file-1", "n_epochs": 7})
        _, _, said = await run(name, url=url)
        assert f"job-1: n_epochs was 1 and is now 7; its job {old} may still run\n" in said
        async with running(name, "--accept-changes", url=url) as process:
            await server.until(lambda: server.asked["stream"] == 2)
            for job_id in server.active - {old}:
                server.end(job_id)
            _, stderr = await process.communicate()
    left = f"job-1: {old} may still run, and is no longer followed; cancel it with 'aiofinetune cancel {old}'"
    assert left in [TIME.sub("", line) for line in stderr.decode().splitlines()]


async def test_a_changed_data_file_is_told_before_anything_else() -> None:
    """A data file that has changed since it was sent is a wrong manifest, said before anything is counted."""
    server = BatchServer()
    Path("train.jsonl").write_text("train")
    name = manifest({"label": "a", "training_file": "train.jsonl"})
    async with server.listening() as url:
        assert (await run(name, "--no-data-check", url=url))[0] == 0
        Path("train.jsonl").write_text("other")
        status, lines, said = await run(name, "--no-data-check", url=url)
    assert (status, lines) == (5, [])
    assert "a: the content of train.jsonl\n" in said
    assert len(server.jobs) == 1


async def test_another_base_url_is_accepted_by_an_option_of_its_own() -> None:
    """Changes that are accepted do not let a batch go on at another service; --accept-base-url does."""
    server, other = BatchServer(), BatchServer()
    name = sweep(server, 1)
    async with server.listening() as url, other.listening() as other_url:
        assert (await run(name, url=url))[0] == 0
        status, _, said = await run(name, "--accept-changes", url=other_url)
        assert (status, said.endswith("continue with --accept-base-url\n")) == (6, True)
        assert (await run(name, "--accept-base-url", url=other_url))[0] == 0
    assert (len(server.jobs), len(other.jobs)) == (1, 0)


async def test_a_fresh_journal_creates_all_jobs_anew() -> None:
    """With --fresh each run has a journal of its own, and the line to go on with names it."""
    server = BatchServer()
    name = sweep(server, 2)
    async with server.listening() as url:
        for count in (2, 4):
            assert (await run(name, "--fresh", url=url))[0] == 0
            assert len(server.jobs) == count
        journals = sorted(Path().glob("jobs.jsonl.*.journal"))
        assert len(journals) == 2
        server.quota = 5
        status, lines, _ = await run(name, "--fresh", "--concurrency", "1", url=url)
        (new,) = set(Path().glob("jobs.jsonl.*.journal")) - set(journals)
        assert (status, lines[-1][-len(str(new)) - 10 :]) == (3, f"--journal {new}")
        server.quota = None
        words = lines[-1].partition("aiofinetune batch ")[2].split()
        assert "--fresh" not in words
        assert (await run(*words, url=url))[0] == 0
    assert len(server.jobs) == 6


async def test_a_key_that_is_refused_is_told() -> None:
    """A wrong key is status 3; the last line says so, that nothing is lost, and how to go on, without the key."""
    server = BatchServer()
    name = sweep(server, 2)
    async with server.listening() as url:
        server.refuse = lambda _endpoint: error(401, "Wrong key")
        status, lines, _ = await run(name, "--api-key", KEY, url=url)
        assert status == 3
        assert lines[-1] == (
            "2 of 2 entries have not ended. The service refused the key; the journal keeps what was done. To continue"
            " with another key (--api-key-file FILE, or the variable OPENAI_API_KEY): aiofinetune batch jobs.jsonl"
        )
        server.refuse = lambda _endpoint: None
        assert (await run(name, url=url))[0] == 0


async def test_errors_name_the_options() -> None:
    """What is wrong with options is said of the options, as they are written on the command line."""
    server = BatchServer()
    async with server.listening() as url:
        name = sweep(server, 1)
        for options, words in [
            (["--reserve", "1"], "--reserve: got 1 without --max-active; it is a part of that"),
            (["--retry-uncertain", "job-9"], f"--retry-uncertain: job-9: no entry of {name} has this label"),
            (["--journal", "nowhere/j"], "--journal: the folder nowhere does not exist"),
        ]:
            status, lines, said = await run(name, *options, url=url)
            assert (status, lines, said) == (2, [], f"aiofinetune: {words}\n")


async def test_a_second_process_on_the_journal_is_refused() -> None:
    """While the command runs, the same command elsewhere is refused in one line, and the first goes on."""
    server = BatchServer(lasts=None)
    name = sweep(server, 1)
    async with server.listening() as url, running(name, url=url) as process:
        await server.until(lambda: len(server.active) == 1)
        status, lines, said = await run(name, url=url)
        assert (status, lines) == (6, [])
        assert said == "aiofinetune: jobs.jsonl.journal: another process is running this batch\n"
        server.end(*server.active)
        assert await process.wait() == 0


async def test_a_quota_that_is_used_up_is_told() -> None:
    """At the quota the last lines say what the service said, what is left, and how to go on, without paying twice."""
    server = BatchServer(quota=2)
    async with server.listening() as url:
        name = sweep(server, 4)
        status, lines, _ = await run(name, url=url)
        _, again, _ = await run(name, "--retry-failed", "--accept-changes", "--retry-uncertain", "job-1", url=url)
    assert status == 3
    assert "the batch sends no more requests: 429: You exceeded your current quota" in " ".join(lines)
    way_on = "To continue when the quota is renewed: aiofinetune batch jobs.jsonl"
    assert lines[-1] == f"2 of 4 entries have not ended. {way_on}"
    assert again[-1].endswith(f". {way_on}")


async def test_words_of_the_service_are_shown_as_they_are() -> None:
    """Square brackets in what a service says are no markup, and do not break the command."""
    server = BatchServer()
    server.refuse = lambda endpoint: error(403, "see [docs] or [/b]") if endpoint == "create" else None
    async with server.listening() as url:
        status, lines, said = await run(sweep(server, 2), url=url)
    assert (status, said) == (3, "")
    assert "403: see [docs] or [/b]" in " ".join(lines)


async def test_plain_lines_are_not_wrapped() -> None:
    """Where no terminal is, every message is one line, however long, for other programs to read."""
    server = BatchServer(lasts=None)
    journal = f"{'long-' * 20}journal"
    async with server.listening() as url, running(sweep(server, 1), "--journal", journal, url=url) as process:
        await server.until(lambda: server.asked["stream"] == 1)
        process.send_signal(signal.SIGINT)
        stdout, _ = await process.communicate()
    assert stdout.decode().splitlines()[-1].endswith(f"To continue: aiofinetune batch jobs.jsonl --journal {journal}")


async def test_a_summary_that_cannot_be_written() -> None:
    """A summary in a folder that is not there is wrong use, told on one line before anything is sent."""
    server = BatchServer()
    async with server.listening() as url:
        status, _, said = await run(sweep(server, 1), "--summary", "nowhere/summary.jsonl", url=url)
    assert (status, said) == (2, "aiofinetune: --summary: the folder nowhere does not exist\n")
    assert not server.jobs


def test_a_summary_on_a_full_disk() -> None:
    """A summary for which there is no room is an error that names it."""
    outcome = Outcome("a", "rejected", FineTuneRequest(training_file="file-1"), None, None, None, None, 0.0)
    with (
        Path("/dev/full").open("ab", buffering=0) as full,
        pytest.raises(LocalFileError, match=r"^/dev/full: No space left on device$"),
    ):
        Summary(full).write(outcome)


async def test_a_terminal_that_knows_few_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the output cannot show is a question mark, what would steer the terminal a space; nothing ends the batch."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    server = BatchServer()
    server.refuse = lambda endpoint: error(400, "\x1b[2Jno\n\u6f22") if endpoint == "create" else None
    name = manifest({"label": "\xe9", "training_file": "file-1"})
    async with server.listening() as url, running(name, url=url) as process:
        stdout, _ = await process.communicate()
    lines = [TIME.sub("", line) for line in stdout.decode("ascii").splitlines()]
    assert process.returncode == 1
    assert re.sub(r"\d+\.\d", "0.0", lines[0]) == "? rejected 400:  [2Jno ? (type server_error)"


async def test_a_summary_writes_over_no_other_file() -> None:
    """What is there and is no summary is left alone, by whatever path it is called: manifest, journal, data."""
    server = BatchServer()
    name = sweep(server, 1)
    Path("train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    async with server.listening() as url:
        assert (await run(name, url=url))[0] == 0
        for other in (name, f"{name}.journal", "train.jsonl"):
            before = Path(other).read_bytes()
            status, _, said = await run(name, "--summary", str(Path(other).absolute()), url=url)
            assert (status, said[:23]) == (2, "aiofinetune: --summary:")
            assert Path(other).read_bytes() == before
        for _ in range(2):
            assert (await run(name, "--summary", "summary.jsonl", url=url))[0] == 0


async def test_results_that_cannot_be_saved_are_the_status() -> None:
    """Where jobs succeeded, and what was asked for of them did not, the status is 1."""
    server = BatchServer()
    name = sweep(server, 1)
    async with server.listening() as url:
        assert (await run(name, url=url))[0] == 0
        for job_id in server.jobs:
            Path("results", f"job-1.{job_id}.csv").mkdir(parents=True)
        status, lines, _ = await run(name, "--results", "results", url=url)
    unsaved = "1 of 1 ended: 1 succeeded, 0 failed, 0 cancelled, 0 rejected; 1 results file not saved"
    assert (status, lines[-1]) == (1, unsaved)
    (job,) = server.jobs.values()
    assert f" {job['fine_tuned_model']}; its results file was not saved: results/job-1." in lines[1]


async def test_a_folder_for_results_that_cannot_be_made_is_told_first() -> None:
    """Nothing is sent where the results have nowhere to go."""
    server = BatchServer()
    Path("results").write_bytes(b"no folder")
    async with server.listening() as url:
        status, lines, said = await run(sweep(server, 1), "--results", "results/of/jobs", url=url)
    assert (status, lines, said) == (5, [], "aiofinetune: results/of/jobs: Not a directory\n")
    assert not server.jobs


async def test_results_of_an_earlier_run_that_are_none_are_named() -> None:
    """A file that stands where a job's results belong, and holds none, is named in the error."""
    server = BatchServer()
    name = sweep(server, 1)
    async with server.listening() as url:
        assert (await run(name, "--results", "results", url=url))[0] == 0
        (file,) = Path("results").iterdir()
        file.write_text("junk")
        status, lines, _ = await run(name, "--results", "results", url=url)
    assert status == 1
    assert f"{file}: the results file has no column 'step'" in lines[1]


async def test_a_job_that_the_service_no_longer_knows_is_counted_as_vanished() -> None:
    """The line of the outcome, the last line and the summary use one word for a job that is gone at the service."""
    server = BatchServer(lasts=None)
    async with (
        server.listening() as url,
        running(sweep(server, 1), "--summary", "summary.jsonl", "--poll-interval", "0.05", url=url) as process,
    ):
        await server.until(lambda: bool(server.asked["stream"]))
        server.refuse = lambda endpoint: error(404, "gone") if endpoint in {"stream", "retrieve"} else None
        (job_id,) = server.active
        server.end(job_id)
        stdout, _ = await process.communicate()
    assert process.returncode == 7
    lines = [TIME.sub("", line) for line in stdout.decode().splitlines()]
    assert lines[0].startswith("job-1 vanished ")
    look = "'aiofinetune list' shows the jobs of the service"
    assert lines[-3:] == [
        "1 of 1 ended: 0 succeeded, 0 failed, 0 cancelled, 0 rejected, 1 vanished",
        f"Look before anything is sent again: 1 vanished (had a job that the service has no more). {look}",
        (
            "To create a new job for an entry that has none: aiofinetune batch jobs.jsonl --summary summary.jsonl"
            " --poll-interval 0.05 --retry-uncertain LABEL"
        ),
    ]
    (summary,) = map(json.loads, Path("summary.jsonl").read_text().splitlines())
    assert (summary["status"], summary["job"]) == ("vanished", job_id)


async def test_a_job_that_may_have_been_made_is_not_counted_as_rejected() -> None:
    """The last line counts entries whose job is not known apart from those that surely made none."""
    server = BatchServer()
    server.lose = lambda endpoint: "after" if endpoint == "create" else ""
    server.refuse = lambda endpoint: error(404, "no list here") if endpoint == "list" else None
    async with server.listening() as url:
        status, lines, _ = await run(sweep(server, 1), url=url)
    assert (status, lines[-3]) == (7, "1 of 1 ended: 0 succeeded, 0 failed, 0 cancelled, 0 rejected, 1 uncertain")
    assert ": 1 uncertain (may have made a job that is not known). 'aiofinetune list' shows" in lines[-2]
    assert lines[-1].endswith(": aiofinetune batch jobs.jsonl --retry-uncertain LABEL")


async def test_after_fail_fast_the_same_command_goes_on() -> None:
    """A failure that an earlier run told does not keep the same command, with --fail-fast, from sending the rest."""
    server = BatchServer(fate=lambda asked: "failed" if asked.get("n_epochs") == 2 else "succeeded")
    name = sweep(server, 4)
    async with server.listening() as url:
        options = (name, "--fail-fast", "--concurrency", "1", "--max-active", "1", "--poll-interval", "0.05")
        assert (await run(*options, url=url))[0] == 1
        made = len(server.jobs)
        status, lines, _ = await run(*options, url=url)
    assert made < 4
    assert (status, lines[-1]) == (1, "4 of 4 ended: 3 succeeded, 1 failed, 0 cancelled, 0 rejected")


async def test_what_happens_is_told_with_its_time() -> None:
    """Elsewhere than on a terminal, stderr has a dated line for each job that is made, and for what is waited for."""
    server = BatchServer()
    refusals = [error(429, "slow down", **{"Retry-After": "1"})]

    server.refuse = lambda endpoint: refusals.pop() if endpoint == "create" and refusals else None
    async with server.listening() as url, running(sweep(server, 2), "--concurrency", "1", url=url) as process:
        _, stderr = await process.communicate()
    lines = stderr.decode().splitlines()
    assert all(TIME.match(line) for line in lines)
    told = [TIME.sub("", line) for line in lines]
    assert sorted(line.split()[0] for line in told if " created ft-" in line) == ["job-1", "job-2"]
    (throttled,) = (line for line in told if line.startswith("the service asks to slow down"))
    assert "429 RateLimited" in throttled


# On a terminal


@asynccontextmanager
async def on_a_terminal(
    *arguments: str, url: str, lines: int = 24, columns: int = 120
) -> AsyncIterator[tuple[Process, Terminal]]:
    """The command on a pseudo-terminal, and what that shows."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    screen = Terminal(master)
    try:
        async with running(*arguments, url=url, terminal=slave) as process:
            os.close(slave)
            yield process, screen
    finally:
        screen.close()


class Terminal:
    """As much of a terminal as the command needs: lines, the cursor up and down them, and erasing."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._rows = [""]
        self._row = 0
        self._unread = b""
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    def close(self) -> None:
        """Read no more."""
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)

    @property
    def text(self) -> str:
        """What is on the screen."""
        return "\n".join(row.rstrip() for row in self._rows).rstrip()

    async def shows(self, *words: str) -> str:
        """Wait until all these words are on the screen at once; give the screen."""
        while not all(word in self.text for word in words):
            self._news.clear()
            await self._news.wait()
        return self.text

    async def shows_at_the_end(self) -> str:
        """Wait until the command has closed the terminal; return the screen."""
        await self._ended.wait()
        return self.text

    def _read(self) -> None:
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the command is gone
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
            self._ended.set()
        # A sequence that was cut waits for its rest.
        whole, cut, rest = (self._unread + data).rpartition(b"\x1b")
        is_whole = not cut or re.match(rb"\[[0-9;?]*[A-Za-z]", rest) is not None
        self._unread = b"" if is_whole else cut + rest
        for piece in re.findall(
            rb"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", whole + cut + rest if is_whole else whole
        ):
            self._show(piece.decode(errors="replace"))
        self._news.set()

    def _show(self, piece: str) -> None:
        match piece:
            case "\r":
                pass
            case "\n":
                self._row += 1
            case "\x1b[2K":
                self._rows[self._row] = ""
            case _ if found := re.fullmatch(r"\x1b\[(\d+)A", piece):
                self._row = max(0, self._row - int(found[1]))
            case _ if not piece.startswith("\x1b"):
                self._rows[self._row] += piece
        self._rows += [""] * (self._row + 1 - len(self._rows))


async def test_a_live_table() -> None:
    """On a terminal a table shows what ended and what is active, with the counts and how jobs are followed."""
    server = BatchServer(lasts=None, fate=lambda _asked: "failed")
    async with (
        server.listening() as url,
        on_a_terminal(sweep(server, 16), "--max-active", "12", "--poll-interval", "0.1", url=url) as (
            process,
            screen,
        ),
    ):
        await server.until(lambda: server.asked["stream"] >= 12)
        first, second = sorted(server.active)[:2]
        server.end(first)
        server.end(second, "failed")
        model = server.jobs[first]["fine_tuned_model"]
        shown = await screen.shows(
            f" {model}", "2 more", "2 of 16 ended", "12 active, followed by streams", " failed: "
        )
        assert re.search(
            rf"^job-\d+ failed [\d.]+ s fine-tune {second} failed: Fine-tune failed$", shown, flags=re.MULTILINE
        )
        assert re.search(r"^2 of 16 ended: 1 succeeded, 1 failed, 0 cancelled, 0 rejected$", shown, flags=re.MULTILINE)
        assert re.search(r"^12 active, .*; 2 to send; [\d.]+ ended a minute$", shown, flags=re.MULTILINE)
        server.lasts = 0
        for job_id in sorted(server.active):
            server.end(job_id)
        await process.wait()
        shown = await screen.shows_at_the_end()
        assert [n for n in range(1, 17) if f"job-{n} " not in shown] == [], shown
    assert process.returncode == 1
    assert shown.splitlines()[-1].startswith("16 of 16 ended: ")


async def test_a_rerun_that_looks_for_a_lost_create_says_so_and_counts_what_ended_before() -> None:
    """It says what it looks for; stopped meanwhile, it counts what ended before, though it has come to none of it.

    A summary of an earlier run stays until there is an outcome.
    """
    server = BatchServer()
    server.hides = lambda job: job["hyperparams"]["n_epochs"] == 3
    name = sweep(server, 4)
    async with server.listening() as url:
        async with running(name, "--concurrency", "1", url=url) as process:
            # The third job is made, and the command is killed before the reply is there.
            await server.until(lambda: server.asked["create"] == 2)
            server.held["create"] = asyncio.Event()
            await server.until(lambda: len(server.jobs) == 3)
            process.kill()
            await process.wait()
        del server.held["create"]
        Path("summary").write_text('{"label": "job-1", "status": "succeeded", "job": "ft-2"}\n')
        async with running(name, "--summary", "summary", url=url) as process:
            assert process.stderr is not None
            _, told = [TIME.sub("", (await process.stderr.readline()).decode()) for _ in range(2)]
            looking = "before anything is sent, looking for jobs of creates whose replies an earlier run missed"
            assert told == f"{looking}: 1\n"
            process.send_signal(signal.SIGINT)
            stdout, _ = await process.communicate()
        assert len(Path("summary").read_text().splitlines()) == 1
        server.hides, server.lasts = lambda _job: False, None
        async with running(name, "--summary", "summary", url=url) as process:
            await server.until(lambda: bool(server.active & server.streamed))
            process.send_signal(signal.SIGINT)
            later, _ = await process.communicate()
        assert len(Path("summary").read_text().splitlines()) == 3
    assert b"3 of 4 ended: 3 succeeded, 0 failed, 0 cancelled, 0 rejected\n" in later
    assert b"1 of 4 entries have not ended" in later
    lines = [TIME.sub("", line) for line in stdout.decode().splitlines()]
    assert lines[0] == "4 entries: 2 ended before, 2 to go"
    assert lines[2:] == [
        "0 of 4 ended: 0 succeeded, 0 failed, 0 cancelled, 0 rejected; 2 more have ended, and the next run counts that",
        "the batch sends no more requests: it was asked to stop",
        "2 of 4 entries have not ended. To continue: aiofinetune batch jobs.jsonl --summary summary",
    ]


async def test_brackets_in_the_live_table() -> None:
    """Labels and errors with square brackets are shown as they are in the table too."""
    server = BatchServer(lasts=None)
    file = server.add_file("train.jsonl", b"train")
    name = manifest({"label": "betas=[1.0]", "training_file": file}, {"label": "x[/b]", "training_file": file})
    async with server.listening() as url, on_a_terminal(name, url=url) as (process, screen):
        await screen.shows("betas=[1.0]", "x[/b]", "2 active")
        for job_id in sorted(server.active):
            server.end(job_id)
        assert await process.wait() == 0


async def test_a_rerun_is_told_and_prints_what_is_new() -> None:
    """A rerun says how many entries ended before, prints the others, and all of them if it is asked to."""
    fates = {1: "succeeded", 2: "failed", 3: "failed"}
    server = BatchServer(fate=lambda asked: fates[int(str(asked["n_epochs"]))])
    name = sweep(server, 3)
    async with server.listening() as url:
        assert (await run(name, url=url))[0] == 1
        status, lines, _ = await run(name, "--summary", "summary.jsonl", url=url)
        nothing = "3 entries: 3 ended before, 0 to go: nothing to send"
        ways = "(--retry-failed creates new jobs for the 2 that failed, --fresh creates all jobs anew)"
        assert (status, lines[:-1]) == (1, [f"{nothing} {ways}"])
        assert len(Path("summary.jsonl").read_text().splitlines()) == 3
        status, lines, _ = await run(name, "--show-ended", url=url)
        assert (status, len(lines)) == (1, 5)
        fates[3] = "succeeded"
        status, lines, _ = await run(name, "--retry-failed", url=url)
        assert (status, lines[0]) == (1, "3 entries: 1 ended before, 2 to go, 2 of them again")
        assert sorted(line.split()[:2] for line in lines[1:-1]) == [["job-2", "failed"], ["job-3", "succeeded"]]
        assert lines[-1] == "3 of 3 ended: 2 succeeded, 1 failed, 0 cancelled, 0 rejected"
    assert len(server.jobs) == 5
