"""Views of a results file: its figures by name, series, summaries and data frames."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable

import pytest

from aiofinetune import ResultRow
from aiofinetune.results import FigureSummary, Results, last_figures, read_results
from aiofinetune.results._figures import smoothed, title_of

JOBS = (
    b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,full_valid_loss,"
    b"full_valid_mean_token_accuracy\n"
    b"1,2.5,0.25,2.25,0.5,,\n2,1.5,0.5,-1,,1.75,0.625\n"
)
"""A file of the jobs API."""


def test_the_jobs_api_has_the_same_figures() -> None:
    """The jobs API's columns are read under the reference's names, so that all that reads rows knows one name."""
    assert read_results(JOBS) == [
        ResultRow(
            1,
            training_loss=2.5,
            training_token_accuracy=0.25,
            validation_loss=2.25,
            validation_token_accuracy=0.5,
        ),
        ResultRow(
            2,
            training_loss=1.5,
            training_token_accuracy=0.5,
            full_validation_loss=1.75,
            full_validation_token_accuracy=0.625,
        ),
    ]


def test_two_columns_for_one_figure() -> None:
    """A column whose figure another one has already keeps its own name and its text."""
    (row,) = read_results(b"step,train_accuracy,train_mean_token_accuracy\n1,0.25,0.5\n")
    assert row.training_token_accuracy == 0.25
    assert row.other == {"train_mean_token_accuracy": "0.5"}
    (row,) = read_results(b"step,train_loss,training_loss\n1,0.25,0.5\n")
    assert row.training_loss == 0.5
    assert row.other == {"train_loss": "0.25"}


@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes], ids=["one line", "lines"])
def test_base64(encode: Callable[[bytes], bytes]) -> None:
    """A file that a service sends in base64 is read as if it were sent plain."""
    assert read_results(encode(JOBS)) == read_results(JOBS)


def test_series() -> None:
    """The series of a figure has the steps in which it was computed; an unknown column has one where it is numbers."""
    results = read_results(
        b"step,training_loss,validation_loss,lr,note\n1,0.5,,0.1,a\n2,0.25,0.75,0.05,\n3,0.125,,x,b\n"
    )
    assert results.metrics == ["training_loss", "validation_loss"]
    assert results.series("training_loss") == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert results.series("validation_loss") == [(2, 0.75)]
    assert results.series("lr") == [(1, 0.1), (2, 0.05)]
    assert results.series("note") == results.series("no such column") == []


def test_summary() -> None:
    """Of a loss the lowest value is best, of an accuracy the highest, and the first step that has it is named."""
    rows = b"step,validation_loss,classification/accuracy\n1,0.5,0.5\n2,0.25,0.75\n3,0.25,0.75\n4,0.375,0.625\n"
    assert read_results(rows).summary() == {
        "validation_loss": FigureSummary(final=0.375, final_step=4, best=0.25, best_step=2),
        "classification/accuracy": FigureSummary(final=0.625, final_step=4, best=0.75, best_step=2),
    }
    assert Results().summary() == {}


DIVERGED = b"step,training_loss\n1,0.9\n2,0.5\n3,nan\n4,nan\n"
"""A job whose training diverged after its second step."""


def test_summary_of_a_training_that_diverged() -> None:
    """The last value counts also if it is no number; the best one is a number, if there is any."""
    rows = read_results(DIVERGED)
    figure = rows.summary()["training_loss"]
    assert math.isnan(figure.final)
    assert (figure.final_step, figure.best, figure.best_step) == (4, 0.5, 2)
    assert math.isnan(last_figures(rows)["training_loss"])
    figure = read_results(b"step,training_loss\n1,nan\n2,inf\n").summary()["training_loss"]
    assert (figure.final, figure.final_step) == (figure.best, figure.best_step) == (math.inf, 2)


def test_dicts_have_the_same_keys() -> None:
    """A data frame takes the rows: each has every column that any has, in the reference's order, None where empty."""
    results = read_results(b"note,classification/f1.0,validation_loss,step\na,,0.5,1\n,0.75,,2\n")
    assert results.to_dicts() == [
        {"step": 1, "validation_loss": 0.5, "classification/f1.0": None, "note": "a"},
        {"step": 2, "validation_loss": None, "classification/f1.0": 0.75, "note": ""},
    ]
    assert [list(row) for row in results.to_dicts()] == [["step", "validation_loss", "classification/f1.0", "note"]] * 2
    assert Results().to_dicts() == []


def test_pandas() -> None:
    """Pandas makes columns of numbers, with gaps where a figure was not computed."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(read_results(JOBS).to_dicts())
    assert list(frame["training_loss"]) == [2.5, 1.5]
    assert list(frame["full_validation_loss"].isna()) == [True, False]


def test_polars() -> None:
    """Polars does as the docstring says, also where a figure is not computed in the first hundred rows."""
    polars = pytest.importorskip("polars", reason="polars is not installed")
    rows = Results([*(ResultRow(step, training_loss=1.0) for step in range(200)), ResultRow(200, validation_loss=0.5)])
    frame = polars.DataFrame(rows.to_dicts(), infer_schema_length=None)
    assert frame["validation_loss"].null_count() == 200
    assert frame["validation_loss"][200] == 0.5


def test_smoothed() -> None:
    """Each point is the mean of a twentieth of the points around it; few points stay as they are."""
    few = [(step, float(step % 2)) for step in range(39)]
    assert smoothed(few) == few
    many = [(step, float(step % 2)) for step in range(400)]
    means = [mean for _, mean in smoothed(many)]
    assert means[0] == 0.0
    assert means[200] == pytest.approx(10 / 21)
    assert means[-1] == pytest.approx(6 / 11)
    assert [step for step, _ in smoothed(many)] == list(range(400))
    assert smoothed([]) == []


@pytest.mark.parametrize(
    ("figure", "title"),
    [
        ("validation_loss", "validation loss"),
        ("n_epochs", "epochs"),
        ("classification/weighted_f1_score", "weighted F1"),
        ("classification/f1.0", "F1"),
        ("classification/f0.5", "F0.5"),
        ("classification/f...", "f..."),
    ],
)
def test_titles(figure: str, title: str) -> None:
    """A figure has the name by which people know it."""
    assert title_of(figure) == title
