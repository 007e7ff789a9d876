"""How Together's jobs, events, files and figures are read. Pure functions."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given

from aiofinetune import Failure, FineTuneError, Hyperparams, Method, ProtocolViolation
from aiofinetune._other_models import Metrics
from aiofinetune.dialects import DIALECTS, Endpoints
from aiofinetune.dialects._choice import fitting, of_upload
from aiofinetune.dialects._replies import decode
from aiofinetune.dialects._requests import Endpoint, Reply
from aiofinetune.dialects._together import TOGETHER
from aiofinetune.results._rows import read_metrics
from tests.support.strategies import JSON

ENDPOINTS = TOGETHER.endpoints

# The example of the service's own description, and what its client reads besides.
JOB: dict[str, Any] = {
    "id": "ft-01234567890123456789", "status": "queued", "created_at": "2023-05-17T17:35:45.123Z",
    "updated_at": "2023-05-17T18:46:23.456Z", "user_id": "user_01234567890123456789",
    "owner_address": "user@example.com", "total_price": 1_500_000_000, "token_count": 850000, "events": [],
    "model": "llama", "model_output_name": "mine/llama-sun-32162631", "n_epochs": 3, "batch_size": "max",
    "learning_rate": 1e-05, "training_file": "file-01234567890123456789", "validation_file": "", "suffix": "sun",
    "random_seed": 7, "training_method": {"method": "dpo", "dpo_beta": 0.1, "rpo_alpha": None},
    "training_type": {"type": "Full"}, "progress": {"estimate_available": True, "seconds_remaining": 90},
}  # fmt: skip


def read(endpoint: Endpoint[Any], body: object) -> Any:
    return decode(endpoint, Reply(200, {}, json.dumps(body).encode()))


def job_of(**changes: object) -> Any:
    return read(ENDPOINTS.retrieve_fine_tune, JOB | changes)


def test_job() -> None:
    """A job has the reference's status beside the service's word, its times in seconds, its price in dollars."""
    job = job_of()
    assert (job.id, job.status, job.service_status) == ("ft-01234567890123456789", "pending", "queued")
    assert (job.created_at, job.updated_at) == (1684344945, 1684349183)
    assert [file.id for file in job.training_files] == ["file-01234567890123456789"]
    assert job.validation_files == ()
    assert job.hyperparams == Hyperparams(n_epochs=3, batch_size="max", learning_rate=1e-5)
    assert (job.price, job.trained_tokens, job.seed, job.suffix) == (1.5, 850000, 7, "sun")
    assert (job.seconds_remaining, job.fine_tuned_model, job.error) == (90, None, None)
    assert job.method == Method("preference", {"dpo_beta": 0.1})


STATUSES = {
    "queued": "pending", "compressing": "running", "uploading": "running", "cancel_requested": "running",
    "completed": "succeeded", "error": "failed", "user_error": "failed",
}  # fmt: skip


@pytest.mark.parametrize("word", [*STATUSES, "pending", "running", "cancelled", "melting"])
def test_status(word: str) -> None:
    """A known word is read as the reference's and kept beside it; an unknown one passes, and is no end."""
    job = job_of(status=word)
    assert job.status == STATUSES.get(word, word)
    assert job.service_status == (word if word in STATUSES else None)
    assert job.is_terminal == (STATUSES.get(word, word) in ("succeeded", "failed", "cancelled"))
    # The name is there from the start, the model only at the end.
    assert job.fine_tuned_model == ("mine/llama-sun-32162631" if word == "completed" else None)


