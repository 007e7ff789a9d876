"""Together's own client against the embedded server: its files, its fine-tuning and its command line.

    python -m tests.clients.together_jobs

It needs an environment with ``together`` and what the embedded server needs. It prints each call, and exits with an
error at the first that fails.

The client validates each reply against its models (``_strict_response_validation``), but for completions: the server
answers those with the objects of the reference, which differ in the name of their kind.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import together
from together.lib.resources import files as upload_manager

from aiofinetune.local import LocalServer
from tests.clients.calls import Calls

ROWS = "".join(
    json.dumps({"prompt": f"{number} ->", "completion": " odd" if number % 2 else " even"}) + "\n"
    for number in range(40)
).encode()
OVER = ("completed", "error", "cancelled")


class TogetherCalls(Calls):
    """The calls of Together's client."""

    async def refused(self, what: str, call: Callable[[], Any], words: str, status: int = 400) -> None:
        """Call, and check that the service refuses with these words."""
        try:
            result = await self.run(call)
        except together.APIStatusError as error:
            if error.status_code != status or words not in str(error):
                raise
            self.count += 1
            print(f"{self.name}: {what}: refused: {error.status_code}")
        else:
            raise SystemExit(f"{self.name}: {what}: not refused but {result!r}")

    async def run(self, call: Callable[[], Any]) -> Any:
        """Call, and read a content to its end."""
        if isinstance(self.client, together.Together):
            return await asyncio.to_thread(lambda: _content(call()))
        result = call()
        content = _content(await result if inspect.isawaitable(result) else result)
        return await content if inspect.isawaitable(content) else content

    async def ended(self, job_id: str) -> None:
        """Wait until a job is over."""
        while (await self.run(lambda: self.client.fine_tuning.retrieve(job_id))).status not in OVER:
            await asyncio.sleep(0.05)


def _content(result: Any) -> Any:
    return result.read() if hasattr(result, "read") else result


async def check_files(calls: TogetherCalls, folder: Path) -> str:
    """Upload a file, and one of equal content; return the id of it."""
    api, path = calls.client.files, folder / f"{calls.name}.jsonl"
    await asyncio.to_thread(path.write_bytes, ROWS + b'{"prompt": "%b", "completion": " x"}\n' % calls.name.encode())
    told: list[Any] = []
    file = await calls("files.upload", lambda: api.upload(path, progress_callback=told.append), lambda found: found.id)
    if told[-1].uploaded_bytes != path.stat().st_size:
        raise SystemExit(f"the progress ended with {told[-1]}")
    await calls("files.upload, equal content", lambda: api.upload(path), lambda found: found.id == file.id)
    await calls(
        "files.retrieve, with its report",
        lambda: api.retrieve(file.id),
        lambda found: (
            (found.processing_status, found.validation_report.valid, found.validation_report.nlines)
            == ("COMPLETED", True, 41)
        ),
    )
    await calls("files.list", api.list, lambda found: file.id in [each.id for each in found.data])
    await calls("files.content", lambda: api.content(file.id), lambda found: found.startswith(ROWS))
    bad = folder / f"{calls.name}-bad.jsonl"
    await asyncio.to_thread(bad.write_bytes, b"nonsense of %b\n" % calls.name.encode())
    wrong = await calls("files.upload, wrong", lambda: api.upload(bad, check=False), lambda found: found.id)
    await calls(
        "files.retrieve, with its errors",
        lambda: api.retrieve(wrong.id),
        lambda found: (found.processing_status, found.validation_report.error_type) == ("INVALID_FORMAT",) * 2,
    )
    await calls("files.delete", lambda: api.delete(wrong.id), lambda gone: gone.deleted)
    await calls.refused("files.retrieve, deleted", lambda: api.retrieve(wrong.id), "No such File", 404)
    return str(file.id)


