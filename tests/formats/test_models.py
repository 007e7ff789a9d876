from __future__ import annotations

import math
import re
from datetime import date
from pathlib import Path
from types import MappingProxyType

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiofinetune import (
    Completion,
    CompletionChoice,
    Deleted,
    File,
    FineTune,
    FineTuneEvent,
    FineTuneRequest,
    Hyperparams,
    Method,
    Model,
    RequestInvalid,
    Status,
    structuring,
)
from aiofinetune._other_models import PartTarget
from aiofinetune._value import Value
from tests.support.strategies import ANYTHING, REQUESTS

BINARY = {"validation_file": "file-2", "compute_classification_metrics": True, "classification_positive_class": " yes"}
SEVERAL = {"validation_file": "file-2", "compute_classification_metrics": True, "classification_n_classes": 3}


def request(**parameters: object) -> FineTuneRequest:
    # Any: the point is to hand over what the annotations forbid.
    return FineTuneRequest(**{"training_file": "file-1", **parameters})  # type: ignore[arg-type]


def received(made: FineTuneRequest) -> FineTuneRequest:
    """Return what the other side reads of a request that is sent."""
    return structuring.read_request(structuring.read_json(structuring.write_request(made.given())), FineTuneRequest)


FILE_ID = "expected the id of an uploaded file, such as 'file-abc123'"
COUNT = "expected an integer of at least 1"
POSITIVE = "expected a number greater than 0"
NOT_NEGATIVE = "expected a number of at least 0"
BETAS = "expected a list of numbers greater than 0"
NEEDS_METRICS = "is only used with compute_classification_metrics=True"


@pytest.mark.parametrize(
    ("field", "parameters", "words"),
    [
        ("training_file", {"training_file": None}, "is required"),
        ("training_file", {"training_file": ""}, f"{FILE_ID}, got ''"),
        ("training_file", {"training_file": 7}, f"{FILE_ID}, got 7"),
        ("training_file", {"training_file": Path("a")}, f"{FILE_ID}, got "),
        ("validation_file", {"validation_file": b"file-1"}, f"{FILE_ID}, got b'file-1'"),
        ("validation_file", {"validation_file": ""}, f"{FILE_ID}, got ''"),
        ("model", {"model": ""}, "expected the name of a model, such as 'curie', got ''"),
        ("model", {"model": 3}, "expected the name of a model, such as 'curie', got 3"),
        *(
            (field, {field: value}, f"{COUNT}, got {value!r}")
            for field in ("n_epochs", "batch_size")
            for value in (0, -1, 1.0, 1.5, "4", True, [4])
        ),
        *(
            (field, {field: 10**20}, f"expected at most {2**63 - 1}, got {10**20}")
            for field in ("n_epochs", "batch_size", "seed", "learning_rate_multiplier", "prompt_loss_weight")
        ),
        *(
            ("learning_rate_multiplier", {"learning_rate_multiplier": value}, f"{POSITIVE}, got {value!r}")
            for value in (0, -0.1, float("nan"), float("inf"), "0.1", True)
        ),
        *(
            ("prompt_loss_weight", {"prompt_loss_weight": value}, f"{NOT_NEGATIVE}, got {value!r}")
            for value in (-0.1, float("nan"), float("inf"), "0.1", False)
        ),
        *(
            (
                "compute_classification_metrics",
                {**BINARY, "compute_classification_metrics": value},
                f"expected True or False, got {value!r}",
            )
            for value in (1, 0, "true")
        ),
        *(
            (
                "classification_n_classes",
                {**SEVERAL, "classification_n_classes": value},
                f"expected an integer of at least 2, got {value!r}",
            )
            for value in (1, 0, 2.0, "3", True)
        ),
        *(
            (
                "classification_positive_class",
                {**BINARY, "classification_positive_class": value},
                f"expected the text of a completion, got {value!r}",
            )
            for value in ("", 1, True)
        ),
        *(
            ("classification_betas", {**BINARY, "classification_betas": value}, f"{BETAS}, got {shown}")
            for value, shown in (
                ([], "()"),
                ([0], "(0,)"),
                ([1, -1], "(1, -1)"),
                (["1"], "('1',)"),
                ([True], "(True,)"),
                ([float("inf")], "(inf,)"),
                (1.0, "1.0"),
                ("1.0", "'1.0'"),
            )
        ),
        ("suffix", {"suffix": ""}, "expected 1 to 64 characters, got ''"),
        ("suffix", {"suffix": "x" * 65}, "expected 1 to 64 characters, got 'xxx"),
        ("suffix", {"suffix": 5}, "expected 1 to 64 characters, got 5"),
        # What joins several parameters.
        (
            "validation_file",
            {"compute_classification_metrics": True, "classification_n_classes": 3},
            "is required when compute_classification_metrics is True",
        ),
        (
            "compute_classification_metrics",
            {"compute_classification_metrics": True, "validation_file": "file-2"},
            "needs classification_n_classes (several classes) or classification_positive_class (two classes)",
        ),
        (
            "classification_n_classes",
            {**BINARY, "classification_n_classes": 3},
            "got 3 together with classification_positive_class=' yes'; set only one of them",
        ),
        ("classification_n_classes", {"classification_n_classes": 3}, NEEDS_METRICS),
        ("classification_positive_class", {"classification_positive_class": " yes"}, NEEDS_METRICS),
        (
            "classification_n_classes",
            {"compute_classification_metrics": False, "classification_n_classes": 3},
            NEEDS_METRICS,
        ),
    ],
)
def test_wrong(field: str, parameters: dict[str, object], words: str) -> None:
    """A wrong parameter is refused by its name, with what it got and what it may be."""
    with pytest.raises(RequestInvalid, match="^" + re.escape(f"{field}: {words}")) as caught:
        request(**parameters)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"model": "ada:ft-acme-2022-02-15-04-21-04"},
        {"n_epochs": 1, "batch_size": 1},
        {"learning_rate_multiplier": 1, "prompt_loss_weight": 0},
        {"learning_rate_multiplier": 5e-324, "prompt_loss_weight": 0.0},
        {"suffix": "x"},
        {"suffix": "ü" * 64},
        {"compute_classification_metrics": False},
        BINARY,
        SEVERAL,
        {**SEVERAL, "classification_n_classes": 2},
        {**BINARY, "classification_betas": [0.5, 1, 2]},
        {**SEVERAL, "classification_betas": [1.0]},
        {"classification_betas": [1.0]},
    ],
)
def test_right(parameters: dict[str, object]) -> None:
    """What the reference allows, up to its bounds, is taken as it stands."""
    made = request(**parameters)
    betas = parameters.get("classification_betas")
    expected = {**parameters, **({"classification_betas": tuple(betas)} if isinstance(betas, list) else {})}
    assert made.given() == {"training_file": "file-1", **expected}
    assert made.given() == attrs.asdict(made, filter=lambda _, value: value is not None)


