"""JSON to the models and back: what decides is exact, what is shown is lenient, and nothing ever crashes."""

from __future__ import annotations

import contextlib
import json
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiofinetune import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionUsage,
    Deleted,
    File,
    FineTune,
    FineTuneEvent,
    FineTuneRequest,
    Hyperparams,
    Model,
    ProtocolViolation,
    RequestInvalid,
    _json,
    structuring,
)
from aiofinetune.models import Listing, Rows
from tests.support.strategies import INT64, JSON, TEXT

# Any: these are types of many kinds, and mypy knows no type of a generic alias.
KINDS: list[Any] = [
    Completion,
    CompletionChoice,
    Deleted,
    File,
    FineTune,
    FineTuneEvent,
    Hyperparams,
    Model,
    Listing[File],
    Listing[FineTune],
    Listing[FineTuneEvent],
    Listing[Model],
]

QUEUED = FineTuneEvent(
    "Job enqueued. Waiting for jobs ahead to complete. Queue number: 0.", "info", 1614807352, "fine-tune-event"
)
EVENTS = (
    QUEUED,
    FineTuneEvent("Job started.", "info", 1614807356),
    FineTuneEvent("Uploaded snapshot: curie:ft-acmeco-2021-03-03-21-44-20.", "info", 1614807861),
    FineTuneEvent("Uploaded result files: file-QQm6ZpqdNwAaVC3aSz5sWwLT.", "info", 1614807864),
    FineTuneEvent("Job succeeded.", "info", 1614807864),
)
PENDING = FineTune(
    id="ft-AF1WoRqd3aJAHsqc9NY7iL8F",
    status="pending",
    model="curie",
    created_at=1614807352,
    updated_at=1614807352,
    training_files=(
        File(
            id="file-XGinujblHPwGLSztz8cPS8XY",
            filename="my-data-train.jsonl",
            purpose="fine-tune-train",
            bytes=1547276,
            created_at=1610062281,
        ),
    ),
    hyperparams=Hyperparams(n_epochs=4, batch_size=4, learning_rate_multiplier=0.1, prompt_loss_weight=0.1),
    organization_id="org-...",
)
SUCCEEDED = FineTune(
    id=PENDING.id,
    status="succeeded",
    model="curie",
    created_at=1614807352,
    updated_at=1614807865,
    training_files=PENDING.training_files,
    fine_tuned_model="curie:ft-acmeco-2021-03-03-21-44-20",
    hyperparams=PENDING.hyperparams,
    result_files=(
        File(
            id="file-QQm6ZpqdNwAaVC3aSz5sWwLT",
            filename="compiled_results.csv",
            purpose="fine-tune-results",
            bytes=81509,
            created_at=1614807863,
        ),
    ),
    events=EVENTS,
    organization_id="org-...",
)
CREATED = FineTune(
    id=PENDING.id,
    status="pending",
    model="curie",
    created_at=1614807352,
    updated_at=1614807352,
    training_files=PENDING.training_files,
    hyperparams=PENDING.hyperparams,
    events=(QUEUED,),
    organization_id="org-...",
)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("fine_tune_created", FineTune, CREATED),
        ("fine_tune_succeeded", FineTune, SUCCEEDED),
        ("fine_tunes", Listing[FineTune], Listing((PENDING,))),
        ("fine_tune_events", Listing[FineTuneEvent], Listing(EVENTS)),
        ("model_deleted", Deleted, Deleted("curie:ft-acmeco-2021-03-03-21-44-20", deleted=True, object="model")),
    ],
)
def test_reference_reply(name: str, kind: Any, expected: object, samples: Path) -> None:
    """The reference's own reply is read as exactly what it says."""
    assert structuring.read_reply((samples / f"{name}.json").read_bytes(), kind) == expected


