"""Paths and numbers that no command can use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import shell


@pytest.mark.parametrize(
    "words",
    [
        "batch gone.toml",
        "batch status gone.journal",
        "create gone.jsonl",
        "create file-1 --validation-file ./gone.jsonl",
        "data check gone.jsonl",
        "files upload gone.jsonl",
        "try ada --file gone.jsonl",
        "worker --server https://tuning.example.com --token-file gone",
    ],
)
def test_a_file_that_is_not_there_has_the_status_of_a_wrong_file(words: str) -> None:
    """The command is well used, and a file is wrong: 5, with the file's name."""
    result = shell(*words.split())
    assert (result.exit_code, "gone" in result.stderr) == (5, True)


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("words", ["list --timeout", "batch jobs.toml --outage", "batch jobs.toml --per-minute"])
def test_what_is_no_number_is_refused(words: str, number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option is named, and not what would come of it later."""
    monkeypatch.chdir(tmp_path)
    Path("jobs.toml").write_text("")
    result = shell(*words.split(), number)
    assert result.exit_code == 2
    assert f"Invalid value for '{words.rsplit(maxsplit=1)[-1]}': expected a number, got '{number}'" in result.stderr


@pytest.mark.parametrize("option", ["--retry-failed", "--retry-uncertain=a"])
def test_a_fresh_batch_retries_nothing(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two options that contradict each other are wrong use, before anything is sent."""
    monkeypatch.chdir(tmp_path)
    Path("jobs.toml").write_text("")
    result = shell("batch", "jobs.toml", "--fresh", option)
    assert (result.exit_code, "--fresh begins a new journal, with nothing to retry" in result.stderr) == (2, True)
