"""Reading data files: formats, encodings, columns, and where each row is."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from aiofinetune.data import EMBEDDED, FINE_TUNES, Columns, check_file, convert_file, mend_file
from aiofinetune.errors import ConfigurationError, LocalFileError
from tests.data.files import ODD_FILES, counts, pairs, rows_in

ROWS = pairs(("Où est-il?\nIci.", " «oui»"), ('He said "no"', " b,c"), ("x\ty", "日本"))
JSON_LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'prompt,completion\n"Où est-il?\nIci."," «oui»"\n"He said ""no"""," b,c"\nx\ty,日本\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSON_LINES.encode()),
        ("a.jsonl", JSON_LINES.encode("utf-8-sig")),
        ("a.jsonl", JSON_LINES.encode("utf-16")),
        ("a.jsonl", JSON_LINES.encode("utf-16-le")),
        ("a.jsonl", JSON_LINES.replace("\n", "\r\n").encode()),
        ("a.jsonl.gz", gzip.compress(JSON_LINES.encode())),
        ("a", JSON_LINES.encode()),
        ("A.JSON", json.dumps(ROWS).encode()),
        ("a.json", json.dumps(ROWS, indent=2).encode()),
        ("a.json", JSON_LINES.encode()),
        ("a.json", b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS)),
        ("a.jsonl", json.dumps(ROWS, indent=2).encode("utf-16")),
        ("a.csv", CSV.encode()),
        ("a.csv", CSV.encode("utf-8-sig")),
        ("a.csv", CSV.encode("utf-16")),
        ("a.csv.gz", gzip.compress(CSV.encode())),
        ("a.csv", CSV.replace("prompt,", "prompt;").replace('",', '";').replace("y,", "y;").encode()),
        ("a.txt", CSV.encode()),
        ("a.tsv", CSV.replace("prompt,", "prompt\t").replace('",', '"\t').replace("x\ty,", '"x\ty"\t').encode()),
    ],
)
def test_a_format_is_read(tmp_path: Path, name: str, content: bytes) -> None:
    """Whatever the format, the encoding and the line ends, the rows are the same."""
    path = tmp_path / name
    path.write_bytes(content)
    assert convert_file(path, tmp_path / "out.jsonl") == 3
    assert rows_in(tmp_path / "out.jsonl") == ROWS


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_row_of_csv_is_named_by_its_first_line(tmp_path: Path, newline: str) -> None:
    """The line is that of the file, also behind fields of several lines, and whatever ends a line."""
    path = tmp_path / "a.csv"
    text = 'prompt,completion\n"a\nb\nc",d\ne,\n\nf,g\nh,\n'
    path.write_bytes(text.replace("\n", newline).encode())
    (finding,) = [finding for finding in check_file(path).findings if finding.check == "empty-completion"]
    assert [place.line for place in finding.places] == [5, 8]


def test_an_item_of_an_array_is_named_by_its_line(tmp_path: Path) -> None:
    """In JSON, the line is the one on which the item starts, also behind a piece of a megabyte."""
    path = tmp_path / "a.json"
    rows = pairs(("a" * (1 << 20), "b"), ("c", ""), ("d", "e"))
    path.write_text(json.dumps(rows, indent=1))
    (finding,) = [finding for finding in check_file(path).findings if finding.check == "empty-completion"]
    assert finding.places[0].line == 6


def test_columns_are_mapped_by_name(tmp_path: Path) -> None:
    """Any columns can be the prompt and the completion; case does not matter."""
    path = tmp_path / "a.csv"
    path.write_text("Subject,LABEL,id\nhello,spam,1\n")
    report = check_file(path, columns=Columns("subject", "label"))
    assert (report.shape, report.unreadable_rows) == ("pairs", 0)
    convert_file(path, tmp_path / "out.jsonl", to="pairs", columns=Columns("subject", "label"))
    assert rows_in(tmp_path / "out.jsonl") == pairs(("hello", "spam"))
    (missing, *_) = [finding for finding in check_file(path).findings if finding.check == "missing-field"]
    assert "try --prompt Subject --completion LABEL" in f"{missing.places}"


