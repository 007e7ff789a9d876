"""The newest openai, on httpx or (variant ``aiohttp``) on aiohttp.

It no longer knows the fine-tunes API; there its client is used as it offers for such: ``client.post(path,
cast_to=…)``, with the classes that its last release with ``client.fine_tunes`` had. In the jobs dialects it is used as
it comes.
"""

# ruff: noqa: D102  # the harness says what each coroutine does

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import openai  # type: ignore[import-not-found,unused-ignore]  # in its own environment alone

from benchmarks.peers import harness


class File(openai.BaseModel):  # type: ignore[misc,name-defined,unused-ignore]
    """As in openai 1.7.1."""

    id: str
    bytes: int
    created_at: int
    filename: str
    object: str
    purpose: str
    status: str
    status_details: str | None = None


class Event(openai.BaseModel):  # type: ignore[misc,name-defined,unused-ignore]
    """As in openai 1.7.1."""

    created_at: int
    level: str
    message: str
    object: str


class Hyperparams(openai.BaseModel):  # type: ignore[misc,name-defined,unused-ignore]
    """As in openai 1.7.1."""

    batch_size: int
    learning_rate_multiplier: float
    n_epochs: int
    prompt_loss_weight: float
    classification_n_classes: int | None = None
    classification_positive_class: str | None = None
    compute_classification_metrics: bool | None = None


class FineTune(openai.BaseModel):  # type: ignore[misc,name-defined,unused-ignore]
    """As in openai 1.7.1."""

    id: str
    created_at: int
    fine_tuned_model: str | None = None
    hyperparams: Hyperparams
    model: str
    object: str
    organization_id: str
    result_files: list[File]
    status: str
    training_files: list[File]
    updated_at: int
    validation_files: list[File]
    events: list[Event] | None = None


class Listing(openai.BaseModel):  # type: ignore[misc,name-defined,unused-ignore]
    """The envelope of a list."""

    data: list[FineTune]
    object: str


class OpenAI(harness.Client):
    """One `AsyncOpenAI`, and typed results."""

    async def __aenter__(self) -> Self:
        options: dict[str, Any] = {"api_key": harness.KEY, "base_url": self.base_url}
        if self.variant == "aiohttp":
            options["http_client"] = openai.DefaultAioHttpClient()
        if self.dialect == "azure":
            self._client = openai.AsyncAzureOpenAI(api_version="preview", **options)
        else:
            self._client = openai.AsyncOpenAI(**options)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.close()

    async def create(self) -> str:
        if self.dialect != "fine-tunes":
            jobs = self._client.fine_tuning.jobs
            return str((await jobs.create(training_file=harness.TRAINING_FILE, model="ada")).id)
        body = {"training_file": harness.TRAINING_FILE, "model": "ada"}
        return str((await self._client.post("/fine-tunes", cast_to=FineTune, body=body)).id)

    async def list(self) -> int:
        if self.dialect != "fine-tunes":
            limit = openai.omit if self.dialect == "nebius" else 100
            found = [job async for job in self._client.fine_tuning.jobs.list(limit=limit)]
            return len(found) if found[-1].training_file else 0
        jobs = (await self._client.get("/fine-tunes", cast_to=Listing)).data
        return len(jobs) if jobs[-1].training_files[0].id else 0

    async def stream(self) -> int:
        given = 0
        path = f"/fine-tunes/{harness.JOB}/events?stream=true"
        async with await self._client.get(
            path, cast_to=Event, stream=True, stream_cls=openai.AsyncStream[Event]
        ) as events:
            async for event in events:
                given += bool(event.message)
        return given

    async def upload(self, path: Path) -> None:
        with path.open("rb") as file:
            await self._client.files.create(file=file, purpose="fine-tune")

    async def download(self, path: Path) -> None:
        async with self._client.files.with_streaming_response.content(harness.TRAINING_FILE) as reply:
            await reply.stream_to_file(path)


if __name__ == "__main__":
    harness.main(OpenAI)
