"""The queue and its trainers: order, cancellation, failure, and what a restart or a ``kill -9`` leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from aiofinetune import structuring
from aiofinetune.local import LocalServer
from aiofinetune.local import _queue as jobs
from aiofinetune.local._store.attempts import AttemptStore
from aiofinetune.local._trainers import trainer
from tests.local.plainclient import Client, Connect, Launch
from tests.support.limits import limited

LONG = 100_000
"""Epochs that no test waits for."""

RESTARTED = "Fine-tune interrupted: the server was restarted. It will start again from the beginning"


def told(job: dict[str, Any]) -> list[str]:
    return [event["message"] for event in job["events"]]


class Gone:
    """Wait, at the end of the block, until a process of somebody else is gone (by a pidfd, without polling)."""

    def __init__(self, pid: int) -> None:
        self._descriptor = os.pidfd_open(pid)

    async def __aenter__(self) -> None:
        self._gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._descriptor, self._gone.set)

    async def __aexit__(self, *_failure: object) -> None:
        try:
            async with asyncio.timeout(30):
                await self._gone.wait()
        finally:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)


# The queue


async def test_jobs_run_one_after_the_other_and_say_their_place(client: Client, examples: bytes) -> None:
    """A job that waits tells its place in the queue, and again each time that it moves up."""
    first, second, third = [await client.create(examples, n_epochs=n) for n in (LONG, 1, 1)]
    await client.reach(first["id"], "Fine-tune started")
    assert told(second)[-1] == "Fine-tune enqueued. Queue number: 1"
    assert told(third)[-1] == "Fine-tune enqueued. Queue number: 2"
    await client.call("POST", f"/fine-tunes/{first['id']}/cancel")
    story = told(await client.finish(third["id"]))
    places = [message for message in story if "Queue" in message]
    assert places == [f"Fine-tune enqueued. Queue number: {place}" for place in (2, 1, 0)]
    assert (await client.call("GET", f"/fine-tunes/{second['id']}"))["status"] == "succeeded"


async def test_a_pending_job_can_be_cancelled(client: Client, examples: bytes) -> None:
    """A job that is cancelled before its turn never starts, and those behind it move up."""
    running, pending, last = [await client.create(examples, n_epochs=n) for n in (LONG, 1, 1)]
    await client.reach(running["id"], "Fine-tune started")
    cancelled = await client.call("POST", f"/fine-tunes/{pending['id']}/cancel")
    assert (cancelled["status"], told(cancelled)[-1]) == ("cancelled", "Fine-tune cancelled")
    await client.reach(last["id"], "Fine-tune enqueued. Queue number: 1")
    await client.call("POST", f"/fine-tunes/{running['id']}/cancel")
    await client.finish(last["id"])
    assert "Fine-tune started" not in told(await client.call("GET", f"/fine-tunes/{pending['id']}"))


@pytest.mark.uvloop
async def test_a_running_job_can_be_cancelled(
    client: Client, examples: bytes, data: Path, trainers: Callable[[Path], list[int]]
) -> None:
    """Cancelling answers at once with the cancelled job, ends its stream and its trainer, and leaves no model."""
    job = await client.create(examples, n_epochs=LONG)
    following = asyncio.create_task(client.follow(job["id"]))
    await client.reach(job["id"], f"Completed epoch 1/{LONG}")
    (pid,) = trainers(data)
    async with Gone(pid):
        cancelled = await client.call("POST", f"/fine-tunes/{job['id']}/cancel")
        assert cancelled["status"] == "cancelled"
        assert (await following)[-1] == "Fine-tune cancelled"
    after = await client.create(examples, n_epochs=1)
    assert (await client.finish(after["id"]))["status"] == "succeeded"
    cancelled_later = await client.call("GET", f"/fine-tunes/{job['id']}")
    assert cancelled_later == cancelled
    assert [len(list((data / folder).iterdir())) for folder in ("models", "runs", "files")] == [1, 0, 3]


async def test_cancelling_is_idempotent_but_not_for_a_job_that_has_ended(client: Client, examples: bytes) -> None:
    """A cancelled job may be cancelled again; one that has succeeded may not, and nothing changes."""
    job = await client.create(examples, n_epochs=LONG)
    first, second = [await client.call("POST", f"/fine-tunes/{job['id']}/cancel") for _ in range(2)]
    assert first == second
    done = await client.finish((await client.create(examples, n_epochs=1))["id"])
    assert "succeeded" in (await client.call("POST", f"/fine-tunes/{done['id']}/cancel", status=400))["message"]
    assert await client.call("GET", f"/fine-tunes/{done['id']}") == done
    await client.call("POST", "/fine-tunes/ft-unknown/cancel", status=404)


# Failure


async def test_a_job_fails_if_its_file_is_broken_later(client: Client, examples: bytes, data: Path) -> None:
    """The error names the line and what is wrong with it, then the job fails, and the next one runs."""
    first = await client.create(examples, n_epochs=50, batch_size=1)
    second = await client.create(examples)
    (data / "files" / second["training_files"][0]["id"]).write_bytes(examples + b'{"prompt": 1}\n')
    await client.call("POST", f"/fine-tunes/{first['id']}/cancel")
    job = await client.finish(second["id"])
    assert (job["status"], job["fine_tuned_model"], job["result_files"]) == ("failed", None, [])
    *_, error, last = job["events"]
    assert (error["level"], last["message"]) == ("error", "Fine-tune failed")
    assert "21" in error["message"]
    assert str(data) not in error["message"]
    job = await client.call("GET", f"/fine_tuning/jobs/{job['id']}")
    assert (job["error"]["code"], job["error"]["param"]) == ("invalid_training_file", "training_file")
    assert (await client.finish((await client.create(examples, n_epochs=1))["id"]))["status"] == "succeeded"


@pytest.mark.parametrize(
    ("asked", "step"),
    [
        ({"learning_rate_multiplier": 1e30}, "2"),
        ({"learning_rate_multiplier": 1e30, "batch_size": 20, "n_epochs": 1}, "1"),
        ({"learning_rate_multiplier": 1e10, "batch_size": 20, "n_epochs": 1}, "1"),
        ({"prompt_loss_weight": 1e300}, "1"),
    ],
    ids=["step after step", "in the last step", "to no use", "by the prompt"],
)
async def test_a_training_that_diverges_fails_the_job(
    client: Client, examples: bytes, data: Path, asked: dict[str, Any], step: str
) -> None:
    """A model whose numbers run away is no success: the job says at which step, what to change, and leaves no model."""
    job = await client.finish((await client.create(examples, **asked))["id"])
    assert job["status"] == "failed"
    assert f"The training diverged at step {step}: the " in told(job)[-2]
    assert "Try a smaller learning_rate_multiplier" in told(job)[-2]
    assert list((data / "models").iterdir()) == []


@pytest.mark.uvloop
async def test_a_trainer_that_is_killed_fails_its_job(
    client: Client, examples: bytes, data: Path, trainers: Callable[[Path], list[int]]
) -> None:
    """When a trainer dies without a word, the job says how it died."""
    job = await client.create(examples, n_epochs=LONG)
    await client.reach(job["id"], "Completed epoch 1/100000")
    (pid,) = trainers(data)
    os.kill(pid, signal.SIGKILL)
    assert told(await client.finish(job["id"]))[-2:] == [
        "The trainer ended by SIGKILL, perhaps because the machine ran out of memory",
        "Fine-tune failed",
    ]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 7", "The trainer ended with exit status 7"),
        ("echo trouble >&2; echo \"OSError: $3 in '/usr/my lib/x.py'\" >&2; exit 7", "exit status 7: OSError: run-"),
        ('echo \'{"type": "succeeded"}\'; exit 7', "The trainer ended with exit status 7"),
        ("echo nonsense; yes", "The server failed to run the training"),
        ('echo \'{"type": "unknown"}\'; exec sleep 1000', "The server failed to run the training"),
        ('echo \'{"type": "succeeded"}\'', "The server failed to run the training"),
        ("trap '' TERM; echo nonsense; while :; do :; done", "The server failed to run the training"),
    ],
)
async def test_a_trainer_that_misbehaves_fails_its_job_alone(
    client: Client,
    examples: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    reason: str,
) -> None:
    """Whatever a trainer does, its job fails with a reason that holds no path, and the server goes on."""
    monkeypatch.setattr(trainer, "_GRACE", 0.2)
    python = sys.executable
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    job = await client.finish((await client.create(examples))["id"])
    assert job["status"] == "failed"
    error = job["events"][-2]
    assert (error["level"], reason in error["message"]) == ("error", True)
    assert str(tmp_path) not in error["message"]
    monkeypatch.setattr(sys, "executable", python)
    assert (await client.finish((await client.create(examples, n_epochs=1))["id"]))["status"] == "succeeded"


async def test_a_trainer_that_does_not_end_when_asked_is_killed(
    client: Client, examples: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that ignores SIGTERM is killed once its grace is over, and the next job gets its turn."""
    monkeypatch.setattr(trainer, "_GRACE", 0.01)
    python = sys.executable
    started = '{"type": "epoch", "epoch": 1, "n_epochs": 1}'
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, f"trap '' TERM; echo '{started}'; while :; do :; done"))
    job = await client.create(examples)
    await client.reach(job["id"], "Completed epoch 1/1")
    monkeypatch.setattr(sys, "executable", python)
    await client.call("POST", f"/fine-tunes/{job['id']}/cancel")
    assert (await client.finish((await client.create(examples, n_epochs=1))["id"]))["status"] == "succeeded"


