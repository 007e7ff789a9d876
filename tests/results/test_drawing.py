"""Curves drawn as text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiofinetune import ResultRow
from aiofinetune.results import Results, draw_curves
from aiofinetune.results._drawing import cells_of

FALLING = Results(
    ResultRow(step, training_loss=4 - 3 * step / 40, validation_loss=3.0 if step == 20 else None)
    for step in range(1, 41)
)

ONE_JOB = """\
loss   . training   * smoothed
   o validation
  |****              :                 :
  |   *******        :                 :
3 +         *******  o                 :
  |               *******              :
2 +                  :  *******        :
  |                  :        *******  :
1 +                  :              ****
  +------------------+-----------------+
step                 20               40
epoch                1                 2
"""


def text_of(
    results: dict[str, Results],
    epochs: dict[str, int | None] | None = None,
    *,
    width: int = 80,
    height: int = 12,
    is_ascii: bool = False,
) -> str:
    lines = draw_curves(results, epochs, width=width, height=height, is_ascii=is_ascii)
    return "\n".join("".join(piece.text for piece in line).rstrip() for line in lines)


def test_one_job() -> None:
    """The training falls from the left to the right, the validation is marked where it was measured, epochs too."""
    drawn = text_of({"a": FALLING}, {"a": 2}, width=40, height=7, is_ascii=True)
    assert drawn == ONE_JOB


def test_several_jobs() -> None:
    """Each job has a letter on its line and in the legend, so that lines are told apart without colours."""
    other = Results(ResultRow(step, training_loss=4.0) for step in range(1, 41))
    drawn = text_of({"first": FALLING, "second": other}, width=60, height=8, is_ascii=True)
    title, *rows = drawn.splitlines()
    assert title == "training loss, smoothed   *a* first   *b* second"
    assert rows[0].startswith("4 +***b***********b***")
    assert sum(row.count("a") for row in rows[1:8]) == 5


def test_jobs_whose_epochs_differ_in_length() -> None:
    """Jobs with other batch sizes are compared by epochs, as their steps mean different things."""
    short = Results(ResultRow(step, training_loss=1.0 + step) for step in range(1, 11))
    drawn = text_of({"a": FALLING, "b": short}, {"a": 2, "b": 2}, width=60)
    assert "\nepoch" in drawn
    assert "\nstep" not in drawn
    drawn = text_of({"a": FALLING, "b": short}, {"a": 4, "b": 1}, width=60)
    assert "\nstep" in drawn


def test_epochs_that_the_file_shows() -> None:
    """Figures that are computed at the end of each epoch show where epochs end, if nobody says how many there are."""
    rows = Results(
        ResultRow(n, training_loss=1.0, classification={"f1.0": 0.5} if n % 10 == 0 else {}) for n in range(1, 31)
    )
    assert "\nepoch" in text_of({"a": rows})
    assert "\nepoch" not in text_of({"a": Results(rows[:-1])})


def test_a_steep_fall_has_a_logarithmic_axis() -> None:
    """A loss that falls to a small part is drawn so that its end is more than a flat line."""
    steep = Results(ResultRow(step, training_loss=10 / step) for step in range(1, 101))
    ticks = [line.split()[0] for line in text_of({"a": steep}).splitlines() if "┤" in line]
    assert ticks == ["10", "3", "1", "0.3", "0.1"]


def test_a_spike_is_cut_off() -> None:
    """A single batch far above the curves does not press them flat."""
    rows = Results(ResultRow(step, training_loss=1000.0 if step == 300 else 1.0 + step / 400) for step in range(1, 401))
    ticks = [line.split()[0] for line in text_of({"a": rows}).splitlines() if "┤" in line]
    assert max(map(float, ticks)) < 30


NOTHING = [Results(), Results([ResultRow(1)]), Results([ResultRow(1, other={"note": "x"})])]


@pytest.mark.parametrize("results", NOTHING, ids=["no rows", "no figures", "unknown columns"])
def test_nothing_to_draw(results: Results) -> None:
    """A file without figures is no drawing, and no error."""
    assert draw_curves({"a": results}) == []
    assert draw_curves({"a": results, "b": results}) == []
    assert draw_curves({}) == []


VALUES = st.floats() | st.none() | st.floats(0, 1) | st.sampled_from([1e308, -1e308, 1e-320, 5e-324])
ROWS = st.lists(
    st.tuples(st.integers(0, 10**9) | st.integers(-(10**308), 10**308), VALUES, VALUES, VALUES), max_size=12
)


@settings(max_examples=50)
@given(
    st.lists(ROWS, max_size=3), st.integers(20, 210), st.integers(1, 20), st.booleans(), st.none() | st.integers(1, 50)
)
def test_any_figures_fit(
    jobs: list[list[tuple[int, float | None, float | None, float | None]]],
    width: int,
    height: int,
    is_ascii: bool,  # hypothesis passes it
    epochs: int | None,
) -> None:
    """Whatever the figures are, no line is longer than the width, and ASCII is ASCII."""
    results = {
        f"job-{number}" * 9: Results(
            ResultRow(step, training_loss=loss, validation_loss=other, training_token_accuracy=accuracy)
            for step, loss, other, accuracy in rows
        )
        for number, rows in enumerate(jobs)
    }
    drawn = text_of(results, dict.fromkeys(results, epochs), width=width, height=height, is_ascii=is_ascii)
    assert all(len(line) <= max(width, 40) for line in drawn.splitlines())
    assert drawn.isascii() or not is_ascii


def test_steps_in_any_order() -> None:
    """The axis reaches from the lowest step to the highest, whichever is first in the file."""
    rows = [ResultRow(step, training_loss=float(step)) for step in (10**9, 1, 10**9 // 2)]
    axis = text_of({"a": Results(rows)}).splitlines()[-1].split()
    assert axis == ["step", "1", "1000000000"]


def test_wide_characters_take_two_cells() -> None:
    """A character of Chinese takes two cells of a terminal, and one that combines none."""
    assert [cells_of(text) for text in ("abc", "犬と猫", "e\u0301", "")] == [3, 6, 1, 0]