@pytest.mark.parametrize("name", ["fine_tune_created", "fine_tune_succeeded", "fine_tunes", "fine_tune_events"])
def test_reference_reply_written(name: str, samples: Path) -> None:
    """What is written as a reply holds each field of the reference's, with the same value."""
    sample = json.loads((samples / f"{name}.json").read_bytes())
    kind: Any = {"fine_tunes": Listing[FineTune], "fine_tune_events": Listing[FineTuneEvent]}.get(name, FineTune)
    read = structuring.read_reply(structuring.dumps(sample), kind)
    written = json.loads(structuring.dumps(structuring.write_reply(read)))
    assert_holds(written, sample)


def assert_holds(written: object, sample: object) -> None:
    if isinstance(sample, dict):
        assert isinstance(written, dict)
        for key, value in sample.items():
            assert_holds(written[key], value)
    elif isinstance(sample, list):
        assert isinstance(written, list)
        assert len(written) == len(sample)
        for item, expected in zip(written, sample, strict=True):
            assert_holds(item, expected)
    else:
        assert written == sample


def test_completion_reply() -> None:
    """A completion is read with its choices, log probabilities (the first may be null) and usage."""
    body = b"""{"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "ada",
        "choices": [{"text": " yes", "index": 0, "finish_reason": "length", "logprobs":
            {"tokens": [" ", "yes"], "token_logprobs": [null, -0.5], "top_logprobs": [], "text_offset": [0, 1]}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}"""
    assert structuring.read_reply(body, Completion) == Completion(
        id="cmpl-1",
        choices=(CompletionChoice(" yes", 0, "length", CompletionLogprobs((" ", "yes"), (None, -0.5))),),
        model="ada",
        created=7,
        usage=CompletionUsage(3, 2, 5),
    )


@pytest.mark.parametrize(
    ("request_", "written"),
    [
        (FineTuneRequest(training_file="file-1"), b'{"training_file":"file-1"}'),
        (
            FineTuneRequest(
                training_file="file-1",
                validation_file="file-2",
                model="ada",
                n_epochs=4,
                batch_size=8,
                learning_rate_multiplier=0.1,
                prompt_loss_weight=0,
                compute_classification_metrics=True,
                classification_positive_class=" ja",
                classification_betas=[1.0, 0.5],
                suffix="spam ü",
            ),
            (
                b'{"training_file":"file-1","validation_file":"file-2","model":"ada","n_epochs":4,"batch_size":8,'
                b'"learning_rate_multiplier":0.1,"prompt_loss_weight":0,"compute_classification_metrics":true,'
                b'"classification_positive_class":" ja","classification_betas":[1.0,0.5],"suffix":"spam \xc3\xbc"}'
            ),
        ),
        (
            FineTuneRequest(training_file="file-1", compute_classification_metrics=False),
            b'{"training_file":"file-1","compute_classification_metrics":false}',
        ),
    ],
)
def test_request_written(request_: FineTuneRequest, written: bytes) -> None:
    """A request is written byte for byte as the reference has it, without the parameters left to the service."""
    assert structuring.write_request(request_.given()) == written


FITTING = json.dumps({"id": "ft-1", "status": "running", "model": "ada", "created_at": 1, "training_files": []})


def with_field(field: str, value: str) -> bytes:
    return json.dumps(json.loads(FITTING) | {field: json.loads(value)}).encode()