def stand_in(folder: Path, script: str) -> str:
    """Write a shell script that is run in the place of Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return str(path)


async def test_a_failure_is_told_in_bounded_words(client: Client, examples: bytes) -> None:
    """A message that quotes a megabyte of the request is cut, and told all the same."""
    validation = await client.upload(examples)
    asked = {
        "model": "ada",
        "training_file": validation["id"],
        "validation_file": validation["id"],
        "compute_classification_metrics": True,
        "classification_positive_class": "\N{GRINNING FACE}" * 240_000,
    }
    headers = {"Content-Type": "application/json"}
    body = json.dumps(asked, ensure_ascii=False).encode()
    job = await client.finish((await client.call("POST", "/fine-tunes", data=body, headers=headers))["id"])
    assert told(job)[-2].startswith("No completion in the files is the classification_positive_class")
    assert len(told(job)[-2]) == 2000


async def test_a_job_of_many_events_leaves_the_loop_to_others(
    client: Client, data: Path, examples: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of ten thousand events is read and listed off the event loop, and followed a few at a time."""
    job = await client.create(examples, n_epochs=1)
    count = len((await client.finish(job["id"]))["events"])
    with contextlib.closing(sqlite3.connect(data / "server.sqlite3")) as database, database:
        rows = ((job["id"], count + number, 0, "info", f"Completed epoch {number}/10000") for number in range(10_000))
        database.executemany("INSERT INTO events (job, position, created_at, level, message) VALUES (?,?,?,?,?)", rows)
    write, in_one_go = structuring.write_reply, [0]

    def spy(value: object) -> dict[str, object]:
        if threading.current_thread() is threading.main_thread():
            if in_one_go[-1] == 0:
                asyncio.get_running_loop().call_soon(in_one_go.append, 0)
            in_one_go[-1] += 1
        return write(value)

    monkeypatch.setattr(structuring, "write_reply", spy)
    path = f"/fine-tunes/{job['id']}"
    for url in (path, f"{path}/events", f"{path}/events?stream=true"):
        async with client.http.get(client.base_url + url) as response:
            assert (await response.read()).count(b"Completed epoch") == 10_001
    assert 0 < max(in_one_go) <= 500


