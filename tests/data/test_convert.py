"""Converting data files, and the request that is suggested for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiofinetune.data import Template, check_file, convert_file, suggest_request
from aiofinetune.errors import DatasetError
from tests.data.files import PAIRS, TEXTS, pairs, rows_in, write


@settings(max_examples=50)
@given(PAIRS.filter(bool), TEXTS, TEXTS, TEXTS, st.none() | TEXTS)
def test_there_and_back_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, str]],
    separator: str,
    space: str,
    stop: str,
    system: str | None,
) -> None:
    """Whatever the template, pairs that fit it are the same after they were messages."""
    folder, template = tmp_path_factory.getbasetemp(), Template(separator, space, stop, system)
    rows = [{"prompt": row["prompt"] + separator, "completion": space + row["completion"] + stop} for row in rows]
    path, chat, back = write(folder, rows, "pairs.jsonl"), folder / "chat.jsonl", folder / "back.jsonl"
    convert_file(path, chat, to="messages", template=template, overwrite=True)
    convert_file(chat, back, to="pairs", template=template, overwrite=True)
    assert rows_in(back) == rows


def test_the_template_says_how_messages_look(tmp_path: Path) -> None:
    """The separator, the space and the stop sequence are in no message."""
    path = write(tmp_path, pairs(("Is it red? ->", " yes\n")))
    convert_file(path, tmp_path / "out.jsonl", to="messages", template=Template(" ->", " ", "\n", "Be brief."))
    expected = [("system", "Be brief."), ("user", "Is it red?"), ("assistant", "yes")]
    assert rows_in(tmp_path / "out.jsonl") == [{"messages": [{"role": r, "content": c} for r, c in expected]}]


@pytest.mark.parametrize(
    ("row", "to", "template", "words"),
    [
        ({"prompt": "a", "completion": "b"}, "messages", Template(separator=" ->"), "does not end with the separator"),
        ({"prompt": "a", "completion": "b"}, "messages", Template(space=" "), "does not start with ' '"),
        ({"prompt": "a"}, "messages", Template(), "a prompt and a completion are expected"),
        ({"messages": []}, "pairs", Template(), "one message of the user"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "pairs", Template(), "one message of the user"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path: Path, row: object, to: str, template: Template, words: str) -> None:
    """A row that would not come back the same is refused with its line."""
    with pytest.raises(DatasetError, match=words) as caught:
        convert_file(write(tmp_path, [row]), tmp_path / "out.jsonl", to=to, template=template)  # type: ignore[arg-type]  # a column
    assert caught.value.line == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_a_classification_gets_its_parameters(tmp_path: Path) -> None:
    """The request has the number of classes, or the rarer of two, if there is a validation file."""
    three = [(f"text {n}", f" class {n % 3}") for n in range(30)]
    two = [(f"text {n}", " rare" if n % 10 == 0 else " common") for n in range(30)]
    validation = write(tmp_path, pairs(("x", " y")), "validation.jsonl")
    given = []
    for texts in (three, two):
        suggestion = suggest_request(check_file(write(tmp_path, pairs(*texts)), validation=validation))
        assert suggestion is not None
        given.append(suggestion.request.given())
    assert given[0]["classification_n_classes"] == 3
    assert given[1]["classification_positive_class"] == " rare"
    assert all(each["compute_classification_metrics"] is True for each in given)
    alone = suggest_request(check_file(write(tmp_path, pairs(*two))))
    assert alone is not None
    assert alone.request.given() == {"training_file": str(tmp_path / "train.jsonl")}


def test_steps_and_cost_follow_from_the_rows(tmp_path: Path) -> None:
    """Steps follow from the default batch size, and the cost from the tokens of all epochs."""
    report = check_file(write(tmp_path, pairs(*((f"text {n:04}", " answer") for n in range(1500)))))
    suggestion = suggest_request(report, n_epochs=2, price_per_1000_tokens=0.5)
    assert suggestion is not None
    assert (report.tokens, suggestion.trained_tokens) == (1500 * 5, 15_000)
    assert (suggestion.steps, suggestion.cost) == (1000, 7.5)


def test_chat_has_no_request_of_this_api(tmp_path: Path) -> None:
    """Messages are for another API, and an empty file is for none."""
    assert suggest_request(check_file(write(tmp_path, [{"messages": []}]))) is None
    assert suggest_request(check_file(write(tmp_path, []))) is None