@pytest.mark.parametrize(
    ("body", "kind", "path", "words"),
    [
        (b"[]", FineTune, "$", "expected an object, got []"),
        (b"null", FineTune, "$", "expected an object, got null"),
        (b'"x"', Listing[File], "$", 'expected an object, got "x"'),
        (with_field("id", "7"), FineTune, "$.id", "expected a string, got 7"),
        (with_field("id", "null"), FineTune, "$.id", "is missing"),
        (with_field("status", "true"), FineTune, "$.status", "expected a string, got true"),
        (b'{"data": [{"id": "a"}, {"id": "b"}, {}]}', Listing[Model], "$.data[2].id", "is missing"),
        (b'{"data": [{"id": "a"}, 7]}', Listing[Model], "$.data[1]", "expected an object, got 7"),
        (b'{"data": {"id": "a"}}', Listing[Model], "$.data", 'expected a list, got {"id":"a"}'),
        (b'{"id": "m", "deleted": "yes"}', Deleted, "$.deleted", 'expected true or false, got "yes"'),
        (with_field("id", '""'), FineTune, "$.id", 'expected a non-empty string, got ""'),
        (with_field("status", '""'), FineTune, "$.status", 'expected a non-empty string, got ""'),
        (with_field("status", "null"), FineTune, "$.status", "is missing"),
        (b'{"id": ""}', File, "$.id", 'expected a non-empty string, got ""'),
        (b'"file-1"', File, "$", 'expected an object, got "file-1"'),
        (b'{"message": 7}', FineTuneEvent, "$.message", "expected a string, got 7"),
    ],
)
def test_misfit(body: bytes, kind: Any, path: str, words: str) -> None:
    """A reply that does not fit is a violation that names the path, what was expected and what came."""
    with pytest.raises(ProtocolViolation, match=re.escape(f"match the API: {path} {words}")):
        structuring.read_reply(body, kind)


ODD: dict[str, dict[str, object]] = {
    "created_at": {
        "1700000000.5": 1700000000,
        "1.0": 1,
        '"2026-11-27T05:00:00.123Z"': 1795755600,
        '"2026-11-27T06:00:00+01:00"': 1795755600,
        '"2026-11-27T05:00:00"': None,
        "1700000000000": None,
        "-1": None,
        "0": 0,
        '"1"': None,
        '"yesterday"': None,
        "true": None,
        "1e300": None,
        "-1.5": None,
        "[1]": None,
    },
    "training_files": {
        '["file-1"]': (File("file-1"),),
        '"file-1"': (File("file-1"),),
        '{"id": "file-1"}': (File("file-1"),),
        '[{"id": "file-1", "bytes": "7"}]': (File("file-1"),),
        '[{}, null, "", 7, "file-1"]': (File("file-1"),),
        "null": (),
        "7": (),
        "{}": (),
    },
    "hyperparams": {
        '{"n_epochs": "auto", "batch_size": "auto"}': Hyperparams(n_epochs="auto", batch_size="auto"),
        '{"learning_rate_multiplier": "auto", "n_epochs": 4}': Hyperparams(4, learning_rate_multiplier="auto"),
        '{"n_epochs": 1.5, "batch_size": 8}': Hyperparams(batch_size=8),
        '{"n_epochs": "many", "learning_rate_multiplier": true}': Hyperparams(),
        '{"classification_betas": [1, "x"]}': Hyperparams(),
        '"auto"': Hyperparams(),
        "[]": Hyperparams(),
    },
    "events": {'[{"message": "a"}, {"message": 1}, 7]': (FineTuneEvent("a"),), '"none"': ()},
    "model": {"7": None, '{"id": "ada"}': None},
    "organization_id": {"{}": None},
}


@pytest.mark.parametrize(
    ("field", "value", "expected"), [(field, *pair) for field, values in ODD.items() for pair in values.items()]
)
def test_odd_fields(field: str, value: str, expected: object) -> None:
    """A field that only shows something is read as far as it makes sense, and else as absent."""
    assert getattr(structuring.read_reply(with_field(field, value), FineTune), field) == expected


def test_odd_fields_are_noted_once_each() -> None:
    """What is read as absent is reported by its class and field, once for a list, with its type and not its value."""
    rows = [{"id": f"ft-{number}", "status": "x", "created_at": "soon", "model": number} for number in range(3)]
    noted: list[tuple[str, str]] = []
    structuring.read_reply(
        json.dumps({"data": rows}).encode(), Listing[FineTune], lambda field, found: noted.append((field, found))
    )
    assert noted == [("FineTune.model", "a number"), ("FineTune.created_at", "a string")]


