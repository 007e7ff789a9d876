"""OpenAI's own client against the embedded server: the whole jobs API, sync and async, with the client's strict models.

    python -m tests.clients.openai_jobs

It needs an environment with ``openai`` and what the embedded server needs. It prints each call, and exits with an error
at the first that fails.

The client validates each reply against its models (``_strict_response_validation``). Two kinds of replies cannot pass,
whatever the service: a paused job, because the models have no such status, and all parts but the last of a streamed
completion, because the models require a ``finish_reason``. These are read by a client that is not strict.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

import openai

from aiofinetune.local import LocalServer
from tests.clients.calls import Calls

CHATS = "\n".join(
    json.dumps(
        {
            "messages": [
                {"role": "system", "content": "Say odd or even."},
                {"role": "user", "content": str(number)},
                {"role": "assistant", "content": "odd" if number % 2 else "even"},
            ]
        }
    )
    for number in range(20)
).encode()
ASKED = [{"role": "system", "content": "Say odd or even."}, {"role": "user", "content": "3"}]


def supervised(**hyperparameters: object) -> dict[str, object]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


class OpenAICalls(Calls):
    """The calls of OpenAI's client."""

    async def refused(self, what: str, call: Callable[[], Any], param: str, status: int = 400) -> None:
        """Call, and check that the service refuses, naming a parameter."""
        try:
            result = await self.run(call)
        except openai.APIStatusError as error:
            if (error.status_code, error.param) != (status, param):
                raise
            self.count += 1
            print(f"{self.name}: {what}: refused: {error.body['message']}")
        else:
            raise SystemExit(f"{self.name}: {what}: not refused but {result!r}")

    async def run(self, call: Callable[[], Any]) -> Any:
        """Call, and read a list or a stream to its end."""
        if isinstance(self.client, openai.OpenAI):
            return await asyncio.to_thread(lambda: _listed(call()))
        result = call()
        if inspect.isawaitable(result) and not hasattr(result, "__aiter__"):
            result = await result
        return [item async for item in result] if hasattr(result, "__aiter__") else result

    async def ended(self, job_id: str) -> None:
        """Wait until a job is over."""
        while (await self.run(lambda: self.client.fine_tuning.jobs.retrieve(job_id))).finished_at is None:
            await asyncio.sleep(0.05)


def _listed(result: Any) -> Any:
    return list(result) if isinstance(result, openai.Stream) or hasattr(result, "iter_pages") else result


async def check_files(calls: OpenAICalls) -> str:
    """Upload a file whole and in parts; return the id of one."""
    api = calls.client.files
    file = await calls("files.create", lambda: api.create(file=("chats.jsonl", CHATS), purpose="fine-tune"))
    await calls("files.retrieve", lambda: api.retrieve(file.id), lambda found: found == file)
    await calls("files.list by pages", lambda: api.list(limit=1), lambda found: file in found)
    await calls("files.content", lambda: api.content(file.id), lambda found: found.content == CHATS)
    await calls("files.wait_for_processing", lambda: api.wait_for_processing(file.id))
    return str(file.id)


async def check_uploads(calls: OpenAICalls) -> None:
    """Upload files in parts, and cancel an upload."""
    api, content = calls.client.uploads, calls.client.files.content
    about = {"purpose": "fine-tune", "bytes": len(CHATS), "mime_type": "application/jsonl"}
    upload = await calls("uploads.create", lambda: api.create(filename="parts.jsonl", **about))

    async def add_part(piece: bytes) -> str:
        return str((await calls("uploads.parts.create", lambda: api.parts.create(upload.id, data=piece))).id)

    last, first, middle = [await add_part(piece) for piece in (CHATS[700:], CHATS[:300], CHATS[300:700])]
    order = [first, middle, last]
    digest = hashlib.md5(CHATS, usedforsecurity=False).hexdigest()
    await calls.refused(
        "uploads.complete, a part missing", lambda: api.complete(upload.id, part_ids=[first, middle]), "part_ids"
    )
    await calls.refused(
        "uploads.complete, wrong md5", lambda: api.complete(upload.id, part_ids=order, md5="0" * 32), "md5"
    )
    done = await calls(
        "uploads.complete in order, with md5",
        lambda: api.complete(upload.id, part_ids=order, md5=digest),
        lambda done: (done.status, done.file.filename) == ("completed", "parts.jsonl"),
    )
    await calls("files.content of it", lambda: content(done.file.id), lambda found: found.content == CHATS)
    other = await calls("uploads.create", lambda: api.create(filename="other.jsonl", **about))
    await calls("uploads.cancel", lambda: api.cancel(other.id), lambda found: found.status == "cancelled")
    await calls.refused("uploads.parts.create, cancelled", lambda: api.parts.create(other.id, data=b"x"), "upload_id")
    chunked = await calls(
        "uploads.upload_file_chunked",
        lambda: api.upload_file_chunked(file=CHATS, filename="chunks.jsonl", part_size=400, **about),
        lambda done: done.status == "completed",
    )
    await calls("files.delete", lambda: calls.client.files.delete(chunked.file.id), lambda gone: gone.deleted)