def test_long_values_are_shown_short() -> None:
    """A wrong value of any length makes a short message, which still tells what kind of value it was."""
    with pytest.raises(RequestInvalid, match=r"… \(list\)$") as caught:
        request(n_epochs=["x" * 10_000])
    assert len(str(caught.value)) < 200


def test_by_name_only() -> None:
    """Parameters go by name: twelve of them in a row would be a trap."""
    with pytest.raises(TypeError):
        FineTuneRequest("file-1")  # type: ignore[call-arg]


def test_evolve_checks_again() -> None:
    """A changed copy is checked like any other; a right one leaves the first as it was."""
    first = request(n_epochs=4)
    assert attrs.evolve(first, n_epochs=8) == request(n_epochs=8)
    assert first.n_epochs == 4
    with pytest.raises(RequestInvalid, match="n_epochs"):
        attrs.evolve(first, n_epochs=0)
    with pytest.raises(RequestInvalid, match="validation_file"):
        attrs.evolve(first, compute_classification_metrics=True, classification_n_classes=3)


@pytest.mark.parametrize(
    "value", [request(), Hyperparams(), File("file-1"), FineTuneEvent("hello"), CompletionChoice("x")], ids=repr
)
def test_frozen(value: attrs.AttrsInstance) -> None:
    """What the API says does not change under whoever holds it, and can be a key of a dictionary."""
    name = attrs.fields_dict(type(value)).popitem()[0]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, name, "changed")
    assert {value: 1}[value] == 1