def test_what_fits_is_not_noted() -> None:
    """Times and files in their other shapes, "auto" and null are no oddities."""
    body = json.dumps(
        json.loads(FITTING)
        | {"created_at": "2026-11-27T05:00:00Z", "updated_at": 1.5, "training_files": ["file-1"], "events": None}
        | {"hyperparams": {"n_epochs": "auto"}}
    ).encode()
    noted: list[object] = []
    structuring.read_reply(body, FineTune, lambda *found: noted.append(found))
    assert not noted


def test_rows() -> None:
    """A list that has to be searched is read row by row: the jobs, the ids of the rest, and whether that is all."""
    data = [{"id": "ft-1", "status": "x"}, {"id": "ft-2"}, {"id": "ft-3", "status": 7}]
    rows = structuring.read_reply(json.dumps({"data": data}).encode(), Rows)
    assert [job.id for job in rows.jobs] == ["ft-1"]
    assert rows.unreadable == ("ft-2", "ft-3")
    assert rows.is_whole


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"data": null}', b'{"data": {}}', b'{"data": [7]}', b'{"data": [{}]}', b'{"data": [], "has_more": true}'],
)
def test_rows_that_are_not_all(body: bytes) -> None:
    """A list that is missing, has a row without an id, or says that there is more, may lack a job."""
    assert not structuring.read_reply(body, Rows).is_whole


@pytest.mark.parametrize("body", [b"{}", b'{"data": null}', b'{"data": []}'])
def test_no_list_is_an_empty_one(body: bytes) -> None:
    """A list that is null or missing is empty."""
    assert structuring.read_reply(body, Listing[FineTune]) == Listing()


ID = b'{"object": "x", "files": [{"id": "file-1"}], "a": {"id": "no"}, "b": "{\\"id\\": 1}", "id": "ft-1"'


@pytest.mark.parametrize(
    "end", [b"", b",", b', "status', b', "x": [{', b"}}", b"\xff", b"\x00", b', "id": "ft-2"}', b"}"]
)
def test_readable_id(end: bytes) -> None:
    """The id at the top of an object is found however the object ends, and no id inside it is taken for it."""
    expected = "ft-2" if end.startswith(b', "id"') else "ft-1"
    assert structuring.readable_id(ID + end) == expected
    assert structuring.readable_id(b" \n" + ID + end) == expected


@pytest.mark.parametrize(
    "body",
    [
        ID[: ID.rindex(b'"')],
        ID[: ID.rindex(b":")],
        b'[{"id": "x"}',
        b'"id": "x"',
        b'{"id": ""',
        b'{"id": 7',
        b'{"id": "\xff"',
        b'{"id": null, ',
        b'{"a": {"id": "x"',
        b'{} {"id": "x"}',
        b'{"a": "id": "x',
        b"id",
        b"",
        b'{"id" "x"',
        b'{"id": "\\ud800"',
    ],
)
def test_no_readable_id(body: bytes) -> None:
    """An id that is cut, empty, no text, or not at the top of an object, is none."""
    assert structuring.readable_id(body) is None


@given(st.binary())
def test_any_bytes_have_an_id_or_none(body: bytes) -> None:
    """Looking for an id raises nothing, whatever came."""
    found = structuring.readable_id(body)
    assert found is None or found


@pytest.mark.parametrize("value", ['"validating"', '"x"', '"SUCCEEDED"'])
def test_new_status(value: str) -> None:
    """A status that no one has heard of passes."""
    assert structuring.read_reply(with_field("status", value), FineTune).status == json.loads(value)