def test_other_encodings_are_read_when_they_are_named(tmp_path: Path) -> None:
    """Lines that are not UTF-8 are errors with a suggestion; a named encoding reads them."""
    path = tmp_path / "a.csv"
    path.write_bytes("prompt,completion\nZoë…s café, good\nNaïve façade, bad\n".encode("cp1252"))
    report = check_file(path)
    assert counts(report)["undecodable"] == 2
    assert report.suggested_encoding is not None
    for options in ({"encoding": "cp1252"}, {"fallback": "cp1252"}):
        convert_file(path, tmp_path / "out.jsonl", overwrite=True, **options)  # type: ignore[arg-type]  # one of two
        assert rows_in(tmp_path / "out.jsonl")[0]["prompt"] == "Zoë…s café"
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_bytes(
        '{"prompt": "é", "completion": "b"}\n'.encode() + '{"prompt": "é", "completion": "c"}\n'.encode("cp1252")
    )
    convert_file(mixed, tmp_path / "out.jsonl", overwrite=True, fallback="cp1252")
    assert [row["prompt"] for row in rows_in(tmp_path / "out.jsonl")] == ["é", "é"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "shift_jis", "iso2022_jp"])
def test_a_named_encoding_is_used_for_the_whole_file(tmp_path: Path, encoding: str) -> None:
    """Encodings of several bytes a character are read too."""
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"prompt": "日本", "completion": "語"}\n'.encode(encoding) * 2)
    report = check_file(path, encoding=encoding, rules=FINE_TUNES)
    assert report.unreadable_rows == (1 if encoding.startswith("utf") else 0)  # the second mark is no JSON
    assert "encoding" in counts(report)


def test_a_quotation_mark_that_is_not_closed_is_named(tmp_path: Path) -> None:
    """The line where a field begins that never ends is told, not the end of the file."""
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\na,b\n" + 'c,"d\n' + "e,f\n" * 40_000)
    (finding, *_) = [finding for finding in check_file(path).findings if finding.check == "not-csv"]
    assert finding.places[0].line == 3


def test_a_long_field_of_csv_is_read(tmp_path: Path) -> None:
    """A field may be as long as the longest line; beyond that the row is named, and what is behind it is not read.

    The limit that the host of this library has set for all of its own tables stays.
    """
    limit = csv.field_size_limit()
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,completion\na,b\n{'c' * 200_000},d\ne,\n")
    report = check_file(path, rules=FINE_TUNES)
    assert (report.rows, report.unreadable_rows) == (3, 0)
    assert counts(report)["empty-completion"] == 1
    path.write_text(f"prompt,completion\na,b\n{'c' * (FINE_TUNES.max_line_bytes + 1)},d\ne,\n")
    found = {finding.check: finding for finding in check_file(path, rules=FINE_TUNES).findings}
    assert found["line-too-long"].places[0].line == 3
    assert csv.field_size_limit() == limit
    assert "nothing after line 3" in found["unreadable-file"].places[0].text
    assert "empty-completion" not in found


def test_an_integer_of_any_size_is_read(tmp_path: Path) -> None:
    """An integer of more than 64 bits is a value that is not a text, and its digits are kept when it is mended."""
    path, number = tmp_path / "a.jsonl", 10**30 + 1
    path.write_text(json.dumps({"prompt": "a", "completion": number}) + "\n" + json.dumps({"messages": [number]}))
    assert {"not-text": 1, "mixed-shapes": 1}.items() <= counts(check_file(path, rules=FINE_TUNES)).items()
    mend_file(path, tmp_path / "out.jsonl", mends=["mixed-shapes"])
    assert rows_in(tmp_path / "out.jsonl") == pairs(("a", str(number)))
    path.write_text(json.dumps({"messages": [{"role": "user", "content": number}]}))
    assert counts(check_file(path, rules=EMBEDDED))["bad-message"] == 1


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    """An unknown encoding, and a file that is not there or no file, have errors of this package."""
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    for options in ({"encoding": "klingon"}, {"fallback": "base64"}):
        with pytest.raises(ConfigurationError, match="encoding"):
            check_file(path, **options)  # type: ignore[arg-type]  # one of two options
    for missing in (tmp_path / "b.jsonl", tmp_path, "\0"):
        with pytest.raises(LocalFileError):
            check_file(missing)


