"""Workers on other machines: what a server and a worker make of each other, over HTTP on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner

from aiofinetune._secret import Secret
from aiofinetune.cli._commands import cli
from aiofinetune.errors import AuthenticationFailed, ProtocolViolation
from aiofinetune.local import LocalServer
from aiofinetune.local import _queue as queue
from aiofinetune.local._trainers import remote
from aiofinetune.local._trainers.claims import Claims
from aiofinetune.local._trainers.remote import RemoteTrainers
from aiofinetune.local._worker import claiming
from aiofinetune.local._worker.attempt import read_work, run_attempt
from aiofinetune.local._worker.calls import Calls, Passing, _Outage
from aiofinetune.local._worker.claiming import work
from aiofinetune.local._worker.transfers import fetch
from tests.local.plainclient import KEY, Client, Connect
from tests.local.test_command_line import running

WORKER = "a-token-for-workers"


@asynccontextmanager
async def serving(data: Path, port: int = 0) -> AsyncIterator[LocalServer]:
    """A server that gives its attempts to workers."""
    async with LocalServer(
        data, port=port, api_key=KEY, remote=RemoteTrainers(Claims()), worker_token=WORKER
    ) as server:
        yield server


@asynccontextmanager
async def working(server: LocalServer, **resources: int) -> AsyncIterator[asyncio.Task[None]]:
    """A worker in this process, which is stopped in the end."""
    worker = asyncio.create_task(work(f"{server.base_url}/attempts", WORKER, resources))
    try:
        yield worker
    finally:
        worker.cancel()
        await asyncio.wait([worker])


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which workers make theirs."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


async def test_a_worker_trains_jobs(
    data: Path, connect: Connect, examples: bytes, temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker trains one job after the other, also from a model that it made, leaves nothing, and warns of nothing."""
    async with serving(data) as server, connect(server.base_url) as client, working(server):
        job = await client.finish((await client.create(examples, n_epochs=2))["id"])
        assert job["status"] == "succeeded", job["events"]
        messages = [event["message"] for event in job["events"]]
        assert [message for message in messages if message.startswith("Training on ")]
        assert messages.index("Completed epoch 1/2") < messages.index("Completed epoch 2/2")
        further = await client.finish((await client.create(examples, n_epochs=1, model=job["fine_tuned_model"]))["id"])
        assert further["status"] == "succeeded", further["events"]
        asked = {"model": further["fine_tuned_model"], "prompt": "3 is", "max_tokens": 1, "temperature": 0}
        assert (await client.call("POST", "/completions", json=asked))["choices"]
        assert list(temporary.iterdir()) == []
    own = [record for record in caplog.records if record.name.startswith("aiofinetune")]
    assert [record.getMessage() for record in own if record.levelno >= logging.WARNING] == []


async def test_a_worker_and_this_machine_make_the_same_model(
    data: Path, connect: Connect, examples: bytes, tmp_path: Path
) -> None:
    """The model and the results of a worker are those that the server itself would have made, to the byte."""

    async def made(folder: Path, client: Client) -> list[bytes]:
        job = await client.finish((await client.create(examples, n_epochs=1))["id"])
        async with client.http.get(f"{client.base_url}/files/{job['result_files'][0]['id']}/content") as response:
            return [await response.read(), *(path.read_bytes() for path in (folder / "models").iterdir())]

    async with serving(data) as server, connect(server.base_url) as client, working(server):
        by_worker = await made(data, client)
    async with LocalServer(tmp_path / "other", api_key=KEY) as server, connect(server.base_url) as client:
        assert await made(tmp_path / "other", client) == by_worker


async def test_a_worker_uploads_checkpoints(data: Path, connect: Connect, examples: bytes) -> None:
    """The models at the ends of the last epochs, which the jobs API shows, come from a worker too."""
    async with serving(data) as server, connect(server.base_url) as client, working(server):
        file = await client.upload(examples)
        asked = {"training_file": file["id"], "model": "ada", "hyperparameters": {"n_epochs": 4}}
        job = await client.call("POST", "/fine_tuning/jobs", json=asked)
        await client.finish(job["id"])
        found = (await client.call("GET", f"/fine_tuning/jobs/{job['id']}/checkpoints"))["data"]
        assert len({checkpoint["fine_tuned_model_checkpoint"] for checkpoint in found}) == 3
        for checkpoint in found:
            asked = {"model": checkpoint["fine_tuned_model_checkpoint"], "prompt": "1 is", "max_tokens": 1}
            assert (await client.call("POST", "/completions", json=asked))["choices"]
        assert len(list((data / "models").iterdir())) == 3