@pytest.mark.parametrize("kind", ["job_error", "JOB_ERROR", "JOB_USER_ERROR"])
def test_error(kind: str) -> None:
    """A job that failed says why in its last event of an error; one that has not failed has none."""
    events = [
        {"type": "warning", "message": "hot", "created_at": "2023-05-17T17:35:45Z"},
        {"type": kind, "message": "out of memory", "created_at": "2023-05-17T17:35:46Z"},
        {"type": "refund", "message": "refunded", "created_at": "2023-05-17T17:35:47Z"},
    ]
    assert job_of(status="error", events=events).error == Failure("out of memory", kind.lower())
    assert job_of(status="running", events=events).error is None
    assert job_of(status="error", events=None).error is None


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"validation_file": "file-2"}, "validation_files", "file-2"),
        ({"progress": {"estimate_available": False, "seconds_remaining": 0}}, "seconds_remaining", None),
        ({"progress": {"estimate_available": True, "seconds_remaining": 1.6}}, "seconds_remaining", 2),
        ({"progress": None}, "seconds_remaining", None),
        ({"total_price": None}, "price", None),
        ({"total_price": "much"}, "price", None),
        ({"suffix": ""}, "suffix", ""),
        ({"suffix": None}, "suffix", None),
        ({"training_method": {"method": "new"}}, "method", Method("new")),
        ({"training_method": None}, "method", None),
        ({"batch_size": 16}, "hyperparams", Hyperparams(3, 16, learning_rate=1e-5)),
        ({"created_at": "yesterday"}, "created_at", None),
    ],
)
def test_odd_fields(changes: dict[str, Any], field: str, expected: object) -> None:
    """What the service sends in other forms, or leaves out, is read as what it says, or as nothing."""
    found = getattr(job_of(**changes), field)
    assert (found[0].id if isinstance(found, tuple) else found) == expected


def test_events() -> None:
    """Events are oldest first whichever way they come, also those of one second; levels and empty texts are mended."""
    events = [
        {"created_at": "2023-05-17T17:35:45.100Z", "message": "one", "type": "job_pending", "level": None},
        {"created_at": "2023-05-17T17:35:45.200Z", "message": "", "type": "TRAINING_START", "level": "Info"},
        {"created_at": "2023-05-17T17:35:45.300Z", "message": "two", "type": "warning", "level": "legacy_iwarning"},
    ]
    for sent in (events, events[::-1]):
        found = read(ENDPOINTS.list_fine_tune_events, {"data": sent}).data
        assert [(event.message, event.level) for event in found] == [
            ("one", "info"),
            ("TRAINING_START", "info"),
            ("two", "warning"),
        ]
        assert {event.created_at for event in found} == {1684344945}


@pytest.mark.parametrize(
    ("changes", "status", "details"),
    [
        ({"processing_status": "COMPLETED"}, "processed", None),
        ({"processing_status": "QUEUED"}, "pending", None),
        ({"processing_status": "RUNNING"}, "running", None),
        ({"processing_status": None}, None, None),
        ({"Processed": True}, "processed", None),
        ({"Processed": False}, None, None),
        ({"processing_status": "THINKING"}, "thinking", None),
        (
            {
                "processing_status": "COMPLETED",
                "validation_report": {"valid": True, "nlines": 2, "dataset_format": "X"},
            },
            "processed",
            "2 lines, x",
        ),
        (
            {
                "processing_status": "INVALID_FORMAT",
                "validation_report": {"valid": False, "error_type": "INVALID_FORMAT", "error": "line 3 is not JSON"},
            },
            "error",
            "INVALID_FORMAT: line 3 is not JSON",
        ),
        (
            {"processing_status": "FAILED", "validation_report": {"valid": False}},
            "error",
            "FAILED: the service does not say why",
        ),
    ],
)
def test_file(changes: dict[str, Any], status: str | None, details: str | None) -> None:
    """A file's state has the reference's words, and its details are the service's report."""
    file = {"id": "file-1", "object": "file", "bytes": 5, "filename": "a.jsonl", "purpose": "fine-tune"}
    found = read(ENDPOINTS.retrieve_file, file | changes)
    assert (found.status, found.status_details) == (status, details)


def test_checkpoints() -> None:
    """Checkpoints have the step, and a name of what was saved."""
    rows = [
        {"step": 20, "path": "s3://bucket/20", "created_at": "2023-05-17T17:35:45Z", "checkpoint_type": "Final"},
        {"step": 10, "path": "s3://bucket/10", "object_id": "ml_1", "object_name": "mine/llama"},
    ]
    assert ENDPOINTS.list_checkpoints is not None
    last, first = read(ENDPOINTS.list_checkpoints, {"data": rows}).data
    assert (last.id, last.step_number, last.created_at) == ("s3://bucket/20", 20, 1684344945)
    assert (first.id, first.fine_tuned_model_checkpoint) == ("ml_1", "mine/llama")