async def check_refusals(calls: OpenAICalls, file_id: str) -> None:
    """Ask for what the trainer cannot do."""
    api = calls.client.fine_tuning.jobs

    async def refused(param: str, **given: Any) -> None:
        await calls.refused(
            f"jobs.create, {param}",
            lambda: api.create(**{"model": "ada", "training_file": file_id, **given}),
            param,
        )

    await refused("method.type", method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}})
    await refused("method.type", method={"type": "reinforcement", "reinforcement": {}})
    await refused("method.supervised.hyperparameters.n_epochs", method=supervised(n_epochs=51))
    await refused("hyperparameters.batch_size", hyperparameters={"batch_size": 257})
    await refused("integrations", integrations=[{"type": "wandb", "wandb": {"project": "x"}}])
    await refused("suffix", suffix="x" * 65)
    await refused("model", model="gpt-9")
    await refused("training_file", training_file="file-unknown")
    await refused("metadata.key", metadata={"key": "x" * 513})
    await calls.refused("jobs.retrieve, unknown", lambda: api.retrieve("ftjob-unknown"), "fine_tune_id", 404)


def is_paused(job: Any) -> bool:
    """Return whether a job is paused, and fits the strict models but for that."""
    return job.status == "paused" and bool(type(job).model_validate({**job.to_dict(), "status": "queued"}, strict=True))


async def check_jobs(calls: OpenAICalls, file_id: str) -> str:
    """Create jobs, pause, resume and cancel them; return the id of one that succeeded."""
    api, lenient = calls.client.fine_tuning.jobs, calls.lenient.fine_tuning.jobs
    mark = {"client": calls.name, 'an odd "key"': ""}
    long = await calls(
        "jobs.create, a long one",
        lambda: api.create(model="davinci", training_file=file_id, method=supervised(n_epochs=50, batch_size=1)),
    )
    job = await calls(
        "jobs.create with all parameters",
        lambda: api.create(
            model="ada",
            training_file=file_id,
            validation_file=file_id,
            method=supervised(n_epochs=20, batch_size="auto", learning_rate_multiplier="auto"),
            suffix="odd-" * 16,
            seed=7,
            metadata=mark,
        ),
        lambda made: (made.seed, made.status, made.hyperparameters.n_epochs, made.metadata) == (7, "queued", 20, mark),
    )
    old = await calls(
        "jobs.create with the older hyperparameters",
        lambda: api.create(model="ada", training_file=file_id, hyperparameters={"n_epochs": 1}),
        lambda made: made.method.supervised.hyperparameters.n_epochs == 1,
    )
    await calls("jobs.pause, queued", lambda: lenient.pause(old.id), is_paused)
    await calls("jobs.resume", lambda: api.resume(old.id), lambda found: found.status == "queued")
    while (await calls.run(lambda: api.retrieve(long.id))).status != "running":
        await asyncio.sleep(0.05)
    await calls("jobs.pause, running", lambda: lenient.pause(long.id), is_paused)
    await calls("jobs.resume", lambda: api.resume(long.id), lambda found: found.status != "running")
    await calls("jobs.cancel", lambda: api.cancel(long.id), lambda found: found.status == "cancelled")
    for each in (job, old):
        await calls.ended(each.id)
    await calls(
        "jobs.retrieve, succeeded",
        lambda: api.retrieve(job.id),
        lambda found: (
            (found.status, found.error, len(found.result_files)) == ("succeeded", None, 1) and found.trained_tokens > 0
        ),
    )
    await calls(
        "jobs.list by pages",
        lambda: api.list(limit=2),
        lambda found: [each.id for each in found][:3] == [old.id, job.id, long.id],
    )
    await calls(
        "jobs.list by metadata", lambda: api.list(metadata=mark), lambda found: [each.id for each in found] == [job.id]
    )
    await calls(
        "jobs.list without metadata",
        lambda: api.list(extra_query={"metadata": "null"}),
        lambda found: [each.id for each in found][:2] == [old.id, long.id],
    )
    return str(job.id)


