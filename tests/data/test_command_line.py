"""``aiofinetune data``, as a user of the shell sees it."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from aiofinetune.cli._commands import cli
from aiofinetune.cli._data import progress_bar
from aiofinetune.data import CHECKS
from tests.data.files import pairs, rows_in, write


def run(*arguments: object, columns: int = 80) -> Result:
    """Run ``aiofinetune data`` with output in a pipe."""
    return CliRunner().invoke(cli, ["data", *map(str, arguments)], env={"COLUMNS": str(columns)})


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    rows = [*pairs(("a", ""), ("b", "[bold]c[/bold]"), ("b", "[bold]c[/bold]")), {"Prompt": "d", "completion": 5}]
    return write(tmp_path, rows)


@pytest.mark.parametrize("columns", [60, 200])
def test_a_report_can_be_read_at_any_width(messy: Path, columns: int) -> None:
    """The worst is first, each problem has its places, texts are no markup, and no line is wider than the terminal."""
    result = run("check", messy, columns=columns)
    words = " ".join(result.stdout.split())
    assert result.exit_code == 5
    assert "error empty-completion: The completion is empty. (safe mend) line 1, completion" in words
    assert words.index("error") < words.index("warning") < words.index("no-separator") or "warning" in words
    assert "completion of line 2" in words
    lines = [line for line in result.stdout.splitlines() if str(messy) not in line]
    assert max(map(len, lines)) <= columns


def test_a_report_in_a_pipe_is_not_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command to paste is on one line, whatever its length, and no line ends with spaces."""
    monkeypatch.delenv("COLUMNS", raising=False)
    file = tmp_path / f"{'long-' * 20}name.csv"
    file.write_text("animal,kind\ncat,mammal\ncat,mammal\n")
    named = ("--prompt", "animal", "--completion", "kind")
    lines = CliRunner().invoke(cli, ["data", "check", str(file), *named]).stdout.splitlines()
    assert f"To mend what can be mended safely: aiofinetune data mend {file} {' '.join(named)} -o FILE" in lines
    assert [line for line in lines if line != line.rstrip()] == []


def test_the_exit_status_says_how_bad_it_is(tmp_path: Path, messy: Path) -> None:
    """By default an error fails; --fail-on moves the bar."""
    good = write(tmp_path, pairs(("a ->", " b")), "good.jsonl")
    assert [run("check", good).exit_code, run("check", messy).exit_code] == [0, 5]
    assert run("check", good, "--fail-on", "warning").exit_code == 5
    assert run("check", messy, "--fail-on", "never").exit_code == 0
    assert run("check", good, messy).exit_code == 5


def test_json_has_the_whole_report(tmp_path: Path, messy: Path) -> None:
    """--json prints what -o writes, with the suggested request."""
    result = run("check", messy, "--json", "-o", tmp_path / "report.json", "--price", "0.1", "--fail-on", "never")
    report = json.loads(result.stdout)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert {finding["check"] for finding in report["findings"]} <= set(CHECKS)
    assert report["rows"] == 4
    assert report["suggestion"]["request"]["training_file"] == str(messy)
    assert run("check", messy, "-o", messy).exit_code == 5
    other = write(tmp_path, pairs(("x", "y")), "valid.jsonl")
    assert run("check", messy, "--validation-file", other, "-o", other).exit_code == 5
    assert rows_in(other) == pairs(("x", "y"))
    assert "is the input" in run("check", messy, "-o", messy).output or messy.read_text().startswith('{"prompt"')


@pytest.mark.skipif(sys.platform == "darwin", reason="a file system that takes only UTF-8 as names")
def test_a_file_whose_name_is_no_utf_8(tmp_path: Path) -> None:
    """It is checked like any other, and the report is JSON; no request can name it, and `create` says so."""
    file = write(tmp_path, pairs(("a ->", " b")), os.fsdecode(b"\xe9.jsonl"))
    result = run("check", file, "--json", "-o", tmp_path / "report.json")
    assert result.exit_code == 0
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert report == json.loads(result.stdout_bytes)
    assert report["suggestion"]["request"]["training_file"] == str(tmp_path / "?.jsonl")
    refused = CliRunner().invoke(cli, ["create", str(file), "--api-key", "key", "--base-url", "http://127.0.0.1:9/v1"])
    assert (refused.exit_code, "TRAINING_FILE: expected text that UTF-8 can encode" in refused.output) == (2, True)


def test_the_option_that_overwrites_is_named(messy: Path) -> None:
    """A file that exists is not written over, and what would do so is said as an option."""
    other = messy.with_name("other.jsonl")
    other.write_text("")
    result = run("mend", messy, "-o", other)
    assert result.exit_code == 5
    assert result.output.endswith("other.jsonl: exists; give another file, or pass --overwrite\n")


