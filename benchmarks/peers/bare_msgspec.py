"""Bare aiohttp with msgspec: replies become typed objects, checked field by field, as fast as that goes."""

# ruff: noqa: D101, D102  # the harness says what each coroutine does; the classes are those of the reference

from __future__ import annotations

import msgspec  # type: ignore[import-not-found,unused-ignore]  # in its own environment alone

from benchmarks.peers import bare, harness


class File(msgspec.Struct):  # type: ignore[misc,unused-ignore]  # of a class that mypy does not see
    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str | None = None
    status_details: str | None = None


class Event(msgspec.Struct):  # type: ignore[misc,unused-ignore]  # of a class that mypy does not see
    created_at: int
    level: str
    message: str


class Hyperparams(msgspec.Struct):  # type: ignore[misc,unused-ignore]  # of a class that mypy does not see
    batch_size: int
    learning_rate_multiplier: float
    n_epochs: int
    prompt_loss_weight: float
    classification_n_classes: int | None = None
    classification_positive_class: str | None = None
    compute_classification_metrics: bool | None = None


class FineTune(msgspec.Struct):  # type: ignore[misc,unused-ignore]  # of a class that mypy does not see
    id: str
    created_at: int
    hyperparams: Hyperparams
    model: str
    organization_id: str
    result_files: list[File]
    status: str
    training_files: list[File]
    updated_at: int
    validation_files: list[File]
    fine_tuned_model: str | None = None
    events: list[Event] | None = None


class Listing(msgspec.Struct):  # type: ignore[misc,unused-ignore]  # of a class that mypy does not see
    data: list[FineTune]


class Request(msgspec.Struct):  # type: ignore[misc,unused-ignore]  # of a class that mypy does not see
    training_file: str
    model: str


_ENCODER = msgspec.json.Encoder()
_JOB = msgspec.json.Decoder(FineTune)
_LISTING = msgspec.json.Decoder(Listing)
_EVENT = msgspec.json.Decoder(Event)


class Msgspec(bare.Bare):
    """One shared `aiohttp.ClientSession`, and structs."""

    async def create(self) -> str:
        body = _ENCODER.encode(Request(harness.TRAINING_FILE, "ada"))
        headers = {"Content-Type": "application/json"}
        async with self._http.post(f"{self.base_url}/fine-tunes", data=body, headers=headers) as reply:
            job: FineTune = _JOB.decode(await reply.read())
            return job.id

    async def list(self) -> int:
        async with self._http.get(f"{self.base_url}/fine-tunes") as reply:
            listing: Listing = _LISTING.decode(await reply.read())
        return len(listing.data) if listing.data[-1].training_files[0].id else 0

    async def stream(self) -> int:
        events = 0
        async with self._http.get(f"{self.base_url}/fine-tunes/{harness.JOB}/events?stream=true") as reply:
            async for line in reply.content:
                if line.startswith(b"data: "):
                    data = line[6:].strip()
                    if data == b"[DONE]":
                        break
                    events += bool(_EVENT.decode(data).message)
        return events


if __name__ == "__main__":
    harness.main(Msgspec)