async def check_history(calls: OpenAICalls, job_id: str) -> str:
    """Read a job's events, checkpoints and results; return the name of its model."""
    api, models = calls.client.fine_tuning.jobs, calls.client.models
    events = await calls(
        "jobs.list_events by pages",
        lambda: api.list_events(job_id, limit=2),
        lambda found: (found[0].message, found[-1].message) == ("Fine-tune succeeded", f"Created fine-tune: {job_id}"),
    )
    await calls("jobs.list_events again", lambda: api.list_events(job_id), lambda found: found == events)
    kept = await calls(
        "jobs.checkpoints.list by pages",
        lambda: api.checkpoints.list(job_id, limit=1),
        lambda found: (
            [each.step_number for each in found] == [20 * 20, 19 * 20, 18 * 20]
            and found[0].metrics.full_valid_loss < found[-1].metrics.full_valid_loss
        ),
    )
    first = kept[-1].fine_tuned_model_checkpoint
    await calls("models.retrieve, a checkpoint", lambda: models.retrieve(first))
    await calls("models.delete, a checkpoint", lambda: models.delete(first), lambda gone: gone.deleted)
    job = await calls.run(lambda: api.retrieve(job_id))
    await calls(
        "files.content, the results",
        lambda: calls.client.files.content(job.result_files[0]),
        lambda found: found.content.startswith(b"step,elapsed_tokens"),
    )
    return str(job.fine_tuned_model)


async def check_failure(calls: OpenAICalls, file_id: str) -> None:
    """Train on a file that is not a training file, and with a rate at which the training diverges."""
    api = calls.client.fine_tuning.jobs
    content = ("bad.jsonl", b'{"messages": []}\n')
    bad = await calls.run(lambda: calls.client.files.create(file=content, purpose="fine-tune"))
    await calls.refused(
        "jobs.create, a bad file", lambda: api.create(model="ada", training_file=bad.id), "training_file"
    )
    method = supervised(learning_rate_multiplier=1e30)
    job = await calls("jobs.create, a bad rate", lambda: api.create(model="ada", training_file=file_id, method=method))
    await calls.ended(job.id)
    await calls(
        "jobs.retrieve, failed",
        lambda: api.retrieve(job.id),
        lambda found: (found.status, "diverged" in found.error.message) == ("failed", True),
    )


async def check_models(calls: OpenAICalls, model: str) -> None:
    """Ask a model in every way, and delete it."""
    client, lenient = calls.client, calls.lenient
    await calls("models.list", client.models.list, lambda found: model in [each.id for each in found])
    await calls("models.retrieve", lambda: client.models.retrieve(model), lambda found: found.id == model)
    prompt = "system: Say odd or even.\nuser: 3\nassistant:"
    plain: Any = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    await calls(
        "completions.create", lambda: client.completions.create(**plain), lambda found: found.choices[0].text == " odd"
    )
    await calls(
        "completions.create, streamed",
        lambda: lenient.completions.create(stream=True, **plain),
        lambda found: "".join(part.choices[0].text for part in found) == " odd",
    )
    chat: Any = {"model": model, "messages": ASKED, "temperature": 0}
    await calls(
        "chat.completions.create",
        lambda: client.chat.completions.create(**chat),
        lambda found: found.choices[0].message.content == "odd" and found.usage.completion_tokens == 1,
    )
    await calls(
        "chat.completions.create, streamed",
        lambda: client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **chat),
        lambda found: (
            "".join(part.choices[0].delta.content or "" for part in found[:-1]) == "odd"
            and found[-1].usage.completion_tokens == 1
        ),
    )
    await calls.refused(
        "chat.completions.create, tools",
        lambda: client.chat.completions.create(tools=[{"type": "function", "function": {"name": "f"}}], **chat),
        "tools",
    )
    await calls("models.delete", lambda: client.models.delete(model), lambda gone: gone.deleted)
    await calls.refused("models.retrieve, deleted", lambda: client.models.retrieve(model), "model", 404)


async def check(calls: OpenAICalls) -> None:
    """Make every call."""
    file_id = await check_files(calls)
    await check_uploads(calls)
    await check_refusals(calls, file_id)
    job_id = await check_jobs(calls, file_id)
    model = await check_history(calls, job_id)
    await check_failure(calls, file_id)
    await check_models(calls, model)
    print(f"{calls.name}: {calls.count} calls, all as expected")


async def main() -> None:
    """Check both clients against one server."""
    async with LocalServer() as server:
        options: Any = {"api_key": server.api_key, "base_url": server.base_url, "max_retries": 0}
        with openai.OpenAI(_strict_response_validation=True, **options) as strict, openai.OpenAI(**options) as lenient:
            await check(OpenAICalls("sync", strict, lenient))
        async with (
            openai.AsyncOpenAI(_strict_response_validation=True, **options) as strict_async,
            openai.AsyncOpenAI(**options) as lenient_async,
        ):
            await check(OpenAICalls("async", strict_async, lenient_async))
    print(f"openai {openai.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    asyncio.run(main())