@pytest.mark.parametrize("words", ["check -", "mend MESSY -o -", "sample MESSY --count 1 -o -", "convert - -o FILE"])
def test_a_dash_is_no_file(messy: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """A command refuses "-" in place of a file: it neither reads nor writes a file of that name."""
    monkeypatch.chdir(messy.parent)
    result = run(*words.replace("MESSY", str(messy)).split())
    assert (result.exit_code, "'-' is not stdin or stdout here" in result.output) == (2, True)
    assert not Path("-").exists()


def test_a_file_is_mended(tmp_path: Path, messy: Path) -> None:
    """A dry run shows what changes; the output has it; neither and both are wrong usage."""
    shown = run("mend", messy, "--dry-run", "--mend", "no-leading-space").stdout
    assert '- line 4: {"Prompt": "d", "completion": 5}' in shown
    assert '+ line 4: {"prompt": "d", "completion": "5"}' in shown
    assert "dropped lines: 1" in shown
    assert "4 rows, 2 dropped, 2 left; dry run" in shown
    output = tmp_path / "out.jsonl"
    report = json.loads(run("mend", messy, "-o", output, "--mend", "no-leading-space", "--json").stdout)
    assert rows_in(output) == pairs(("b", " [bold]c[/bold]"), ("d", " 5"))
    assert (report["rows_in"], report["rows_out"], report["dropped"]) == (4, 2, 2)
    assert run("mend", messy).exit_code == run("mend", messy, "-o", output, "--dry-run").exit_code == 2
    refused = run("mend", messy, "-o", output)
    assert (refused.exit_code, "exists" in refused.output) == (5, True)


def test_files_are_split_sampled_and_converted(tmp_path: Path) -> None:
    """The other commands write their files and say how many rows they have."""
    path = write(tmp_path, pairs(*((f"{n} ->", f" {n % 2}\n") for n in range(20))))
    training, validation = tmp_path / "t.jsonl", tmp_path / "v.jsonl"
    shown = run("split", path, "--training-file", training, "--validation-file", validation, "--share", "0.2").stdout
    assert (len(rows_in(training)), len(rows_in(validation))) == (16, 4)
    assert "all" in shown
    refused = run("split", path, "--training-file", training, "--validation-file", training, "--overwrite")
    assert (refused.exit_code, len(rows_in(training))) == (2, 16)
    assert run("sample", path, "-o", tmp_path / "s.jsonl", "--count", 5).stdout.startswith("5 rows")
    options = ("--to", "messages", "--separator", " ->", "--space", " ", "--stop", "\\n")
    assert run("convert", path, "-o", tmp_path / "c.jsonl", *options).stdout.startswith("20 rows")
    messages = rows_in(tmp_path / "c.jsonl")[3]["messages"]
    assert messages == [{"role": "user", "content": "3"}, {"role": "assistant", "content": "1"}]


def test_an_error_is_one_line(tmp_path: Path) -> None:
    """What this package raises is told without a traceback."""
    path = tmp_path / "a.jsonl"
    path.write_text("broken")
    result = run("sample", path, "-o", tmp_path / "b.jsonl", "--count", 1)
    assert result.exit_code == 5
    assert result.output.startswith("aiofinetune: ")
    assert "line 1" in result.output


def test_help_lists_the_commands() -> None:
    """The group lists its commands."""
    shown = run("--help").stdout
    assert all(name in shown for name in ("check", "mend", "split", "convert", "sample"))


@pytest.mark.parametrize(
    ("seconds", "is_terminal", "is_shown"), [(0.9, True, False), (1.1, True, True), (9, False, False)]
)
def test_a_bar_appears_after_a_second(seconds: float, *, is_terminal: bool, is_shown: bool) -> None:
    """On a terminal, what takes longer than a second shows how far it is; else nothing is printed."""
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
    times = iter([0.0, seconds, seconds])
    with progress_bar(Path("train.jsonl"), console, lambda: next(times)) as progress:
        progress(512, 1024)
        console.file.write("during")
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above
    assert ("reading train.jsonl" in shown) == is_shown
    assert shown.startswith("during") == (not is_shown)


def test_columns_with_other_names_are_mapped_not_dropped(tmp_path: Path) -> None:
    """If only the names of the columns are other, no mend is offered that drops all rows, but the names to give."""
    path = tmp_path / "train.csv"
    wide = "".join(f",a column of many {n}" for n in range(9))
    path.write_text(f"question,answer{wide}\n" + "".join(f"what {n} ->, x{n}{',' * 9}\n" for n in range(9)))
    shown = run("check", path).stdout
    assert "try again with --prompt question --completion answer" in " ".join(shown.split())
    assert "--mend missing-field" not in shown
    named = run("check", path, "--prompt", "question", "--completion", "answer", "--fail-on", "never")
    assert (named.exit_code, "missing-field" in named.stdout) == (0, False)


def test_columns_with_names_of_any_kind_are_not_dropped(tmp_path: Path) -> None:
    """If no row has a column, no mend is offered that drops all rows, and a mend that would writes no empty file."""
    path, output = tmp_path / "animals.csv", tmp_path / "x.jsonl"
    path.write_text("Animal,Kind,id\ncow,mammal,1\nhen,bird,2\n")
    shown = " ".join(run("check", path).stdout.split())
    assert "--prompt COLUMN --completion COLUMN" in shown
    assert "Animal, Kind, id" in shown
    assert "--mend missing-field" not in shown
    for option in (("-o", output), ("--dry-run",)):
        mended = run("mend", path, *option, "--mend", "missing-field")
        assert mended.exit_code == 5
        assert "of 2 rows none would be left" in mended.stderr
        assert "--prompt COLUMN --completion COLUMN" in mended.stderr
    assert not output.exists()
    assert "name them: --prompt" in run("mend", path, "-o", output).stderr
    assert run("check", path, "--prompt", "animal", "--completion", "Kind", "--fail-on", "never").exit_code == 0


def test_all_checks_are_listed() -> None:
    """Each check is listed with what is wrong, as a table or as JSON."""
    table = run("checks").stdout
    assert all(check in table for check in CHECKS)
    assert [it["id"] for it in json.loads(run("checks", "--json").stdout)] == list(CHECKS)
    example = '  {"prompt": "How many? ->", "completion": NaN}\n'
    assert run("checks", "not-a-number").stdout.partition("\n")[2] == example
    assert all(line.isprintable() and len(line) < 120 for line in run("checks", *CHECKS).stdout.splitlines())
