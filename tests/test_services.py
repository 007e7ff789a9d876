"""What is held in each dialect: the command that lists it, and the README's table, which is the same data."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from aiofinetune.cli._commands import cli
from aiofinetune.cli._services import show
from aiofinetune.dialects import DIALECTS, Dialect
from aiofinetune.dialects._capabilities import NAMES, capabilities, markdown

README = Path(__file__).parents[1] / "README.md"
IN_README = (
    *("a job is made once, and not lost", "a lost create is found", "each event once, to the end", "uploads"),
    *(
        "methods besides supervised",
        "jobs by metadata",
        "pause, resume",
        "checkpoints",
        "price of a job beforehand",
        "the tuned model's name",
    ),
    "completions of the model",
)
EACH = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


def test_services() -> None:
    """Every dialect is listed, with its hosts and what it lacks."""
    text = io.StringIO()
    show(Console(file=text, width=400))
    for dialect in DIALECTS.values():
        for word in (dialect.name, *dialect.hosts, *dialect.lacks, dialect.about):
            assert word in text.getvalue()
    assert "a key in its metadata" in text.getvalue()
    assert "in parts" in text.getvalue()


def test_no_word_is_broken_in_a_narrow_terminal() -> None:
    """Where the dialects have no room beside each other, they stand one below the other."""
    text = io.StringIO()
    show(Console(file=text, width=80))
    lines = text.getvalue()
    assert max(map(len, lines.splitlines()[:-1])) <= 80
    for dialect in DIALECTS.values():
        for word in (*dialect.hosts, *dialect.about.split(), *dialect.lacks):
            assert word in lines


def test_one_service() -> None:
    """A dialect can be listed alone; one that there is not is refused with those that there are."""
    alone = CliRunner().invoke(cli, ["services", "--dialect", "nebius"])
    assert (alone.exit_code, "from the last checkpoint" in alone.stdout) == (0, True)
    assert "azure" not in alone.stdout.casefold()
    wrong = CliRunner().invoke(cli, ["services", "--dialect", "none"])
    assert wrong.exit_code == 2
    assert "expected a Dialect or one of fine-tunes, jobs, azure" in wrong.stderr


def test_the_readme_shows_what_is_held() -> None:
    """The README's table is what the dialects say of themselves; if not, put in the one that this test expects."""
    assert markdown(DIALECTS.values(), IN_README) in README.read_text()


@EACH
def test_what_is_missing_is_not_held(dialect: Dialect) -> None:
    """What a dialect says is missing has a row, and nothing that would be held without that."""
    rows = capabilities(dialect)
    for name in dialect.missing:
        assert rows[name].word == "missing"
    assert set(dialect.missing) <= set(NAMES)


@EACH
def test_a_call_is_held_if_there_is_an_endpoint(dialect: Dialect) -> None:
    """What some services lack is held exactly where the dialect has an endpoint for it."""
    rows, endpoints = capabilities(dialect), dialect.endpoints
    offered = {
        "pause, resume": endpoints.pause_fine_tune,
        "checkpoints": endpoints.list_checkpoints,
        "delete a job": endpoints.delete_fine_tune,
        "price of a job beforehand": endpoints.estimate_price,
    }
    assert {name: rows[name].word == "held" for name in offered} == {
        name: endpoint is not None for name, endpoint in offered.items()
    }