def test_null_is_absent() -> None:
    """A null, wherever it stands, is the same as no field at all."""
    nulls = json.dumps(
        json.loads(FITTING)
        | dict.fromkeys(["fine_tuned_model", "events", "hyperparams", "updated_at", "result_files", "organization_id"])
    )
    assert structuring.read_reply(nulls.encode(), FineTune) == structuring.read_reply(FITTING.encode(), FineTune)


def test_unknown_fields_pass_in_replies() -> None:
    """A field that a service adds, at any depth, changes nothing."""
    body = with_field("training_files", '[{"id": "file-1", "ttl": 7}]')
    plain = with_field("training_files", '[{"id": "file-1"}]')
    extended = json.dumps(json.loads(body) | {"object_v2": {"x": [1]}}).encode()
    assert structuring.read_reply(extended, FineTune) == structuring.read_reply(plain, FineTune)


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        ({"training_file": "f", "n_epoch": 4}, "n_epoch", "is not a parameter of this request"),
        ({"training_file": "f", "b": 1, "a": 1}, "a", "is not a parameter of this request"),
        ({}, "training_file", "is missing"),
        ({"training_file": None}, "training_file", "is missing"),
        ({"training_file": 7}, "training_file", "expected a string, got 7"),
        ({"training_file": "f", "n_epochs": "4"}, "n_epochs", 'expected a whole number, got "4"'),
        ({"training_file": "f", "n_epochs": 4.0}, "n_epochs", "expected a whole number, got 4.0"),
        ({"training_file": "f", "n_epochs": 0}, "n_epochs", "expected an integer of at least 1, got 0"),
        (
            {"training_file": "f", "classification_betas": "abc"},
            "classification_betas",
            'expected a list, got "abc"',
        ),
        (
            {"training_file": "f", "classification_betas": [1, "x"]},
            "classification_betas[1]",
            'expected a number, got "x"',
        ),
        (
            {"training_file": "f", "classification_n_classes": 3},
            "classification_n_classes",
            "is only used with compute_classification_metrics=True",
        ),
        ([], "request", "expected an object, got []"),
        (None, "request", "expected an object, got null"),
    ],
)
def test_request_refused(value: object, field: str, words: str) -> None:
    """A wrong request is refused by the parameter's name, unknown ones too."""
    with pytest.raises(RequestInvalid) as caught:
        structuring.read_request(value, FineTuneRequest)
    assert (caught.value.field, caught.value.problem) == (field, words)


def test_null_parameter_is_absent() -> None:
    """A parameter that is null is left to the service."""
    value = {"training_file": "f", "n_epochs": None, "suffix": None}
    assert structuring.read_request(value, FineTuneRequest) == FineTuneRequest(training_file="f")


def test_many_problems() -> None:
    """Of ten thousand broken entries five are named, each with its path."""
    body = json.dumps({"data": [{"id": index} for index in range(10_000)]}).encode()
    with pytest.raises(ProtocolViolation) as caught:
        structuring.read_reply(body, Listing[Model])
    assert re.findall(r"\$\.data\[(\d+)\]\.id expected", str(caught.value)) == ["0", "1", "2", "3", "4"]
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("body", [b"", b"<html>", b"{", b"\xff", b"{} {}", b"NaN", b"[1,]", b'{"a":1,}', b"'a'"])
def test_no_json(body: bytes) -> None:
    """What is not JSON is a violation that shows how it starts."""
    with pytest.raises(ProtocolViolation, match="the reply is not JSON") as caught:
        structuring.read_reply(body, File)
    assert structuring.excerpt(body) in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


def test_long_body_is_shown_short() -> None:
    """A megabyte that is not JSON makes a short message."""
    with pytest.raises(ProtocolViolation, match=r"…$") as caught:
        structuring.read_json(b"<p>" * 300_000)
    assert len(str(caught.value)) < 400


DEEP = [b"[" * depth + b"]" * depth for depth in (200, 260, 900, 1100, 100_000)]