# A machine that is short of something


async def reach_interruption(client: Client, job_id: str) -> str:
    """Wait until a job says that it was interrupted; return why."""
    async for message in client.messages(job_id):
        if message.startswith("Fine-tune interrupted: "):
            return message
    raise AssertionError("the job was not interrupted")


async def test_a_job_waits_for_room_on_the_disk(
    client: Client, examples: bytes, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose model cannot be written says so and goes back to the queue, and succeeds once there is room."""
    monkeypatch.setattr(jobs, "_FIRST_PAUSE", 0.05)
    with limited(resource.RLIMIT_FSIZE, 1_000_000):
        job = await client.create(examples, n_epochs=1)
        assert "File too large" in await reach_interruption(client, job["id"])
        assert not list((data / "models").iterdir())
    done = await client.finish(job["id"])
    assert done["status"] == "succeeded"
    assert len(list((data / "models").iterdir())) == 1
    assert "training is paused for 0.05 s: File too large" in caplog.text


async def test_a_full_disk_is_answered_with_507(
    client: Client, examples: bytes, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While nothing can be written, uploads and creates are refused and leave nothing; reading goes on."""
    monkeypatch.setattr(jobs, "_FIRST_PAUSE", 0.05)
    file = await client.upload(examples)
    running = await client.create(examples, n_epochs=LONG)
    await client.reach(running["id"], f"Completed epoch 1/{LONG}")
    with limited(resource.RLIMIT_FSIZE, 1):
        with pytest.raises(AssertionError, match="'type': 'server_error'"):
            await client.upload(examples)
        asked = {"training_file": file["id"], "model": "ada", "n_epochs": 1}
        for path in ("/fine-tunes", f"/fine-tunes/{running['id']}/cancel"):
            error = await client.call("POST", path, status=507, json=asked)
            assert error["type"] == "server_error"
        while "training is paused for" not in caplog.text:
            assert len((await client.call("GET", "/fine-tunes"))["data"]) == 1
    await reach_interruption(client, running["id"])
    await client.call("POST", f"/fine-tunes/{running['id']}/cancel")
    known = {listed["id"] for listed in (await client.call("GET", "/files"))["data"]}
    assert {path.name for path in (data / "files").iterdir() if path.suffix != ".partial"} == known
    assert len(known) == 2
    job = await client.call("POST", "/fine-tunes", json=asked)
    assert (await client.finish(job["id"]))["status"] == "succeeded"


async def test_a_job_waits_for_descriptors(client: Client, examples: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a trainer cannot be started for want of descriptors, its job goes back to the queue until it can."""
    monkeypatch.setattr(jobs, "_FIRST_PAUSE", 0.05)
    first = await client.create(examples, n_epochs=1)
    await client.finish(first["id"])
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    with limited(resource.RLIMIT_NOFILE, highest + 1):
        spare = []
        with contextlib.suppress(OSError):
            while True:
                spare.append(os.dup(0))
        # The examples of a file that was trained on before are counted; the job's orders cannot be written.
        asked = {"training_file": first["training_files"][0]["id"], "model": "ada", "n_epochs": 1}
        job = await client.call("POST", "/fine-tunes", json=asked)
        while not any("Too many open files" in message for message in told(job)):
            job = await client.call("GET", f"/fine-tunes/{job['id']}")
        for descriptor in spare:
            os.close(descriptor)
    assert (await client.finish(job["id"]))["status"] == "succeeded"


async def test_a_failure_of_the_queue_ends_nothing_else(
    client: Client, examples: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong in the queue is logged and tried again; the application around the server goes on."""
    monkeypatch.setattr(jobs, "_FIRST_PAUSE", 0.01)
    take = AttemptStore.take_next
    failures = iter([ZeroDivisionError(), ExceptionGroup("several", [sqlite3.OperationalError("odd")])])

    async def broken(attempts: AttemptStore, *room: Any) -> object:
        for failure in failures:
            raise failure
        return await take(attempts, *room)

    monkeypatch.setattr(AttemptStore, "take_next", broken)
    job = await client.create(examples, n_epochs=1)
    assert (await client.finish(job["id"]))["status"] == "succeeded"
    assert caplog.text.count("training is paused") == 2


# Restarts


async def test_a_restart_repeats_the_job_that_was_running(data: Path, connect: Connect, examples: bytes) -> None:
    """A job cut short by the server's end runs again from its start; its history is kept, and says so."""
    async with LocalServer(data, api_key="key") as server, connect(server.base_url, "key") as client:
        job = await client.create(examples, n_epochs=120)
        waiting = await client.create(examples, n_epochs=1)
        await client.reach(job["id"], "Completed epoch 1/120")
    async with LocalServer(data, api_key="key") as server, connect(server.base_url, "key") as client:
        check_repeated(await client.finish(job["id"]), 120)
        assert (await client.finish(waiting["id"]))["status"] == "succeeded"


def check_repeated(job: dict[str, Any], n_epochs: int) -> None:
    assert job["status"] == "succeeded"
    story = told(job)
    cut = story.index(RESTARTED)
    before, after = story[:cut], story[cut + 1 :]
    assert before[2:5] == ["Fine-tune enqueued. Queue number: 0", "Fine-tune started", f"Completed epoch 1/{n_epochs}"]
    assert after[:2] == ["Fine-tune enqueued. Queue number: 0", "Fine-tune started"]
    assert [message for message in after if message.startswith("Completed")] == [
        f"Completed epoch {epoch}/{n_epochs}" for epoch in range(1, n_epochs + 1)
    ]


async def test_a_server_killed_in_training_repeats_the_job(
    data: Path, launch: Launch, examples: bytes, trainers: Callable[[Path], list[int]]
) -> None:
    """After ``kill -9`` during a training the trainer ends by itself, and the next server trains the job again."""
    async with AsyncExitStack() as stack, launch(data) as client:
        job = await client.create(examples, n_epochs=120)
        await client.reach(job["id"], "Completed epoch 1/120")
        (pid,) = trainers(data)
        await stack.enter_async_context(Gone(pid))
    async with launch(data) as client:
        check_repeated(await client.finish(job["id"]), 120)


async def test_a_server_killed_after_an_answer_keeps_what_it_answered(
    data: Path, launch: Launch, examples: bytes
) -> None:
    """A file, a job, a cancellation and a model outlive a ``kill -9`` that comes right after the answer."""
    async with launch(data) as client:
        file = await client.upload(examples)
    async with launch(data) as client:
        assert await client.call("GET", f"/files/{file['id']}") == file
        asked = {"training_file": file["id"], "model": "ada", "n_epochs": 20}
        job, other = [await client.call("POST", "/fine-tunes", json=asked) for _ in range(2)]
        cancelled = await client.call("POST", f"/fine-tunes/{other['id']}/cancel")
    async with launch(data) as client:
        done = await client.finish(job["id"])
        assert done["status"] == "succeeded"
    async with launch(data) as client:
        assert await client.call("GET", f"/fine-tunes/{job['id']}") == done
        assert await client.call("GET", f"/fine-tunes/{other['id']}") == cancelled
        completion = {"model": done["fine_tuned_model"], "prompt": "3 is", "max_tokens": 1, "temperature": 0}
        assert (await client.call("POST", "/completions", json=completion))["choices"][0]["text"] == " odd"
        async with client.http.get(f"{client.base_url}/files/{done['result_files'][0]['id']}/content") as response:
            assert len(await response.read()) == done["result_files"][0]["bytes"]
        await client.call("DELETE", f"/models/{done['fine_tuned_model']}")
        await client.call("DELETE", f"/files/{file['id']}")
    async with launch(data) as client:
        await client.call("GET", f"/models/{done['fine_tuned_model']}", status=404)
        await client.call("GET", f"/files/{file['id']}", status=404)
        assert [len(list((data / folder).iterdir())) for folder in ("models", "runs", "files")] == [0, 0, 1]


async def test_a_server_killed_in_an_upload_keeps_none_of_it(data: Path, launch: Launch) -> None:
    """What was half uploaded at a ``kill -9`` is removed at the next start."""
    async with launch(data) as client:
        seen = asyncio.Event()

        async def endless() -> Any:
            yield b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\n"
            while True:
                if any((data / "files").iterdir()):
                    seen.set()
                yield bytes(1 << 20)

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        upload = asyncio.create_task(client.call("POST", "/files", data=endless(), headers=headers))
        await seen.wait()
        upload.cancel()
        await asyncio.wait([upload])
    (data / "files" / "file-abcdefghijklmnopqrstuvwx.partial").touch()
    async with launch(data) as client:
        assert (await client.call("GET", "/files"))["data"] == []
        assert list((data / "files").iterdir()) == []