@example(content=b'[{"prompt": "a"}, {"completion": NaN, "a": [[]]} {', suffix="json")
@example(content=b"\x1f\x8b\x08\x00", suffix="jsonl")
@given(content=ODD_FILES, suffix=st.sampled_from(["jsonl", "json", "csv", "tsv", "jsonl.gz", "csv.gz", "txt"]))
def test_any_bytes_are_reported(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    """Whatever the bytes and the format, a report is made, whose rows add up."""
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") and len(content) % 3 else content)
    try:
        report = check_file(path, encoding="cp1252" if len(content) % 5 == 1 else None)
    except ConfigurationError:
        # What starts as a workbook does needs an extra.
        event("needs an extra")
        return
    assert 0 <= report.unreadable_rows <= report.rows
    assert all(finding.count >= len(finding.places) > 0 for finding in report.findings)
    json.dumps(report.to_dict()).encode()


def test_excel_workbooks_are_read(tmp_path: Path) -> None:
    """The first sheet of a workbook is read; whole numbers have no fraction, and the row is the line."""
    pytest.importorskip("python_calamine", reason="the extra excel is not installed")
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl, which writes workbooks, is not installed")
    book = openpyxl.Workbook()
    for row in (("prompt", "completion"), ("a", 5), (None, None), ("b", 2.5), ("c", None)):
        book.active.append(row)
    book.create_sheet("more")
    path = tmp_path / "a.xlsx"
    book.save(path)
    report = check_file(path)
    assert report.format == "xlsx"
    assert {"more-sheets": 1, "empty-completion": 1}.items() <= counts(report).items()
    (empty,) = [finding for finding in report.findings if finding.check == "empty-completion"]
    assert empty.places[0].line == 5
    convert_file(path, tmp_path / "out.jsonl")
    assert [row["completion"] for row in rows_in(tmp_path / "out.jsonl")] == ["5", "2.5", ""]


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its library, a workbook or a tokenizer is refused with the extra to install."""
    for name in ("python_calamine", "tokenizers"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigurationError, match=r"aiofinetune\[excel\]"):
        check_file(tmp_path / "a.xlsx")
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"aiofinetune\[tokenizers\]"):
        check_file(tmp_path / "a.jsonl", tokenizer=tmp_path / "tokenizer.json")


def test_an_encoding_is_suggested_by_its_letters(tmp_path: Path) -> None:
    """With its library, the encoding of lines that are not UTF-8 is told by their letters, not taken for cp1252."""
    pytest.importorskip("charset_normalizer", reason="the extra encodings is not installed")
    row = {"prompt": "Какая птица живёт в лесу и кричит ночью? ->", "completion": " Это большая серая сова."}
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"{json.dumps(row, ensure_ascii=False)}\n".encode("cp1251") * 3)
    assert check_file(path).suggested_encoding in {"cp1251", "windows_1251"}


def test_tokens_are_counted_with_a_tokenizer(tmp_path: Path) -> None:
    """With a tokenizer's file, the tokens are exact."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra tokenizers is not installed")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a b a", "completion": " b c"}\n')
    assert check_file(path, tokenizer=tmp_path / "tokenizer.json").tokens == 5
    path.with_name("bad.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        check_file(path, tokenizer=tmp_path / "bad.json")
