"""What each dialect sends for the same request, what it refuses, and how its jobs are read. Pure functions."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import attrs
import pytest
from hypothesis import given

from aiofinetune import ConfigurationError, Failure, FineTuneRequest, Hyperparams, Method, RequestInvalid
from aiofinetune.dialects import DIALECTS, Dialect, Endpoints
from aiofinetune.dialects._choice import fitting, named, of_host
from aiofinetune.dialects._replies import decode
from aiofinetune.dialects._requests import Reply
from aiofinetune.errors import BadRequest, FineTuneError, NotFound
from aiofinetune.models import Listing, Rows
from tests.support.strategies import JSON

FILE: dict[str, Any] = {"training_file": "file-1"}
MINI: dict[str, Any] = FILE | {"model": "mini"}

BODIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("fine-tunes", {}, FILE),
    ("fine-tunes", {"n_epochs": 2, "suffix": "s"}, FILE | {"n_epochs": 2, "suffix": "s"}),
    ("fine-tunes", {"extra": {"gpu": [1]}}, FILE | {"gpu": [1]}),
    ("jobs", {"model": "mini"}, MINI),
    ("jobs", {"model": "mini", "seed": 0, "metadata": {"a": "b"}}, MINI | {"seed": 0, "metadata": {"a": "b"}}),
    ("jobs", {"model": "mini", "validation_file": "file-2"}, MINI | {"validation_file": "file-2"}),
    (
        "jobs",
        {"model": "mini", "n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": 0.5},
        MINI
        | {
            "method": {
                "type": "supervised",
                "supervised": {
                    "hyperparameters": {"n_epochs": "auto", "batch_size": 4, "learning_rate_multiplier": 0.5}
                },
            }
        },
    ),
    (
        "jobs",
        {"model": "mini", "n_epochs": 2, "method": Method("preference", {"beta": 0.1})},
        MINI | {"method": {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": 0.1}}}},
    ),
    (
        "jobs",
        {"model": "mini", "method": Method("reinforcement", grader={"type": "python"})},
        MINI | {"method": {"type": "reinforcement", "reinforcement": {"grader": {"type": "python"}}}},
    ),
    ("jobs", {"model": "mini", "method": "supervised"}, MINI | {"method": {"type": "supervised"}}),
    (
        "azure",
        {"model": "mini", "n_epochs": 1, "extra": {"trainingType": "Standard"}},
        MINI
        | {
            "trainingType": "Standard",
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
        },
    ),
    (
        "nebius",
        {"model": "mini", "n_epochs": 1, "learning_rate": 1e-5, "extra": {"hyperparameters": {"lora": True}}},
        MINI | {"hyperparameters": {"n_epochs": 1, "learning_rate": 1e-5, "lora": True}},
    ),
    (
        "together",
        {"model": "mini", "n_epochs": 2, "batch_size": "max", "learning_rate": 1e-5, "seed": 7, "suffix": "s"},
        MINI | {"n_epochs": 2, "batch_size": "max", "learning_rate": 1e-5, "random_seed": 7, "suffix": "s"},
    ),
    (
        "together",
        {"model": "mini", "validation_file": "file-2", "extra": {"n_evals": 3, "training_type": {"type": "Full"}}},
        MINI | {"validation_file": "file-2", "n_evals": 3, "training_type": {"type": "Full"}},
    ),
    ("together", {"extra": {"from_checkpoint": "ft-1:20"}}, FILE | {"from_checkpoint": "ft-1:20"}),
    (
        "together",
        {"model": "mini", "method": "supervised"},
        MINI | {"training_method": {"method": "sft", "train_on_inputs": "auto"}},
    ),
    (
        "together",
        {"model": "mini", "method": Method("supervised", {"train_on_inputs": False})},
        MINI | {"training_method": {"method": "sft", "train_on_inputs": False}},
    ),
    (
        "together",
        {"model": "mini", "method": Method("preference", {"dpo_beta": 0.2})},
        MINI | {"training_method": {"method": "dpo", "dpo_beta": 0.2}},
    ),
]


@pytest.mark.parametrize(("name", "parameters", "body"), BODIES)
def test_body(name: str, parameters: dict[str, Any], body: dict[str, Any]) -> None:
    """A dialect puts each parameter where its service wants it."""
    assert DIALECTS[name].body_of(FineTuneRequest(**FILE, **parameters)) == body


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("fine-tunes", {"seed": 1}, "seed", "fine-tunes"),
    ("fine-tunes", {"metadata": {}}, "metadata", "suffix"),
    ("fine-tunes", {"method": "supervised"}, "method", "supervised"),
    ("fine-tunes", {"learning_rate": 0.1}, "learning_rate", "learning_rate_multiplier"),
    ("fine-tunes", {"n_epochs": "auto"}, "n_epochs", "leave it out"),
    ("fine-tunes", {"suffix": "x" * 41}, "suffix", "1 to 40"),
    ("fine-tunes", {"n_epochs": 1, "extra": {"n_epochs": 2}}, "extra.n_epochs", "only there"),
    ("jobs", {}, "model", "required"),
    ("jobs", {"model": "m", "prompt_loss_weight": 0.1}, "prompt_loss_weight", "jobs"),
    ("jobs", {"model": "m", "learning_rate": 0.1}, "learning_rate", "learning_rate_multiplier"),
    ("jobs", {"model": "m", "classification_betas": [1]}, "classification_betas", "results file"),
    ("azure", {"model": "m", "prompt_loss_weight": 0.1}, "prompt_loss_weight", "azure"),
    ("nebius", {"model": "m", "learning_rate_multiplier": 0.1}, "learning_rate_multiplier", "learning_rate"),
    ("nebius", {"model": "m", "metadata": {"a": "b"}}, "metadata", "suffix"),
    ("nebius", {"model": "m", "batch_size": "auto"}, "batch_size", "leave it out"),
    (
        "nebius",
        {"model": "m", "n_epochs": 1, "extra": {"hyperparameters": {"n_epochs": 2}}},
        "extra.hyperparameters.n_epochs",
        "only there",
    ),
    ("together", {}, "model", "unless extra has 'from_checkpoint'"),
    (
        "together",
        {"model": "m", "learning_rate_multiplier": 0.1},
        "learning_rate_multiplier",
        "learning_rate, the rate",
    ),
    ("together", {"model": "m", "prompt_loss_weight": 0.1}, "prompt_loss_weight", "train_on_inputs"),
    ("together", {"model": "m", "metadata": {"a": "b"}}, "metadata", "suffix"),
    ("together", {"model": "m", "batch_size": "auto"}, "batch_size", "does not take 'auto'"),
    ("together", {"model": "m", "method": "reinforcement"}, "method", "only supervised, preference"),
    ("together", {"model": "m", "validation_file": "file-2"}, "validation_file", "without 'n_evals' in extra"),
    ("together", {"model": "m", "validation_file": "f", "extra": {"n_evals": 0}}, "validation_file", "no effect"),
    ("together", {"model": "m", "suffix": "x" * 41}, "suffix", "1 to 40"),
    ("together", {"model": "m", "suffix": "x" * 29 + "{key}"}, "suffix", "1 to 40 characters .* got 41"),
    ("together", {"model": "m", "seed": 1, "extra": {"random_seed": 2}}, "extra.random_seed", "only there"),
    ("jobs", {"model": "m", "batch_size": "max"}, "batch_size", "does not take 'max'"),
]


@pytest.mark.parametrize(("name", "parameters", "field", "words"), REFUSED)
def test_refused(name: str, parameters: dict[str, Any], field: str, words: str) -> None:
    """A parameter that a service lacks is refused by name, with the nearest that it has; none is dropped."""
    with pytest.raises(RequestInvalid, match=words) as caught:
        DIALECTS[name].body_of(FineTuneRequest(**FILE, **parameters))
    assert caught.value.field == field


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_every_parameter_is_sent_or_refused(dialect: Dialect) -> None:
    """Every parameter of a request is in what a dialect sends, or is refused."""
    values: dict[str, Any] = {
        **MINI, "validation_file": "file-2", "n_epochs": 31, "batch_size": 32, "learning_rate_multiplier": 0.33,
        "learning_rate": 0.34, "prompt_loss_weight": 0.35, "suffix": "suffix-36", "method": Method("preference"),
        "seed": 37, "metadata": {"name-38": "text"}, "extra": {"name-39": 1},
    }  # fmt: skip
    for name, value in values.items():
        more = {"extra": {other: 1}} if (other := dialect.acts_with.get(name)) else {}
        request = FineTuneRequest(**{**MINI, **more, name: value})
        try:
            sent = json.dumps(dialect.body_of(request))
        except RequestInvalid as error:
            assert error.field == name  # noqa: PT017  # sent or refused, both are right
        else:
            wanted = "dpo" if name == "method" else next(iter(value)) if isinstance(value, dict) else value
            assert json.dumps(wanted) in sent


def test_both_rates() -> None:
    """A request cannot ask for a rate and for a multiple of one."""
    with pytest.raises(RequestInvalid, match="learning_rate"):
        FineTuneRequest(training_file="file-1", learning_rate=0.1, learning_rate_multiplier=0.1)


def test_room_for_a_key() -> None:
    """A create carries a key where there is metadata and the user's own leaves room for one more name."""
    request = FineTuneRequest(**MINI)
    full = attrs.evolve(request, metadata={str(number): "" for number in range(16)})
    taken = attrs.evolve(request, metadata={"aiofinetune": "mine"})
    assert DIALECTS["jobs"].has_room_for_key(request)
    assert DIALECTS["azure"].has_room_for_key(attrs.evolve(request, metadata={"a": "b"}))
    assert not any(DIALECTS["jobs"].has_room_for_key(each) for each in (full, taken))
    assert not any(DIALECTS[name].has_room_for_key(request) for name in ("fine-tunes", "nebius", "together"))
    sent = DIALECTS["jobs"].body_of(attrs.evolve(request, metadata={"a": "b"}), "k")
    assert sent["metadata"] == {"a": "b", "aiofinetune": "k"}