@pytest.mark.parametrize(
    ("status", "is_terminal"),
    [
        (Status.SUCCEEDED, True),
        (Status.FAILED, True),
        (Status.CANCELLED, True),
        (Status.PENDING, False),
        (Status.RUNNING, False),
        ("created", False),
        ("validating_files", False),
        ("SUCCEEDED", False),
        ("", False),
    ],
)
def test_is_terminal(status: str, is_terminal: bool) -> None:  # a column of the table
    """A job is over in the three states that the reference says so of, and in no state that it does not know."""
    assert FineTune("ft-1", status, "ada", 1, ()).is_terminal is is_terminal


def test_statuses() -> None:
    """Statuses are the reference's words, as plain text."""
    assert {"succeeded", "failed", "cancelled"} == Status.TERMINAL
    assert {"created", "pending", "running", "succeeded", "failed", "cancelled"} == Status.KNOWN


@given(REQUESTS)
def test_survives_the_wire(made: FineTuneRequest) -> None:
    """Any request that can be made arrives at the other side as it was."""
    assert received(made) == made


@given(st.sampled_from([field.name for field in attrs.fields(FineTuneRequest)]), ANYTHING)
@example("learning_rate_multiplier", 10**400)
@example("prompt_loss_weight", 10**400)
@example("n_epochs", -(10**5000))
@example("n_epochs", 2**64)
@example("training_file", "\ud800")
@example("metadata", {"team": "\ud800"})
@example("extra", {"": -(2**63) - 1})
@example("extra", {"\ud800": 1})
@example("extra", {"rate": math.nan})
@example("extra", {"rates": [{"rate": math.inf}]})
@example("extra", {"when": date(2026, 1, 1)})
@example("method", Method("preference", {"beta": math.nan}))
@example("method", Method("reinforcement", grader={"weight": 2**64}))
def test_any_value(field: str, value: object) -> None:
    """Whatever a parameter is given, it is refused by the parameter's name, or can be sent and read."""
    try:
        made = request(**{field: value})
    except RequestInvalid as error:
        blamed = error.field
    else:
        blamed = field
        assert received(made) == made
    assert blamed in {field, "validation_file", "compute_classification_metrics"}


@pytest.mark.parametrize("levels", [240, 5_000])
def test_a_value_that_nests_too_deeply(levels: int) -> None:
    """Values that JSON libraries do not write for their depth are refused by the parameter's name."""
    with pytest.raises(RequestInvalid, match="JSON values by name") as caught:
        request(extra={"deep": _nested(levels)})
    assert caught.value.field == "extra"


def test_a_value_that_nests_deeply() -> None:
    """A value of 200 levels can be sent and read."""
    made = request(extra={"deep": _nested(200)})
    assert received(made) == made


def test_mappings_of_any_type() -> None:
    """A parameter that is a mapping may be one that JSON libraries do not write."""
    made = request(
        method=Method("preference", MappingProxyType({"beta": 1})),
        metadata=MappingProxyType({"team": "search"}),
        extra=MappingProxyType({"type": "Standard"}),
    )
    assert received(made) == made


def _nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def test_completion_text() -> None:
    """A completion's `text` is that of its first choice."""
    choices = (CompletionChoice("first", index=0), CompletionChoice("second", index=1))
    assert Completion("cmpl-1", choices).text == "first"


def test_values_compare_by_their_fields() -> None:
    """Objects of one class with equal fields are equal and have one hash; objects of two classes are never equal."""
    job = FineTune(id="ft-1", status="pending", metadata={"a": "b"})
    same = FineTune(id="ft-1", status="pending", metadata={"a": "b"})
    assert job == same
    assert hash(job) == hash(same)
    assert job != attrs.evolve(job, metadata={})
    assert job != attrs.evolve(job, status="running")
    assert Model("x") != Deleted("x", deleted=True)
    assert Model("x") != "x"
    assert len({Model("x"), Model("x"), Model("y")}) == 2


def test_values_show_their_fields() -> None:
    """The text of a value names each field, except one that holds a secret."""
    assert repr(Model("x", 1)) == "Model(id='x', created=1, owned_by=None, object='model')"
    assert repr(PartTarget(1, "https://x/?signature=s3cret")) == "PartTarget(number=1)"


def test_values_are_compared_here() -> None:
    """Attrs generates neither the comparison nor the text of a value class."""
    # Older versions of attrs leave the class behind from which they make one with slots.
    kinds = [kind for kind in Value.__subclasses__() if attrs.has(kind)]
    assert FineTune in kinds
    assert [kind for kind in kinds if {"__eq__", "__hash__", "__repr__"} & vars(kind).keys()] == []
