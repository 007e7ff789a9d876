"""Mending data files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiofinetune.data import EMBEDDED, OPTIONAL_MENDS, SAFE_MENDS, check_file, mend_file
from aiofinetune.errors import ConfigurationError, DatasetError, LocalFileError
from tests.data.files import ODD_FILES, PAIRS, counts, pairs, rows_in, write


@settings(max_examples=30)
@given(rows=PAIRS, mends=st.sets(st.sampled_from(OPTIONAL_MENDS)))
def test_nothing_that_was_mended_is_left(
    tmp_path_factory: pytest.TempPathFactory, rows: list[object], mends: set[str]
) -> None:
    """Whichever mends are asked for, their problems are gone, each row is accounted for, and a second mend idles.

    A mend that leaves no row of some writes no file.
    """
    folder = tmp_path_factory.getbasetemp()
    path, first, second = write(folder, rows, "in.jsonl"), folder / "first.jsonl", folder / "second.jsonl"
    first.unlink(missing_ok=True)
    try:
        report = mend_file(path, first, mends=mends, overwrite=True)
    except DatasetError:
        assert rows
        assert mend_file(path, None, mends=mends).rows_out == 0
        assert not first.exists()
        return
    assert report.rows_in == len(rows) == report.rows_out + report.dropped
    assert report.rows_out == len(rows_in(first))
    left = {check for check, count in counts(check_file(first)).items() if count}
    assert not left & (mends | set(SAFE_MENDS))
    again = mend_file(first, second, mends=mends, overwrite=True)
    assert again.mended == ()
    assert second.read_bytes() == first.read_bytes()


@settings(max_examples=30)
@given(ODD_FILES)
def test_any_file_is_mended_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever the bytes, the outcome is a file that has no error which was mended, or a DatasetError."""
    folder = tmp_path_factory.getbasetemp()
    path, output = folder / "any.jsonl", folder / "any.mended.jsonl"
    path.write_bytes(content)
    try:
        report = mend_file(path, output, mends=OPTIONAL_MENDS, overwrite=True)
    except DatasetError:
        return
    assert report.rows_in == report.rows_out + report.dropped
    left = set(counts(check_file(output)))
    assert not left & (set(OPTIONAL_MENDS) | set(SAFE_MENDS))
    assert mend_file(output, None, mends=OPTIONAL_MENDS).mended == ()


def test_the_order_of_the_mends_does_not_matter(tmp_path: Path) -> None:
    """Mends are applied in one order, whatever order is asked for."""
    path = write(tmp_path, pairs(("Is it red", "yes"), ("Is it blue", "no"), ("IS", "  ")))
    mends = ["no-stop", "blank-completion", "no-separator", "no-leading-space"]
    mend_file(path, tmp_path / "a.jsonl", mends=mends)
    mend_file(path, tmp_path / "b.jsonl", mends=reversed(mends))
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert [row["prompt"] for row in rows_in(tmp_path / "a.jsonl")] == ["Is it red ->", "Is it blue ->"]


def test_each_dropped_row_is_listed(tmp_path: Path) -> None:
    """The report has the line of every row that is not in the output."""
    rows = pairs(("a", "b"), ("c", ""), ("a", "b"), ("d", "e"))
    report = mend_file(write(tmp_path, [*rows, {"prompt": "x", "completion": None}]), None)
    assert {each.mend: list(each.dropped_lines) for each in report.mended} == {
        "null-value": [5],
        "empty-completion": [2],
        "duplicate": [3],
    }


def test_a_row_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A row that cannot be read is dropped only if this is asked for; the error says how."""
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\nnot JSON\n')
    with pytest.raises(DatasetError, match="mend 'not-json'") as caught:
        mend_file(path, tmp_path / "out.jsonl")
    assert caught.value.line == 2
    assert not (tmp_path / "out.jsonl").exists()
    report = mend_file(path, tmp_path / "out.jsonl", mends=["not-json"])
    assert report.rows_out == 1
    assert list(report.mended[0].dropped_lines) == [2]


def test_the_input_is_never_written(tmp_path: Path) -> None:
    """The input, also by another name, is refused as output; another file that exists needs to be allowed."""
    path = write(tmp_path, pairs(("a", "b")))
    (tmp_path / "link.jsonl").hardlink_to(path)
    before = path.read_bytes()
    for output in (path, tmp_path / "link.jsonl"):
        with pytest.raises(LocalFileError, match="is the input"):
            mend_file(path, output, overwrite=True)
    other = write(tmp_path, [], "other.jsonl")
    with pytest.raises(LocalFileError, match="exists"):
        mend_file(path, other)
    mend_file(path, other, overwrite=True)
    assert path.read_bytes() == before
    assert rows_in(other) == pairs(("a", "b"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link.jsonl", "other.jsonl", "train.jsonl"]


def test_a_dry_run_shows_what_would_change(tmp_path: Path) -> None:
    """A dry run writes nothing; its report has rows before and after."""
    report = mend_file(write(tmp_path, [{"Prompt": "a", "completion": 1, "id": 7}]), None)
    shown = {
        each.mend: (json.loads(c.before), json.loads(c.after or "")) for each in report.mended for c in each.changes
    }
    assert shown["field-name"][0] == {"Prompt": "a", "completion": 1, "id": 7}
    assert shown["not-text"][1] == {"prompt": "a", "completion": "1"}
    assert [file.name for file in tmp_path.iterdir()] == ["train.jsonl"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mends": ["nonsense"]}, "no check is called 'nonsense'"),
        ({"mends": ["imbalance"]}, "imbalance cannot be mended"),
        ({"without": ["format"]}, "format is mended by writing"),
    ],
)
def test_an_unknown_mend_is_refused(tmp_path: Path, options: dict[str, list[str]], words: str) -> None:
    """What cannot be mended or left out is a wrong configuration."""
    with pytest.raises(ConfigurationError, match=words):
        mend_file(write(tmp_path, pairs(("a", "b"))), None, **options)  # type: ignore[arg-type]  # one of two options


def test_long_completions_and_surrogates_are_mended_when_asked(tmp_path: Path) -> None:
    """A completion over the limit is dropped, and half a surrogate pair replaced."""
    rows = [*pairs(("a", "b" * 4096), ("c", "d")), {"prompt": "\ud800", "completion": "e"}]
    mends = ["completion-too-long", "lone-surrogate"]
    mend_file(write(tmp_path, rows), tmp_path / "out.jsonl", mends=mends, rules=EMBEDDED)
    assert rows_in(tmp_path / "out.jsonl") == pairs(("c", "d"), ("\ufffd", "e"))