@pytest.mark.parametrize("name", ["fine-tunes", "jobs", "nebius", "together"])
def test_key_in_the_suffix(name: str) -> None:
    """Where the caller allows it, the suffix holds the start of the key, in every dialect; else it stays as it is."""
    dialect, key = DIALECTS[name], "0123456789abcdef"
    allowed = FineTuneRequest(**MINI, suffix="team-{key}")
    assert dialect.takes_key(allowed)
    assert dialect.body_of(allowed, key)["suffix"] == "team-0123456789ab"
    assert dialect.body_of(attrs.evolve(allowed, suffix="team"), key)["suffix"] == "team"
    assert dialect.takes_key(attrs.evolve(allowed, suffix="team")) == (name == "jobs")


# Jobs

JOB = {
    "id": "ftjob-1", "object": "fine_tuning.job", "model": "mini", "created_at": 5, "finished_at": None,
    "fine_tuned_model": None, "organization_id": "org-1", "result_files": ["file-3"], "status": "queued",
    "training_file": "file-1", "validation_file": None, "hyperparameters": {"n_epochs": "auto", "batch_size": 2},
    "trained_tokens": None, "error": {}, "seed": 7, "metadata": {"a": "b"}, "estimated_finish": None,
    "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": 3}}}, "integrations": [],
}  # fmt: skip