async def test_a_cancelled_job_ends_its_trainer(
    data: Path, connect: Connect, examples: bytes, temporary: Path, trainers: Callable[[Path], list[int]]
) -> None:
    """When a job is cancelled, the worker ends its trainer, and is ready for the next job."""
    async with serving(data) as server, connect(server.base_url) as client, working(server):
        job = await client.create(examples, n_epochs=100_000)
        await client.reach(job["id"], "Completed epoch 1/100000")
        assert len(trainers(temporary)) == 1
        await client.call("POST", f"/fine-tunes/{job['id']}/cancel")
        async with asyncio.timeout(30):
            while trainers(temporary) or any(temporary.iterdir()):
                await asyncio.sleep(0.01)
        assert (await client.finish((await client.create(examples, n_epochs=1))["id"]))["status"] == "succeeded"


async def test_a_worker_that_stops_gives_its_job_back(
    data: Path, connect: Connect, examples: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is stopped tells the server, and the next worker trains the job from its beginning."""
    monkeypatch.setattr(queue, "_FIRST_PAUSE", 0.01)
    async with serving(data) as server, connect(server.base_url) as client:
        async with working(server):
            job = await client.create(examples, n_epochs=60)
            await client.reach(job["id"], "Completed epoch 1/60")
        lost = "Fine-tune interrupted: its worker was stopped. It will start again from the beginning"
        await client.reach(job["id"], lost)
        async with working(server):
            messages = await client.follow(job["id"])
        assert messages.count("Completed epoch 1/60") == 2
        assert messages[-1] == "Fine-tune succeeded"


def is_of(task: asyncio.Task[Any], function: Callable[..., object]) -> bool:
    """Return whether a task runs a coroutine of this function."""
    return getattr(task.get_coro(), "cr_code", None) is function.__code__


async def test_a_worker_goes_on_with_a_cancellation_that_is_past(data: Path, connect: Connect, examples: bytes) -> None:
    """A worker in whose task the count of cancellations was left raised trains one job after the other.

    Before Python 3.13 a task group leaves it so, if a task of it fails as the group ends.
    """

    async def work_with_a_count(url: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        assert task.cancelling() == 1
        await work(url, WORKER, {})

    async with serving(data) as server, connect(server.base_url) as client:
        worker = asyncio.create_task(work_with_a_count(f"{server.base_url}/attempts"))
        try:
            for _ in range(2):
                job = await client.create(examples, n_epochs=1)
                assert (await client.finish(job["id"]))["status"] == "succeeded"
            assert not worker.done()
        finally:
            worker.cancel()
            await asyncio.wait([worker])
        assert worker.cancelled()


async def test_a_worker_that_stops_as_its_attempt_ends(data: Path, connect: Connect, examples: bytes) -> None:
    """A worker that is stopped while an attempt ends claims no other one."""
    async with serving(data) as server, connect(server.base_url) as client, working(server) as worker:
        job = await client.create(examples, n_epochs=100_000)
        await client.reach(job["id"], "Completed epoch 1/100000")
        await client.call("POST", f"/fine-tunes/{job['id']}/cancel")
        async with asyncio.timeout(30):
            # The task group of the attempt cancels its task until the trainer has ended.
            while not any(task.cancelling() for task in asyncio.all_tasks() if is_of(task, run_attempt)):
                await asyncio.sleep(0)
            worker.cancel()
            await asyncio.wait([worker])
        assert worker.cancelled()


async def test_a_worker_that_fails_waits_before_it_asks_again(
    data: Path, connect: Connect, examples: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that can make no folder waits, each time for longer, while the server goes on."""
    monkeypatch.setattr(claiming, "_FIRST_PAUSE", 0.01)
    async with serving(data) as server, connect(server.base_url) as client:
        with monkeypatch.context() as patch:
            patch.setattr("tempfile.tempdir", str(data / "none"))
            async with working(server):
                job = await client.create(examples, n_epochs=1)
                async with asyncio.timeout(30):
                    while "asks for the next one in 0.02 s" not in caplog.text:
                        await asyncio.sleep(0.01)
        async with working(server):
            assert (await client.finish(job["id"]))["status"] == "succeeded"
    assert "asks for the next one in 0.01 s" in caplog.text
    assert "training is paused" not in caplog.text


async def test_an_attempt_goes_on_over_a_restart_of_the_server(data: Path, connect: Connect, examples: bytes) -> None:
    """A job that a worker trains is not trained anew when the server restarts: its events go on where they were."""
    async with serving(data) as server, connect(server.base_url) as client:
        worker = asyncio.create_task(work(f"{server.base_url}/attempts", WORKER, {}))
        job = await client.create(examples, n_epochs=100)
        await client.reach(job["id"], "Completed epoch 1/100")
    port = int(server.base_url.removesuffix("/v1").rpartition(":")[2])
    try:
        async with serving(data, port) as server, connect(server.base_url) as client:
            messages = await client.follow(job["id"])
    finally:
        worker.cancel()
        await asyncio.wait([worker])
    assert messages.count("Fine-tune started") == 1
    epochs = [message for message in messages if message.startswith("Completed epoch")]
    assert epochs == [f"Completed epoch {number}/100" for number in range(1, 101)]
    assert messages[-1] == "Fine-tune succeeded"


async def test_a_server_that_is_away_is_said(data: Path, temporary: Path, tmp_path: Path) -> None:
    """A worker says at once that it cannot reach its server, and when it can."""
    token = tmp_path / "worker.token"
    token.write_text(WORKER)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    worker = ("worker", "--server", url, "--token-file", str(token))
    async with running(*worker, TMPDIR=str(temporary)) as process, asyncio.timeout(60):
        assert process.stderr is not None
        first = (await process.stderr.readline()).decode()
        assert f"cannot reach {url}/v1/attempts: " in first
        assert first.endswith("; trying for 10 min\n")
        async with serving(data, port):
            assert (await process.stderr.readline()).decode().endswith(f"{url}/v1/attempts can be reached again\n")
            process.terminate()
            await process.wait()


async def test_a_server_cannot_fill_the_disk(tmp_path: Path) -> None:
    """A worker takes no more of an input than the bytes that the server said it has."""

    async def pour(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(bytes(1 << 16))
        return response

    application = web.Application()
    application.router.add_get("/inputs/train", pour)
    async with TestServer(application) as server, aiohttp.ClientSession() as http:
        calls = Calls(http, str(server.make_url("/")).rstrip("/"), Secret(WORKER), "0" * 32)
        with pytest.raises(ProtocolViolation, match="sent more of train than the 100 bytes"):
            await fetch(calls, "train", 100, tmp_path / "train")
    assert (tmp_path / "train").stat().st_size <= 100


def test_an_outage_is_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """While the server does not answer, a worker says so once a minute, and for how long it will try yet."""
    outage = _Outage("http://server")
    for now in range(0, 130, 10):
        outage.note(Passing("refused"), float(now))
    outage.end()
    outage.end()
    assert [record.getMessage() for record in caplog.records] == [
        *(f"cannot reach http://server: refused; trying for {minutes} min" for minutes in (10, 9, 8)),
        "http://server can be reached again",
    ]


async def test_a_wrong_token_claims_nothing(data: Path) -> None:
    """A worker whose token is wrong ends with a word on why."""
    async with serving(data) as server:
        for token in ("wrong", KEY):
            with pytest.raises(AuthenticationFailed, match="does not know this token"):
                await work(f"{server.base_url}/attempts", token, {})
    with contextlib.suppress(FileNotFoundError):
        assert not list((data / "runs").iterdir())


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for loopback with its key, by the openssl command; skip the test where there is none."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    command = ("openssl", *new, *subject, "-out", str(cert), "-keyout", str(key))
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603  # the command above
    return cert, key


async def test_a_killed_worker_over_tls(
    tmp_path: Path,
    temporary: Path,
    connect: Connect,
    examples: bytes,
    trainers: Callable[[Path], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the command and https: a killed worker leaves no trainer, and the next one trains its job and tidies."""
    monkeypatch.setattr(remote, "_ABSENCE", 0.2)
    monkeypatch.setattr(queue, "_FIRST_PAUSE", 0.01)
    cert, key = certificate(tmp_path)
    token = tmp_path / "worker.token"
    token.write_text(WORKER + "\n")
    trusted = {"SSL_CERT_FILE": str(cert), "TMPDIR": str(temporary)}
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    claims = RemoteTrainers(Claims())
    async with (
        LocalServer(api_key=KEY, remote=claims, worker_token=WORKER, tls=context) as server,
        connect(server.base_url, tls=ssl.create_default_context(cafile=str(cert))) as client,
    ):
        assert server.base_url.startswith("https://127.0.0.1:")
        worker = ("worker", "--server", server.base_url.removesuffix("/v1"), "--token-file", str(token))
        async with running(*worker, TMPDIR=str(temporary)) as stranger:
            _, stderr = await stranger.communicate()
            assert (stranger.returncode, b"is not valid" in stderr) == (4, True), stderr
            assert b"  Check --server, the network" in stderr
        async with running(*worker, **trusted) as killed:
            job = await client.create(examples, n_epochs=60)
            await client.reach(job["id"], "Completed epoch 1/60")
            killed.kill()
        async with running(*worker, **trusted) as process:
            messages = await client.follow(job["id"])
            assert messages[-1] == "Fine-tune succeeded"
            lost = "Fine-tune interrupted: its worker was lost. It will start again from the beginning"
            assert messages.count(lost) == 1
            process.send_signal(signal.SIGTERM)
            await process.communicate()
        assert process.returncode == 0
    assert trainers(temporary) == []
    assert list(temporary.glob("aiofinetune-attempt-*")) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("worker", "--server", "http://example.com"), "--server: 'http://example.com' would carry"),
        (("serve", "--port", "0", "--trainers", "workers"), "--worker-token-file"),
        (("serve", "--port", "0", "--trainers", "slurm"), "expected local, workers or dask://"),
        (
            ("serve", "--host", "0.0.0.0", "--api-key", "kk", "--allow-plain-http", "--trainers", "dask://127.0.0.1:1"),
            "--host: '0.0.0.0' names no machine",
        ),
        (("serve", "--port", "0", "--tls-cert", __file__, "--tls-key", __file__), "--tls-cert, --tls-key"),
        (("serve", "--port", "0", "--tls-cert", __file__), "belong together"),
        (("serve", "--port", "0", "--resource", "gpu"), "expected NAME=AMOUNT"),
        (("serve", "--port", "0", "--needs", "gpu=1"), "expected MODEL:NAME=AMOUNT"),
        (
            ("serve", "--port", "0", "--resource", "gpu=1", "--needs", "nope:gpu=1"),
            "--needs: there is no base model 'nope'; there are ada, babbage, curie, davinci",
        ),
        (("serve", "--port", "0", "--needs", "babbage:gpu=1"), "'babbage' needs gpu=1, but this machine has nothing;"),
        (
            ("serve", "--port", "0", "--resource", "gpu=1", "--needs", "ada:gpu=2"),
            "--needs: a job of 'ada' needs gpu=2, but this machine has gpu=1; say what it has with --resource",
        ),
    ],
)
def test_options_that_cannot_be(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    """What the options of the two commands do not allow is said in one line."""
    token = tmp_path / "token"
    token.write_text(WORKER)
    if arguments[0] == "worker":
        arguments = (*arguments, "--token-file", str(token))
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


@pytest.mark.parametrize(
    "job",
    [
        {"model_path": "/etc/cron.d/x"},
        {"results_path": "../x"},
        {"training_path": "a/../../x"},
        {"checkpoint_paths": {"1": "/x"}},
        {"model": "/x"},
        {"open_model": {"path": "/x"}},
        {"model_path": 1},
    ],
)
def test_a_server_leads_its_workers_nowhere(job: dict[str, object]) -> None:
    """A worker lets no server name a file outside of the attempt's folder, for its trainer to read or write."""
    described = {"job_id": "ft-1", "job": job, "inputs": [], "outputs": [], "model_version": "0" * 64}
    with pytest.raises(ProtocolViolation, match="the server names a file"):
        read_work(described)
    for wrong in ({**described, "job": {}, "inputs": [{"name": "/x", "bytes": 1}]}, {**described, "outputs": ["../x"]}):
        with pytest.raises(ProtocolViolation, match="the server names a file"):
            read_work(wrong)
    with pytest.raises(ProtocolViolation):
        read_work({**described, "job": {}, "model_version": "../x"})
    assert read_work({**described, "job": {"model": "ada"}}).job == {"model": "ada"}