@given(JSON, st.sampled_from(KINDS))
@example({"data": [{"id": "a"}]}, Listing[File])
def test_any_json(value: object, kind: Any) -> None:
    """Any JSON at all is read as the model, or is a violation; nothing else is ever raised."""
    body = orjson.dumps(value)
    try:
        model = structuring.read_reply(body, kind)
    except ProtocolViolation as error:
        assert "$" in str(error)  # noqa: PT017  # most JSON does not fit; what does is checked below
    else:
        assert structuring.fit_reply(orjson.loads(orjson.dumps(structuring.write_reply(model))), kind) == model


@given(JSON, st.sampled_from(KINDS), st.data())
def test_any_json_in_place(value: object, kind: Any, data: st.DataObject) -> None:
    """Any JSON in place of any one field of a model is taken, or is a violation that names the field."""
    fields = [field.name for field in attrs.fields(kind if attrs.has(kind) else Listing)]
    name = data.draw(st.sampled_from(fields))
    try:
        structuring.fit_reply({name: value}, kind)
    except ProtocolViolation as error:
        assert re.search(r"match the API: \$\.\w", str(error))  # noqa: PT017


def fit(kind: Any) -> st.SearchStrategy[Any]:
    """JSON that fits a type of a model's field, but for a place now and then."""
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (arg for arg in get_args(kind) if arg is not type(None) and get_origin(arg) is not Literal)
    if kind in (str, int, float, bool):
        good = {str: TEXT, int: INT64, float: st.floats(allow_nan=False, allow_infinity=False), bool: st.booleans()}
        return st.one_of(*[good[kind]] * 9, st.none(), JSON)
    if get_origin(kind) is tuple:
        return st.one_of(*[st.lists(fit(get_args(kind)[0]), max_size=2)] * 9, st.none(), JSON)
    if get_origin(kind) is Mapping:
        (_, item) = get_args(kind)
        return st.dictionaries(TEXT, JSON if item is object else fit(item), max_size=2)
    arguments = get_args(kind)
    fields = attrs.fields(attrs.resolve_types(get_origin(kind) or kind))
    kinds: dict[str, Any] = {field.name: field.type for field in fields}
    if arguments:
        kinds["data"] = kinds["data"][arguments]
    required = {field.name: fit(kinds.pop(field.name)) for field in fields if field.default is attrs.NOTHING}
    return st.fixed_dictionaries(required, optional={name: fit(kind) for name, kind in kinds.items()})


@given(st.data(), st.sampled_from(KINDS))
def test_quick_and_careful(data: st.DataObject, kind: Any) -> None:
    """What is read quickly is what is read with care; what that refuses is refused, and nothing else is."""
    body = orjson.dumps(data.draw(fit(kind)))
    try:
        careful = structuring.fit_reply(structuring.read_json(body), kind)
    except ProtocolViolation:
        with pytest.raises(ProtocolViolation, match=r"\$"):
            structuring.read_reply(body, kind)
        with pytest.raises(structuring._Misfit):
            structuring.quick_reader(kind)(structuring.loads(body), None)
    else:
        assert structuring.read_reply(body, kind) == careful
        assert structuring.quick_reader(kind)(structuring.loads(body), None) == careful


@given(st.binary(), st.sampled_from(KINDS))
@example(b'{"id": "\xff"}', File)
@example(b'{"id": "\\ud800"}', File)
@example(b'"\\ud800"', File)
@example(b'{"id": 123456789012345678901234567890}', File)
def test_any_bytes(body: bytes, kind: Any) -> None:
    """Any bytes at all are read as the model, or are a violation."""
    with contextlib.suppress(ProtocolViolation):
        structuring.read_reply(body, kind)