def read(name: str, **changes: object) -> Any:
    body = json.dumps(JOB | changes).encode()
    return decode(DIALECTS[name].endpoints.retrieve_fine_tune, Reply(200, {}, body))


@pytest.mark.parametrize("name", ["jobs", "azure", "nebius"])
def test_job(name: str) -> None:
    """A job of any service is one class: its files by id, its status in the reference's words."""
    job = read(name)
    assert (job.id, job.status, job.service_status, job.model, job.created_at) == (
        "ftjob-1",
        "pending",
        "queued",
        "mini",
        5,
    )
    assert [file.id for file in job.training_files] == ["file-1"]
    assert [file.id for file in job.result_files] == ["file-3"]
    assert job.validation_files == ()
    assert job.hyperparams == Hyperparams(n_epochs="auto", batch_size=2)
    assert (job.error, job.seed, job.metadata, job.trained_tokens) == (None, 7, {"a": "b"}, None)
    assert job.method == Method("preference", {"beta": 0.1, "n_epochs": 3})


STATUSES = {
    "validating_files": "pending", "queued": "pending", "pausing": "pending", "paused": "pending",
    "created": "pending", "cancelling": "running", "canceled": "cancelled",
}  # fmt: skip


@pytest.mark.parametrize("word", [*STATUSES, "pending", "running", "succeeded", "failed", "cancelled", "melting"])
def test_status(word: str) -> None:
    """A known word is read as the reference's and kept beside it; an unknown one passes, and is no end."""
    job = read("jobs", status=word)
    assert job.status == STATUSES.get(word, word)
    assert job.service_status == (word if word in STATUSES else None)
    assert job.is_terminal == (STATUSES.get(word, word) in ("succeeded", "failed", "cancelled"))


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"result_files": None, "organization_id": None}, "result_files", ()),
        ({"hyperparameters": None}, "hyperparams", Hyperparams(n_epochs=3)),
        ({"hyperparameters": None, "method": None}, "hyperparams", Hyperparams()),
        ({"created_at": "2024-05-01T00:00:00.500Z"}, "created_at", 1714521600),
        ({"metadata": None}, "metadata", None),
        ({"metadata": {"a": 1, "b": "c"}}, "metadata", {"b": "c"}),
        ({"metadata": "x"}, "metadata", None),
        ({"method": {"type": "new", "new": None}}, "method", Method("new")),
        ({"method": "supervised"}, "method", None),
        ({"training_file": None}, "training_files", ()),
        ({"error": {"message": "bad", "code": "c", "param": None}}, "error", Failure("bad", "c")),
        ({"error": "bad"}, "error", Failure("bad")),
        ({"error": {"message": None, "code": None, "param": None}}, "error", None),
        ({"finished_at": 9}, "finished_at", 9),
        ({"trained_tokens": 100}, "trained_tokens", 100),
    ],
)
def test_odd_fields(changes: dict[str, Any], field: str, expected: object) -> None:
    """What services send in other forms is read as what it says, or as nothing."""
    assert getattr(read("azure", **changes), field) == expected


