"""What is printed fits a terminal, a pipe and the eye, and never steers the terminal."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from aiofinetune.cli._following import Training
from aiofinetune.cli._output import Column, ago, clock, duration, print_columns, print_fields, print_line, size

IDS = ["ft-AF1WoRqd3aJAHsqc9NY7iL8F", "ft-BF1WoRqd3aJAHsqc9NY7iL8F"]
MODEL = "ada:ft-local:scripts-2026-11-27-15-43-48"


class Screen:
    """What is printed: on a terminal of a width, or in a pipe (width 0)."""

    def __init__(self, width: int = 0, encoding: str = "utf-8") -> None:
        self._bytes = io.BytesIO()
        file = io.TextIOWrapper(self._bytes, encoding=encoding, errors="replace", write_through=True)
        self.console = Console(
            file=file, width=width or None, force_terminal=bool(width), no_color=True, color_system=None
        )

    @property
    def lines(self) -> list[str]:
        """The lines, without spaces at their ends."""
        return [line.rstrip() for line in self._bytes.getvalue().decode().splitlines()]


def jobs() -> list[Column]:
    return [
        Column("job", IDS),
        Column("status", ["succeeded", "running"]),
        Column("steps", ["5", "1000"], is_number=True),
        Column("note", ["a rather long note of several words", ""], may_fold=True),
        Column("fine-tuned model", [MODEL, ""]),
    ]


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_a_table_fits_and_ids_stay_whole(width: int) -> None:
    """Ids can be copied at every width; columns that have no room are named."""
    screen = Screen(width)
    print_columns(screen.console, jobs())
    assert all(any(job in line for line in screen.lines) for job in IDS)
    rows = [line for line in screen.lines if not line.startswith("no room")]
    assert width == 20 or max(map(len, rows)) <= width
    has_model = any(MODEL in line for line in screen.lines)
    assert has_model is (width == 200)
    assert has_model is not any(
        line.startswith("no room for: ") and "fine-tuned model" in line for line in screen.lines
    )


def test_a_table_in_a_pipe_has_a_line_for_each_row() -> None:
    """In a pipe nothing is cut, folded or left out, and no line ends with spaces."""
    screen = Screen()
    print_columns(screen.console, jobs())
    assert [line.split() for line in screen.lines] == [
        ["job", "status", "steps", "note", "fine-tuned", "model"],
        [IDS[0], "succeeded", "5", *["a", "rather", "long", "note", "of", "several", "words"], MODEL],
        [IDS[1], "running", "1000"],
    ]


def test_a_long_table_in_a_pipe_measures_each_cell_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a row takes does not depend on how many there are."""
    measured = [0]

    def spy(text: str) -> int:
        measured[0] += 1
        return cell_len(text)

    monkeypatch.setattr("aiofinetune.cli._output.cell_len", spy)
    screen = Screen()
    print_columns(screen.console, [Column("job", [f"ft-{n}" for n in range(1000)])])
    assert (len(screen.lines), measured[0] < 5000) == (1001, True)


def test_nothing_steers_the_terminal() -> None:
    """Control characters and marks of direction in a service's text are spaces; brackets are no markup."""
    evil = "\x1b[2J\u202e[bold]a\nb\x9b"
    screen = Screen(60)
    print_line(screen.console, evil)
    print_fields(screen.console, [("name", evil), ("empty", "")])
    print_columns(screen.console, [Column("job", [evil])])
    shown = "\n".join(screen.lines)
    assert shown.count("[2J [bold]a b") == 3
    assert not any(character in shown for character in "\x1b\u202e\x9b")
    assert "empty" not in shown


def test_a_terminal_without_utf_8() -> None:
    """What the terminal's encoding lacks is a question mark."""
    screen = Screen(60, "ascii")
    print_columns(screen.console, [Column("file", ["d\xe4ten"])])
    assert screen.lines == ["file", "d?ten"]


def test_times_are_said_as_people_say_them() -> None:
    """Ages are in the largest fitting unit; what is long ago is a date; nonsense stays a number."""
    now = 1_000_000_000
    said = [ago(now - seconds, now) for seconds in (0, 59, 61, 7200, 86400, 3 * 86400, -120)]
    assert said == ["0 s ago", "59 s ago", "1 min ago", "2 h ago", "1 day ago", "3 days ago", "in 2 min"]
    assert ago(now - 100 * 86400, now).startswith("2001-0")
    assert (ago(None), clock(None), clock(-1), clock(1e18)) == ("", "", "-1", "1000000000000000000")
    assert [duration(seconds) for seconds in (5, 65, 3723)] == ["0:05", "1:05", "1:02:03"]
    assert [size(count) for count in (None, 5, 2048, 5 << 20, 3 << 30)] == ["", "5 B", "2.0 KiB", "5.0 MiB", "3.0 GiB"]


def test_progress_is_read_from_the_events() -> None:
    """The words of the reference and of OpenAI's jobs say how far a job is; other words change nothing."""
    training = Training()
    assert str(training) == ""
    for message in ("Fine-tune started", "Completed epoch 2/4", "Uploaded model: ada:ft-step-7-loss"):
        training = training.after(message)
    assert (str(training), training.total) == ("epoch 2/4", 4)
    training = training.after("Step 10/100: training loss=0.25, validation loss=0.5")
    assert str(training) == "step 10/100, loss 0.25"
    assert str(training.after("Step 11: training loss=1.5e-05")) == "step 11/100, loss 1.5e-05"
    assert str(training.after("Completed epoch 1")) == "epoch 1, loss 0.25"