async def check_jobs(calls: TogetherCalls, file_id: str) -> str:
    """Create jobs, look at them, cancel and delete one; return the id of one that succeeded."""
    api = calls.client.fine_tuning
    await calls("fine_tuning.model_limits", lambda: api.model_limits(model_name="ada"))
    await calls.refused("fine_tuning.model_limits, unknown", lambda: api.model_limits(model_name="gpt"), "gpt", 404)
    await calls(
        "fine_tuning.estimate_price",
        lambda: api.estimate_price(training_file=file_id, model="ada", n_epochs=2),
        lambda found: found.allowed_to_proceed and found.estimated_total_price == 0,
    )
    plain: Any = {"training_file": file_id, "model": "ada"}
    job = await calls(
        "fine_tuning.create with many parameters",
        lambda: api.create(
            **plain,
            validation_file=file_id,
            n_epochs=3,
            n_evals=3,
            n_checkpoints=2,
            batch_size=4,
            learning_rate=0.05,
            suffix=f"odd-{calls.name}",
            random_seed=7,
            train_on_inputs=False,
            lora=False,
        ),
        lambda made: made.status in ("queued", "running") and (made.suffix, made.n_epochs) == (f"odd-{calls.name}", 3),
    )
    defaults = await calls("fine_tuning.create with defaults", lambda: api.create(**plain), lambda made: made.id)
    await calls.refused("fine_tuning.create, LoRA", lambda: api.create(**plain, lora=True, lora_r=4), "training_type")
    await calls.refused("fine_tuning.create, DPO", lambda: api.create(**plain, training_method="dpo"), "sft")
    await calls.refused("fine_tuning.create, 51 epochs", lambda: api.create(**plain, n_epochs=51), "n_epochs")
    long = await calls("fine_tuning.create, a long one", lambda: api.create(**plain, n_epochs=50), lambda made: made.id)
    await calls("fine_tuning.cancel", lambda: api.cancel(long.id), lambda found: found.status == "cancelled")
    await calls("fine_tuning.delete", lambda: api.delete(long.id), lambda found: found.message)
    await calls.refused("fine_tuning.retrieve, deleted", lambda: api.retrieve(long.id), "No such fine-tune", 404)
    for each in (job, defaults):
        await calls.ended(each.id)
    await calls(
        "fine_tuning.retrieve, succeeded",
        lambda: api.retrieve(job.id),
        lambda found: (
            (found.status, found.batch_size, found.learning_rate, found.epochs_completed) == ("completed", 4, 0.05, 3)
            and found.token_count > 0
            and found.events[-1].type == "job_complete"
        ),
    )
    await calls("fine_tuning.list", api.list, lambda found: {job.id, defaults.id} <= {each.id for each in found.data})
    return str(job.id)


async def check_history(calls: TogetherCalls, job_id: str) -> str:
    """Read a job's events, checkpoints and figures; return the name of its model."""
    api = calls.client.fine_tuning
    await calls(
        "fine_tuning.list_events",
        lambda: api.list_events(job_id),
        lambda found: (
            (found.data[0].message, found.data[-1].message) == (f"Created fine-tune: {job_id}", "Fine-tune succeeded")
        ),
    )
    await calls(
        "fine_tuning.list_checkpoints",
        lambda: api.list_checkpoints(job_id),
        lambda found: [each.step for each in found.data] == [33, 22, 11],
    )
    await calls(
        "fine_tuning.list_metrics",
        lambda: api.list_metrics(job_id),
        lambda found: [row["train/global_step"] for row in found.metrics] == list(range(1, 34)),
    )
    await calls(
        "fine_tuning.list_metrics, sampled from step 10",
        lambda: api.list_metrics(job_id, global_step_from=10, resolution=3),
        lambda found: sum("train/loss" in row for row in found.metrics) == 3,
    )
    job = await calls.run(lambda: api.retrieve(job_id))
    return str(job.x_model_output_name)


async def check_models(calls: TogetherCalls, model: str) -> None:
    """Ask a model for completions."""
    client = calls.client
    await calls(
        "completions.create",
        lambda: calls.lenient.completions.create(model=model, prompt="3 ->", max_tokens=1, temperature=0),
        lambda found: found.choices[0].text == " odd",
    )
    await calls(
        "models.list_supported",
        client.models.list_supported,
        lambda found: [each.id for each in found.data] == ["ada", "babbage", "curie", "davinci"],
    )
    await calls("models.retrieve_supported", lambda: client.models.retrieve_supported("ada"), lambda found: found.id)


