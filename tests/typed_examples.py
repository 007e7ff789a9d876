"""What a type checker says of the public API. It is checked by mypy and pyright, and never run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, assert_type

import aiohttp
import attrs

from aiofinetune import (
    APIError,
    Batch,
    BatchStopped,
    Checkpoint,
    Completion,
    CreateUncertain,
    Deleted,
    Entry,
    EventStream,
    Failure,
    File,
    FineTune,
    FineTuneEnded,
    FineTuneError,
    FineTuneEvent,
    FineTuneFailed,
    FineTuneRequest,
    FineTuneSession,
    FineTuneUnreadable,
    Hyperparams,
    ManifestInvalid,
    Method,
    Model,
    Outcome,
    Problem,
    Progress,
    RequestInvalid,
    ResultRow,
    Retry,
    Timeout,
    check_manifest,
    last_figures,
    read_manifest,
)
from aiofinetune.dialects import DIALECTS, Dialect
from aiofinetune.local import LocalServer
from aiofinetune.results import Results


async def call_every_endpoint(http: aiohttp.ClientSession) -> None:
    """Each coroutine of the session returns the class that its endpoint promises."""
    async with FineTuneSession("key", retry=Retry(attempts=2), timeout=Timeout(reply=5), http=http) as session:
        assert_type(session, FineTuneSession)
        file = assert_type(await session.upload_file(b"{}", progress=print), File)
        request = FineTuneRequest(training_file=file.id, model="ada", n_epochs=2)
        job = assert_type(await session.create_fine_tune(request), FineTune)
        assert_type(await session.list_fine_tunes(), tuple[FineTune, ...])
        assert_type(await session.cancel_fine_tune(job.id), FineTune)
        assert_type(await session.list_fine_tune_events(job.id), tuple[FineTuneEvent, ...])
        async with assert_type(session.stream_fine_tune_events(job.id), EventStream) as events:
            async for event in events:
                assert_type(event, FineTuneEvent)
        assert_type(await session.wait(job.id, timeout=60), FineTune)
        assert_type(await session.results(job), Results)
        assert_type(await session.list_models(), tuple[Model, ...])
        assert_type(await session.delete_model("ada:ft-x"), Deleted)
        assert_type(await session.create_completion("ada", ["a", "b"], stop="\n"), Completion)
        assert_type(await session.download_file("file-1"), bytes)
        assert_type(await session.download_file("file-1", "results.csv"), Path)
        assert_type(session.times_throttled, int)
        assert_type(session.base_url, str)


async def call_what_some_services_have() -> None:
    """Other dialects have calls and fields of their own, with the same classes."""
    dialect = assert_type(DIALECTS["jobs"], Dialect)
    async with FineTuneSession(
        fetch_token, dialect="azure", base_url="https://x.openai.azure.com/openai/v1"
    ) as session:
        request = FineTuneRequest(
            training_file="file-1",
            model="mini",
            n_epochs="auto",
            seed=7,
            metadata={"team": "birds"},
            method=Method("preference", {"beta": 0.1}),
            extra={"trainingType": "Standard"},
        )
        job = assert_type(await session.create_fine_tune(request), FineTune)
        async for listed in session.iter_fine_tunes():
            assert_type(listed, FineTune)
        assert_type(await session.pause_fine_tune(job.id), FineTune)
        assert_type(await session.resume_fine_tune(job.id), FineTune)
        for checkpoint in assert_type(await session.list_checkpoints(job.id), tuple[Checkpoint, ...]):
            assert_type(checkpoint.fine_tuned_model_checkpoint, str | None)
            assert_type(checkpoint.metrics, Mapping[str, float] | None)
        assert_type(job.metadata, Mapping[str, str] | None)
        assert_type(job.method, Method | None)
        assert_type(job.error, Failure | None)
        assert_type(job.service_status, str | None)
        assert_type(job.trained_tokens, int | None)
        assert_type(session.dialect, Dialect)
    FineTuneSession("key", dialect=attrs.evolve(dialect, page_size=10))


async def fetch_token() -> str:
    """Return an access token."""
    return "token"


def read_a_job(job: FineTune) -> None:
    """What a service does not say is None."""
    assert_type(job.id, str)
    assert_type(job.status, str)
    assert_type(job.is_terminal, bool)
    assert_type(job.fine_tuned_model, str | None)
    assert_type(job.created_at, int | None)
    assert_type(job.hyperparams, Hyperparams)
    assert_type(job.training_files, tuple[File, ...])


async def run_a_batch(session: FineTuneSession, manifest: Path) -> None:
    """A batch takes requests or entries, and yields outcomes."""
    entries = [*read_manifest(manifest), Entry("one", FineTuneRequest(training_file="file-1"))]
    async with Batch(session, entries, max_active=3, journal="sweep.journal") as batch:
        async for outcome in batch:
            assert_type(outcome, Outcome)
            assert_type(
                outcome.status, Literal["succeeded", "failed", "cancelled", "rejected", "uncertain", "vanished"]
            )
            assert_type(outcome.figures, Mapping[str, float])
        assert_type(batch.progress, Progress)
        assert_type(await batch.run(), list[Outcome])


def catch(error: FineTuneError, rows: list[ResultRow]) -> None:
    """Each error has typed fields."""
    match error:
        case CreateUncertain():
            assert_type(error.candidate_ids, tuple[str, ...])
        case FineTuneUnreadable():
            assert_type(error.fine_tune_id, str)
        case FineTuneFailed() | FineTuneEnded():
            assert_type(error.job, FineTune)
        case BatchStopped():
            assert_type(error.outcomes, tuple[Outcome, ...])
        case ManifestInvalid():
            assert_type(error.problems, tuple[Problem, ...])
        case RequestInvalid():
            assert_type(error.field, str)
        case APIError():
            assert_type(error.retry_after, float | None)
        case _:
            pass
    assert_type(last_figures(rows), dict[str, float])


async def serve(manifest: Path) -> None:
    """The embedded server says where it is, and which key it takes."""
    async with LocalServer(manifest.parent, port=0) as server:
        assert_type(server.base_url, str)
        assert_type(server.api_key, str)
    check_manifest(manifest)