@given(JSON)
def test_any_json(value: Any) -> None:
    """Whatever JSON a service sends in place of a job, it is read or refused, and nothing else is raised."""
    for body in (value, JOB | {"status": value, "method": value, "error": value, "metadata": value}, {"data": [value]}):
        for name in Endpoints.__annotations__:
            endpoint = getattr(DIALECTS["jobs"].endpoints, name)
            if endpoint is not None and endpoint.result is not bytes:
                with contextlib.suppress(FineTuneError):
                    decode(endpoint, Reply(200, {}, json.dumps(body).encode()))


def test_lists() -> None:
    """The rows of a list are read like a job; one that cannot be is named by a search, with where to go on."""
    body = json.dumps({"data": [JOB, {"id": "ftjob-2"}], "has_more": True}).encode()
    rows = decode(DIALECTS["jobs"].endpoints.list_rows, Reply(200, {}, body))
    assert ([job.status for job in rows.jobs], rows.unreadable) == (["pending"], ("ftjob-2",))
    assert (rows.has_more, rows.is_whole, rows.last_id) == (True, False, "ftjob-2")
    whole = json.dumps({"data": [JOB]}).encode()
    listing = decode(DIALECTS["jobs"].endpoints.list_fine_tunes, Reply(200, {}, whole))
    assert isinstance(listing, Listing)
    assert listing.data[0].service_status == "queued"
    assert isinstance(decode(DIALECTS["jobs"].endpoints.list_rows, Reply(200, {}, b'{"data": null}')), Rows)


