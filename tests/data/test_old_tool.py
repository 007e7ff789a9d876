"""The defects of the retired `openai tools fine_tunes.prepare_data` (openai 0.28.1), each avoided."""

from __future__ import annotations

import json
from pathlib import Path

from aiofinetune.data import check_file, mend_file, split_file
from tests.data.files import counts, pairs, rows_in, write


def mended(path: Path, *mends: str) -> list[dict[str, object]]:
    output = path.with_name("mended.jsonl")
    mend_file(path, output, mends=mends, overwrite=True)
    return rows_in(output)


def test_null_is_not_the_text_none(tmp_path: Path) -> None:
    """The old tool turned null into the text "None"; here such a row is dropped and listed, or its prompt is empty."""
    rows = [
        {"prompt": "a", "completion": None},
        {"prompt": None, "completion": "b"},
        {"prompt": "c", "completion": "d"},
    ]
    assert mended(write(tmp_path, rows)) == pairs(("", "b"), ("c", "d"))


def test_the_rows_that_were_meant_are_dropped(tmp_path: Path) -> None:
    """The old tool dropped rows by numbers that earlier steps had changed; here only the long row goes."""
    rows = pairs(("a", "b"), ("a", "b"), ("c", ""), ("long", "x" * 9000), ("d", "e"), ("f", "g"))
    assert mended(write(tmp_path, rows), "too-many-tokens") == pairs(("a", "b"), ("d", "e"), ("f", "g"))


def test_a_problem_has_a_line(tmp_path: Path) -> None:
    """The old tool counted rows from 0 without blank lines; here the line is that of the file."""
    path = tmp_path / "train.jsonl"
    path.write_text('\n{"prompt": "a", "completion": "b"}\n\n{"prompt": "c", "completion": ""}\n')
    (finding,) = [finding for finding in check_file(path).findings if finding.check == "empty-completion"]
    assert finding.places[0].line == 4


def test_texts_that_look_like_dates_and_numbers_stay_texts(tmp_path: Path) -> None:
    """The old tool's pandas reads dates, numbers and "NA" into values of its own; here a text is a text."""
    texts = [("2020-01-01", "007"), ("NA", "null"), ("1e5", "True"), ("nan", "-0.0")]
    assert mended(write(tmp_path, pairs(*texts))) == pairs(*texts)
    path = tmp_path / "train.csv"
    path.write_text("prompt,completion\n" + "".join(f"{prompt},{completion}\n" for prompt, completion in texts))
    assert mended(path) == pairs(*texts)


def test_one_row_is_data_too(tmp_path: Path) -> None:
    """The old tool took a file of one row for another format, and failed."""
    assert mended(write(tmp_path, pairs(("a", "b")))) == pairs(("a", "b"))


def test_a_broken_line_does_not_hide_the_others(tmp_path: Path) -> None:
    """One broken line made the old tool refuse the file without a line; here each is told."""
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\nbroken\n{"prompt": "c", "completion": ""}\n')
    assert {"not-json": 1, "empty-completion": 1}.items() <= counts(check_file(path)).items()


def test_equal_prompts_do_not_crash(tmp_path: Path) -> None:
    """The old tool stopped with an error where all prompts or all completions are equal."""
    found = counts(check_file(write(tmp_path, pairs(("a", "b"), ("a", "b")))))
    assert {"duplicate", "one-completion"} <= set(found)


def test_extra_columns_that_share_a_name_do_not_crash(tmp_path: Path) -> None:
    """Columns whose names contain one another, and equal ones, confused the old tool."""
    path = tmp_path / "train.csv"
    path.write_text("Prompt,prompt,completion,completion_id,id\nx,a,b,1,2\n")
    assert mended(path) == pairs(("a", "b"))


def test_both_cases_of_a_name_do_not_crash(tmp_path: Path) -> None:
    """The old tool failed where some rows have another case than others."""
    rows = [{"prompt": "a", "completion": "b"}, {"Prompt": "c", "COMPLETION": "d"}]
    assert mended(write(tmp_path, rows)) == pairs(("a", "b"), ("c", "d"))


def test_a_split_keeps_equal_prompts_together(tmp_path: Path) -> None:
    """The old tool's split put equal prompts into both files, and did not look at the classes."""
    rows = pairs(*((f"text {n // 2}", " yes" if n % 3 else " no") for n in range(60)))
    split_file(write(tmp_path, rows), tmp_path / "t.jsonl", tmp_path / "v.jsonl")
    shared = {row["prompt"] for row in rows_in(tmp_path / "t.jsonl")} & {
        row["prompt"] for row in rows_in(tmp_path / "v.jsonl")
    }
    assert not shared


def test_a_repeated_separator_is_found_where_it_is(tmp_path: Path) -> None:
    """The old tool said that "some" prompts hold the separator twice; here they are named."""
    rows = pairs(*((f"text {n} ->", " b") for n in range(20)), ("a -> b ->", " c"))
    (finding,) = [
        finding for finding in check_file(write(tmp_path, rows)).findings if finding.check == "separator-inside"
    ]
    assert (finding.count, finding.places[0].line) == (1, 21)


def test_the_output_says_the_same_in_other_characters(tmp_path: Path) -> None:
    """Slashes, quotes and characters of all planes come through."""
    rows = pairs(('/"\\\n\u2028', "日本 😀 \x7f"))
    assert mended(write(tmp_path, rows)) == rows
    assert json.loads((tmp_path / "mended.jsonl").read_text(encoding="utf-8")) == rows[0]
