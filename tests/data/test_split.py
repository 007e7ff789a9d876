"""Splitting data files, and taking samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiofinetune.data import check_file, convert_file, sample_file, split_file
from aiofinetune.errors import ConfigurationError, DatasetError, LocalFileError
from tests.data.files import PAIRS, counts, pairs, rows_in, write

CLASSES = pairs(*((f"text {n}", " rare" if n % 10 == 0 else " common") for n in range(400)))


def split(
    folder: Path, rows: list[dict[str, str]], **options: float
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    path, training, validation = write(folder, rows), folder / "t.jsonl", folder / "v.jsonl"
    split_file(path, training, validation, overwrite=True, **options)  # type: ignore[arg-type]  # numbers alone
    return rows_in(training), rows_in(validation)


def test_each_class_has_its_share(tmp_path: Path) -> None:
    """The rows are divided in the same proportion in each class, in their order, and none is lost."""
    training, validation = split(tmp_path, CLASSES, share=0.25)
    assert [sum(row["completion"] == name for row in validation) for name in (" rare", " common")] == [10, 90]
    assert [row for row in CLASSES if row in training] == training
    assert sorted(map(str, [*training, *validation])) == sorted(map(str, CLASSES))


def test_a_count_is_exact(tmp_path: Path) -> None:
    """With different prompts, the validation file has as many rows as were asked for."""
    rows = pairs(*((f"text {n}", f" answer {n}") for n in range(100)))
    assert len(split(tmp_path, rows, count=17)[1]) == 17


def test_the_seed_decides(tmp_path: Path) -> None:
    """The same seed gives the same split, also of the rows in another order; another seed gives another."""
    first = split(tmp_path, CLASSES, seed=1)[1]
    assert split(tmp_path, CLASSES, seed=1)[1] == first
    assert {str(row) for row in split(tmp_path, CLASSES[::-1], seed=1)[1]} == {str(row) for row in first}
    assert split(tmp_path, CLASSES, seed=2)[1] != first


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "A ", "b", "c  d", "C d", "e", "f"]), st.sampled_from("xy")),
        min_size=2,
        max_size=40,
    ),
    st.floats(0.05, 0.95),
)
def test_equal_prompts_stay_together(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]], share: float
) -> None:
    """Whatever the rows, no prompt is in both files, also where only space or case differ, and none is lost."""
    folder = tmp_path_factory.getbasetemp()
    try:
        training, validation = split(folder, pairs(*texts), share=share)
    except DatasetError:
        assert len({" ".join(prompt.casefold().split()) for prompt, _ in texts}) == 1
        return
    assert len(training) + len(validation) == len(texts)
    assert validation
    assert "shared-rows" not in counts(check_file(folder / "t.jsonl", validation=folder / "v.jsonl"))


def test_impossible_splits_are_refused(tmp_path: Path) -> None:
    """A share outside 0 to 1, a count of all rows, both, or rows that cannot be read."""
    path, outputs = write(tmp_path, CLASSES), (tmp_path / "t.jsonl", tmp_path / "v.jsonl")
    impossible: list[dict[str, Any]] = [{"share": 1.5}, {"count": 400}, {"count": 0}, {"share": 0.5, "count": 1}]
    for options in impossible:
        with pytest.raises(ConfigurationError, match="split"):
            split_file(path, *outputs, **options)
    with pytest.raises(LocalFileError, match="is the input"):
        split_file(path, path, outputs[1], overwrite=True)
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt"\n')
    with pytest.raises(DatasetError) as caught:
        split_file(path, *outputs)
    assert caught.value.line == 2
    assert not any(output.exists() for output in outputs)


@pytest.mark.parametrize("kind", ["same", "spelling", "symlink", "hard link", "new symlink"])
def test_one_file_for_both_halves_is_refused(tmp_path: Path, kind: str) -> None:
    """The two files to write must be two, whatever they are called and whether they exist; nothing is written."""
    path, training = write(tmp_path, CLASSES), tmp_path / "t.jsonl"
    other = {"same": training, "spelling": tmp_path / ".." / tmp_path.name / "t.jsonl"}.get(kind, tmp_path / "v.jsonl")
    if kind != "new symlink":
        training.write_text("kept")
    if "symlink" in kind:
        other.symlink_to(training)
    elif kind == "hard link":
        other.hardlink_to(training)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigurationError, match="one file"):
        split_file(path, training, other, overwrite=True)
    assert sorted(tmp_path.iterdir()) == before
    assert kind == "new symlink" or training.read_text() == "kept"


def test_a_split_that_may_not_write_one_file_writes_neither(tmp_path: Path) -> None:
    """If either file exists and may not be replaced, the other is not written; one new name for both is no split."""
    path, outputs = write(tmp_path, CLASSES), (tmp_path / "t.jsonl", tmp_path / "v.jsonl")
    with pytest.raises(ConfigurationError, match="one file"):
        split_file(path, outputs[0], outputs[0])
    assert not outputs[0].exists()
    outputs[1].write_text("kept")
    for training, validation in (outputs, outputs[::-1]):
        with pytest.raises(LocalFileError, match="exists"):
            split_file(path, training, validation)
        assert not outputs[0].exists()


@settings(max_examples=50)
@given(PAIRS.filter(bool), st.integers(1, 20), st.integers())
def test_a_sample_has_rows_of_the_file_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], count: int, seed: int
) -> None:
    """A sample has the number of rows that was asked for, in their order, and depends on the seed alone."""
    folder = tmp_path_factory.getbasetemp()
    path, output = write(folder, rows, "whole.jsonl"), folder / "sample.jsonl"
    assert sample_file(path, output, count, seed=seed, overwrite=True) == min(count, len(rows))
    chosen = rows_in(output)
    left = iter(rows_in(path))
    assert all(row in left for row in chosen)
    assert len(chosen) == min(count, len(rows))
    sample_file(path, output, count, seed=seed, overwrite=True)
    assert rows_in(output) == chosen


@pytest.mark.parametrize("how", ["split", "sample", "convert"])
def test_half_a_surrogate_pair_is_refused_by_its_line(tmp_path: Path, how: str) -> None:
    """A row with a text that UTF-8 cannot encode is an error that names its line, and nothing is written."""
    file = tmp_path / "half.jsonl"
    file.write_text('{"prompt": "a ->", "completion": " b"}\n{"prompt": "\\ud800 ->", "completion": " c"}\n')
    write_rows: dict[str, Callable[[], object]] = {
        "split": lambda: split_file(file, tmp_path / "t.jsonl", tmp_path / "v.jsonl", share=0.5),
        "sample": lambda: sample_file(file, tmp_path / "s.jsonl", 2),
        "convert": lambda: convert_file(file, tmp_path / "c.jsonl"),
    }
    with pytest.raises(DatasetError, match=r"half\.jsonl, line 2: A text holds half of a surrogate pair\. Mend it"):
        write_rows[how]()
    assert list(tmp_path.iterdir()) == [file]