@pytest.mark.parametrize("body", DEEP, ids=len)
@pytest.mark.parametrize("frame", [b"%b", b'{"id": %b}', b'{"data": %b}', b'{"id": "x", "x": %b}'])
@pytest.mark.parametrize("loads", [orjson.loads, _json.loads])
def test_deep(body: bytes, frame: bytes, loads: Callable[[bytes], object]) -> None:
    """JSON nested however deep is read, or is a violation, and a wrong request; never a crash."""
    try:
        value = loads(frame % body)
    except ValueError:
        return
    for kind in (File, Listing[File]):
        with contextlib.suppress(ProtocolViolation):
            structuring.fit_reply(value, kind)
    with pytest.raises(RequestInvalid):
        structuring.read_request(value, FineTuneRequest)


@given(
    JSON
    | st.dictionaries(
        st.sampled_from([field.name for field in attrs.fields(FineTuneRequest)]) | st.text(max_size=3),
        JSON,
        max_size=4,
    ).map(lambda value: {"training_file": "file-1"} | value)
)
def test_any_request(value: object) -> None:
    """Any JSON at all is a request, or is refused by name; what is a request is written as it came, but for nulls."""
    try:
        request = structuring.read_request(value, FineTuneRequest)
    except RequestInvalid as error:
        assert error.field  # noqa: PT017
    else:
        assert isinstance(value, dict)
        present = {name: item for name, item in value.items() if item is not None}
        assert orjson.loads(structuring.write_request(request.given())) == present


@given(st.text(st.characters(), max_size=3))
@example("\ud800")
def test_request_text_that_is_no_unicode(text: str) -> None:
    """A request that JSON cannot hold is a wrong request, not a TypeError of the JSON library."""
    with contextlib.suppress(RequestInvalid):
        structuring.write_request({"prompt": text})


@pytest.mark.parametrize("value", [{"seed": 2**64}, {"temperature": object()}, {"prompt": "\ud800"}])
def test_request_that_json_cannot_hold(value: dict[str, object]) -> None:
    """What JSON cannot hold is a wrong request."""
    with pytest.raises(RequestInvalid):
        structuring.write_request(value)


# The two JSON libraries


def outcome(loads: Callable[[bytes], object], body: bytes) -> object:
    try:
        return repr(loads(body))
    except ValueError:
        return "refused"


@given(JSON)
def test_libraries_agree_on_json(value: object) -> None:
    """The standard library's JSON, as set up here, writes and reads what orjson writes and reads."""
    assert outcome(_json.loads, orjson.dumps(value)) == outcome(orjson.loads, orjson.dumps(value))
    assert outcome(_json.loads, _json.dumps(value)) == outcome(orjson.loads, _json.dumps(value))
    assert _json.loads(orjson.dumps(value)) == value == orjson.loads(_json.dumps(value))


NEARLY_JSON = st.lists(
    st.sampled_from(
        [*"{}[],:\"\\/-+.eE01 \t\n\r\x0c\x00u'", "null", "true", "NaN", "Infinity", '"a"', "1e5", "\ufeff", "\xa0"]
    ),
    max_size=8,
).map(lambda pieces: "".join(pieces).encode())


@given(NEARLY_JSON | st.binary(max_size=8))
@example(b"NaN")
@example(b"-Infinity")
@example(b"1e999")
@example(b"-1e999")
@example(b"\xef\xbb\xbf{}")
@example(b"01")
@example(b'"\x00"')
@example(b'"\t"')
@example(b'{"a": 1, "a": 2}')
@example(b"\xa0{}")
@example(b"-0")
@example(b"1.")
@example(b"1E+2")
@example(b'"\\ud800"')
@example(b'{"\\udc00": 1}')
@example(b'"\\ud83d\\ude00"')
def test_libraries_agree_on_nonsense(body: bytes) -> None:
    """What one JSON library takes or refuses, the other does too."""
    assert outcome(_json.loads, body) == outcome(orjson.loads, body)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: object()}, b"x", "\ud800"])
def test_standard_library_refuses(value: object) -> None:
    """What is no JSON is not written as JSON."""
    with pytest.raises((TypeError, ValueError)):
        _json.dumps(value)