def test_metrics() -> None:
    """Figures are rows of results; what the reference has has its name, and a row without a step is of the last one."""
    rows = [
        {"train/loss": 0.5, "train/learning_rate": 1e-4, "train/global_step": 7},
        {"eval/loss": 0.4},
        {"train/loss": 0.45, "train/learning_rate": 9e-5, "train/global_step": 14},
    ]
    assert ENDPOINTS.list_metrics is not None
    results = read_metrics(read(ENDPOINTS.list_metrics, {"metrics": rows}).rows)
    assert results.series("training_loss") == [(7, 0.5), (14, 0.45)]
    assert results.series("validation_loss") == [(7, 0.4)]
    assert results.series("train/learning_rate") == [(7, 1e-4), (14, 9e-5)]
    assert read(ENDPOINTS.list_metrics, {}) == Metrics()


def test_parts() -> None:
    """A multipart upload says where each part goes, in either of the two forms that the client reads."""
    assert ENDPOINTS.begin_upload is not None
    begun = read(
        ENDPOINTS.begin_upload,
        {
            "upload_id": "u",
            "file_id": "f",
            "parts": [
                {"PartNumber": 1, "URL": "https://a/1?secret", "Headers": {"x": "y"}},
                {"part_number": 2, "UploadURL": "https://a/2?secret"},
            ],
        },
    )
    assert [(each.number, each.url, each.headers) for each in begun.targets] == [
        (1, "https://a/1?secret", {"x": "y"}),
        (2, "https://a/2?secret", None),
    ]
    assert "secret" not in repr(begun)


@given(JSON)
def test_any_json(value: Any) -> None:
    """Whatever JSON the service sends in place of a reply, it is read or refused, and nothing else is raised."""
    odd = JOB | dict.fromkeys(("status", "events", "progress", "training_method", "total_price", "suffix"), value)
    parts = {"upload_id": "u", "file_id": "f", "parts": value, "metrics": value, "file": value}
    file = {"id": "f", "processing_status": value, "validation_report": value}
    for body in (value, odd, {"data": [value]}, {"data": value}, parts, file, {"data": [{"events": [value]}]}):
        for name in Endpoints.__annotations__:
            endpoint = getattr(ENDPOINTS, name)
            if endpoint is not None and endpoint.result is not bytes:
                with contextlib.suppress(FineTuneError):
                    decode(endpoint, Reply(200, {}, json.dumps(body).encode()))


LIST_ONLY = {name: JOB[name] for name in ("id", "status", "created_at", "updated_at", "training_file")}


@pytest.mark.parametrize("dialect", [each for each in DIALECTS.values() if each is not TOGETHER])
@pytest.mark.parametrize("job", [JOB, LIST_ONLY])
def test_fitting(dialect: Any, job: dict[str, Any]) -> None:
    """Every other dialect knows a job of this one, alone and in a list; this one knows the others'."""
    for body in (job, {"data": [job]}):
        assert fitting(json.dumps(body).encode(), dialect) is TOGETHER
        assert fitting(json.dumps(body).encode(), TOGETHER) is None
    theirs = b'{"object": "fine-tune", "id": "ft-1", "hyperparams": {}, "training_files": []}'
    assert fitting(theirs, TOGETHER) is DIALECTS["fine-tunes"]
    assert fitting(b'{"object": "fine_tuning.job", "id": "x"}', TOGETHER) is DIALECTS["jobs"]
    assert of_upload({"X-Together-File-Id": "f"}, dialect) is TOGETHER
    assert of_upload({"X-Together-File-Id": "f"}, TOGETHER) is None
    assert of_upload({}, dialect) is None


@pytest.mark.parametrize("count", [0, 1, 20, 100])
def test_list_is_whole(count: int) -> None:
    """A list that does not say whether it has more is whole, however many rows it has: it is proof for a search."""
    rows = read(ENDPOINTS.list_rows, {"data": [JOB | {"id": f"ft-{number}"} for number in range(count)]})
    assert (len(rows.jobs), rows.is_whole, rows.has_more) == (count, True, False)


def test_row_without_an_id() -> None:
    """A list with a row that has no id cannot be read, and is no proof for a search."""
    body = {"data": [JOB, {"status": "completed"}]}
    with pytest.raises(ProtocolViolation, match=r"data\[1\]"):
        read(ENDPOINTS.list_fine_tunes, body)
    rows = read(ENDPOINTS.list_rows, body)
    assert (len(rows.jobs), rows.is_whole) == (1, False)
