"""Reading training files."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofinetune.data._examples import MAX_LINE_BYTES, Example, parse_example, read_examples
from aiofinetune.errors import DatasetError

GOOD = b'{"prompt": "a ->", "completion": " b"}\n'


def write(folder: Path, content: bytes) -> Path:
    path = folder / "train.jsonl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [GOOD, GOOD.rstrip(), b"\xef\xbb\xbf" + GOOD, b"\n \r\n" + GOOD + b"\n", GOOD.replace(b"\n", b"\r\n")],
    ids=["plain", "no last line end", "byte order mark", "blank lines", "Windows line ends"],
)
def test_an_example_is_read(tmp_path: Path, content: bytes) -> None:
    """However the lines of a file end, its example is read."""
    assert list(read_examples(write(tmp_path, content))) == [Example("a ->", " b")]


def test_an_empty_prompt_is_allowed() -> None:
    """Only the completion must hold something."""
    assert parse_example(b'{"prompt": "", "completion": "x"}') == Example("", "x")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": "\xff", "completion": "b"}', "byte 13 of the line is not UTF-8"),
        (b"prompt,completion", "the line is not JSON: expecting value at character 1; one object on each line is"),
        (b'{"prompt": "a"', "the line is not JSON: expecting ',' delimiter at character 15; "),
        (b'{"prompt": "a\tb", "completion": "c"}', "the line is not JSON: invalid control character at character 14; "),
        (b'{"prompt": "a', "the line is not JSON: unterminated string at character 12; "),
        (b'{"prompt": "\\x", "completion": "c"}', "the line is not JSON: invalid \\escape"),
        (b'{"prompt": "a"} {}', "the line is not JSON: extra data at character 17; "),
        (b"[" * 100_000, "too deep"),
        (b'{"prompt": ' + b"1" * 10_000 + b"}", "too large"),
        (b'["a", "b"]', "an array was found; an object"),
        (b"null", "null was found"),
        (b'"a"', "a string was found"),
        (b'{"completion": "b"}', "the key 'prompt' is missing"),
        (b'{"prompt": "a"}', "the key 'completion' is missing"),
        (b'{"prompt": "a", "completion": "b", "label": 1, "id": 2}', "unknown keys 'id', 'label'; exactly"),
        (b'{"prompt": "a", "completion": "b", "id": 2}', "unknown key 'id'; exactly"),
        (b'{"prompt": null, "completion": "b"}', "the prompt is null; a string is expected"),
        (b'{"prompt": "a", "completion": 1}', "the completion is a number"),
        (b'{"prompt": "a", "completion": true}', "the completion is a boolean"),
        (b'{"prompt": "a", "completion": {}}', "the completion is an object"),
        (b'{"prompt": "a", "completion": ""}', "the completion is empty"),
        (b'{"prompt": "\\ud800", "completion": "b"}', "character 1 of the prompt is half a surrogate pair"),
        (b" " * MAX_LINE_BYTES + GOOD, "too long; at most 1,048,576 bytes"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    """The error carries the number of the line, blank lines counted, and says what was found."""
    examples = read_examples(write(tmp_path, GOOD + b"\n" + line + b"\n" + GOOD))
    assert next(examples) == Example("a ->", " b")
    with pytest.raises(DatasetError) as caught:
        next(examples)
    assert caught.value.line == 3
    assert problem in caught.value.problem
    assert " at at " not in caught.value.problem


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_an_example_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file is no training file; no line is to blame."""
    with pytest.raises(DatasetError) as caught:
        list(read_examples(write(tmp_path, content)))
    assert caught.value.line is None


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,ab\\u0 ', max_size=60).map(str.encode))
def test_any_line_is_an_example_or_a_value_error(line: bytes) -> None:
    """No line raises anything else."""
    with contextlib.suppress(ValueError):
        assert parse_example(line).completion