async def check_parts(calls: TogetherCalls, folder: Path) -> None:
    """Upload a file in parts: the client does so above 5 GB, a size that is lowered here."""
    path = folder / f"{calls.name}-parts.jsonl"
    await asyncio.to_thread(path.write_bytes, ROWS * 2 + calls.name.encode())
    before = upload_manager.MULTIPART_THRESHOLD_GB
    upload_manager.MULTIPART_THRESHOLD_GB = 0
    try:
        await calls.refused(
            "files.upload in parts", lambda: calls.client.files.upload(path, check=False), "Not Found", 404
        )
    finally:
        upload_manager.MULTIPART_THRESHOLD_GB = before


async def check(calls: TogetherCalls, folder: Path) -> None:
    """Make every call."""
    file_id = await check_files(calls, folder)
    await check_parts(calls, folder)
    job_id = await check_jobs(calls, file_id)
    model = await check_history(calls, job_id)
    await check_models(calls, model)
    print(f"{calls.name}: {calls.count} calls, all as expected")


async def check_command_line(server: LocalServer, folder: Path) -> None:
    """Run each command of the group ``fine-tuning`` that the server has a call for."""
    path = folder / "shell.jsonl"
    await asyncio.to_thread(path.write_bytes, ROWS + b'{"prompt": "shell", "completion": " x"}\n')
    environment = {
        **os.environ,
        "TOGETHER_API_KEY": server.api_key,
        "TOGETHER_BASE_URL": _root(server),
        # Without a project, each command first asks a later version of the API who is asking.
        "TOGETHER_PROJECT_ID": "project-local",
        "TOGETHER_TELEMETRY_DISABLED": "1",
        "HOME": str(folder),
        "COLUMNS": "200",
    }

    async def run(*words: str) -> Any:
        command = (str(Path(sys.executable).with_name("together")), *words)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)
        stdout, stderr = await process.communicate()
        if process.returncode != 0:
            raise SystemExit(f"together {' '.join(words)}: {process.returncode}: {stdout.decode()}{stderr.decode()}")
        print(f"together {' '.join(words[:3])}: ok")
        return stdout.decode()

    options = ("--json", "--non-interactive")
    group = "fine-tuning"
    await run(group, "model-limits", "ada", *options)
    await run(
        group, "create", str(path), "--model", "ada", "--n-epochs", "2", "--no-lora", "--confirm", "--non-interactive"
    )
    jobs = json.loads(await run(group, "list", *options))
    job_id = (jobs["data"] if isinstance(jobs, dict) else jobs)[0]["id"]
    while json.loads(await run(group, "retrieve", job_id, *options))["status"] not in OVER:
        await asyncio.sleep(0.5)
    for command in ("list-events", "list-checkpoints", "list-metrics"):
        found = json.loads(await run(group, command, job_id, *options))
        if not found:
            raise SystemExit(f"{command} shows nothing")
        await run(group, command, job_id, "--non-interactive", "--no-json")
    await run(group, "list", "--non-interactive", "--no-json")
    # It must still run when the next command, which takes seconds to start, cancels it.
    large = folder / "large.jsonl"
    await asyncio.to_thread(large.write_bytes, ROWS * 100)
    await run(group, "create", str(large), "--model", "davinci", "--n-epochs", "50", "--confirm", "--non-interactive")
    jobs = json.loads(await run(group, "list", *options))
    long_id = next(each["id"] for each in (jobs["data"] if isinstance(jobs, dict) else jobs) if each["id"] != job_id)
    await run(group, "cancel", long_id, *options)
    await run(group, "delete", long_id, *options)


def _root(server: LocalServer) -> str:
    """The URL that Together's client wants: without the ``/v1``, which it adds itself."""
    return server.url_of("together").removesuffix("/v1")


async def main() -> None:
    """Check both clients and the command line against one server."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with LocalServer() as server:
            options: Any = {"api_key": server.api_key, "base_url": _root(server), "max_retries": 0}
            with (
                together.Together(_strict_response_validation=True, **options) as strict,
                together.Together(**options) as lenient,
            ):
                await check(TogetherCalls("sync", strict, lenient), folder)
            async with (
                together.AsyncTogether(_strict_response_validation=True, **options) as strict_async,
                together.AsyncTogether(**options) as lenient_async,
            ):
                await check(TogetherCalls("async", strict_async, lenient_async), folder)
            await check_command_line(server, folder)
    print(f"together {together.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    asyncio.run(main())
