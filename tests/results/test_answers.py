"""Answers beside the completions that were expected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiofinetune import DatasetError, LocalFileError
from aiofinetune.cli._try import read_questions
from aiofinetune.data import Columns
from aiofinetune.results._answers import Answers, Question

QUESTIONS = [Question("a ->", " cat"), Question("b ->", " cat"), Question("c ->", " dog\n"), Question("d ->", " dog")]


def test_score() -> None:
    """An answer is right if it is the completion, apart from white space around both; classes have an F1 too."""
    score = Answers("m", [" cat", "cat\n", " dog", " dogs"]).score(QUESTIONS)
    assert score is not None
    assert (score.right, score.count, score.accuracy) == (3, 4, 0.75)
    assert score.weighted_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert str(score) == "accuracy 0.750 (3 of 4), weighted F1 0.833"


def test_texts_that_are_no_classes() -> None:
    """Where most completions differ, the accuracy is all there is; prompts without completions do not count."""
    score = Answers("m", ["x", "y", "z"]).score([Question("a", "x"), Question("b", "x y"), Question("c")])
    assert str(score) == "accuracy 0.500 (1 of 2)"
    assert Answers("m", ["x"]).score([Question("a")]) is None


def test_questions_of_a_file(tmp_path: Path) -> None:
    """Each line is a prompt, with a completion or without; blank lines and a byte order mark are passed over."""
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"prompt": "a"}\n\n{"prompt": "b", "completion": "c", "id": 1}\n')
    assert list(read_questions(path, Columns())) == [Question("a"), Question("b", "c")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "The line is not JSON"),
        ("[]", "The line is not a JSON object"),
        ('{"completion": "a"}', "expected a row with a text as its 'prompt'"),
        ('{"prompt": ["a"]}', "expected a row with a text as its 'prompt'"),
        ('{"prompt": "a", "completion": [1]}', "the completion is not a text"),
    ],
)
def test_wrong_questions(line: str, words: str, tmp_path: Path) -> None:
    """A line that is no question is refused by its number."""
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(DatasetError, match=rf"a\.jsonl, line 2: {words}"):
        list(read_questions(path, Columns()))
    with pytest.raises(LocalFileError, match="No such file"):
        list(read_questions(tmp_path / "b.jsonl", Columns()))


def test_questions_of_other_files(tmp_path: Path) -> None:
    """A table has the prompts in any column, and of a conversation the last message is what is expected."""
    table = tmp_path / "a.csv"
    table.write_text("Text,label\nwren,bird\n")
    assert list(read_questions(table, Columns("text", "label"))) == [Question("wren", "bird")]
    chat = tmp_path / "b.jsonl"
    asked = {"role": "user", "content": "wren?"}
    row = {"messages": [asked, {"role": "assistant", "content": "bird"}]}
    chat.write_text(json.dumps(row))
    assert list(read_questions(chat, Columns())) == [Question("wren?", "bird", [asked])]