# Which dialect


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "fine-tunes"),
        ("http://127.0.0.1:8000/v1", "fine-tunes"),
        ("https://mine.openai.azure.com/openai/v1", "azure"),
        ("https://mine.services.ai.azure.com/api/projects/p/openai/v1", "azure"),
        ("https://api.tokenfactory.nebius.com/v1", "nebius"),
        ("https://api.together.ai/v1", "together"),
        ("https://api.together.xyz/v1", "together"),
        ("https://evil-api.tokenfactory.nebius.com.test/v1", "fine-tunes"),
        ("https://openai.azure.com.test/v1", "fine-tunes"),
        ("https://[", "fine-tunes"),
    ],
)
def test_of_host(url: str, name: str) -> None:
    """A known host has its dialect, any other the reference."""
    assert of_host(url).name == name


def test_named() -> None:
    """A dialect is known by its name, or is one; anything else is refused with the names there are."""
    assert named("azure") is named(DIALECTS["azure"]) is DIALECTS["azure"]
    for wrong in ("openai", 7, None):
        with pytest.raises(ConfigurationError, match="fine-tunes, jobs, azure, nebius, together"):
            named(wrong)


def test_fitting() -> None:
    """A reply in the form of another dialect is told from one of this, from an odd one, and from no JSON."""
    theirs, ours = json.dumps(JOB).encode(), b'{"object": "fine-tune", "id": "ft-1"}'
    assert fitting(theirs, DIALECTS["fine-tunes"]) is DIALECTS["jobs"]
    assert fitting(b'{"data": [' + theirs + b"]}", DIALECTS["fine-tunes"]) is DIALECTS["jobs"]
    assert fitting(ours, DIALECTS["azure"]) is DIALECTS["fine-tunes"]
    for body in (theirs, b"{}", b"[]", b"<p>", b'{"data": []}', b'{"data": [7]}'):
        assert fitting(body, DIALECTS["nebius"]) is None


def test_advice() -> None:
    """Azure's misleading answers come with what may be missing; its others, and other paths, do not."""
    azure, endpoints = DIALECTS["azure"], DIALECTS["azure"].endpoints
    misleading = BadRequest(400, "The base model does not support fine-tuning", "t", "p", "c", "req-7")
    told = azure.explain(misleading, endpoints.create_fine_tune)
    assert "trainingType" in told.message
    assert (type(told), told.param, told.request_id) == (BadRequest, "p", "req-7")
    assert endpoints.begin_upload is not None
    assert "api_version" in azure.explain(NotFound(404, "gone"), endpoints.begin_upload).message
    other = NotFound(404, "gone")
    assert azure.explain(other, endpoints.retrieve_file) is other


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
def test_dialects_agree_with_themselves(dialect: Dialect) -> None:
    """A dialect says how to follow its jobs, and follows them by an endpoint that it has; it lacks only parameters."""
    assert (dialect.endpoints.stream_fine_tune_events is None) == (dialect.follows.value != "stream")
    is_presigned = dialect.uploads.value == "presigned"
    assert is_presigned == (dialect.endpoints.process_file is not None) == bool(dialect.file_header)
    assert set(dialect.lacks) <= set(attrs.fields_dict(FineTuneRequest))
    assert isinstance(dialect.endpoints, Endpoints)
