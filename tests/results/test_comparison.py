"""Jobs side by side."""

from __future__ import annotations

import pytest

from aiofinetune import ConfigurationError, ResultRow
from aiofinetune.results import Comparison, Results, Run


def run(label: str, loss: float | None = None, accuracy: float | None = None, **parameters: object) -> Run:
    """A job whose last row has a validation loss and an accuracy."""
    figures = {} if accuracy is None else {"accuracy": accuracy}
    results = Results([ResultRow(1, validation_loss=9.0), ResultRow(2, validation_loss=loss, classification=figures)])
    return Run(label, parameters, results, "succeeded")


RUNS = [
    run("a", 0.5, 0.75, n_epochs=1, model="ada", suffix="x"),
    run("b", 0.25, 0.75, n_epochs=2, model="ada"),
    run("c", 0.75, 0.5, n_epochs=10, model="ada"),
    Run("d", {"n_epochs": 4, "model": "ada"}, None, "failed"),
]


def test_parameters_that_differ() -> None:
    """Parameters in which the jobs differ are told from those that all have alike; one that is missing differs."""
    comparison = Comparison(RUNS)
    assert comparison.varied == ["n_epochs", "suffix"]
    assert comparison.shared == {"model": "ada"}
    assert Comparison([RUNS[0]]).varied == []
    assert Comparison([]).shared == {}


def test_the_best_of_each_figure() -> None:
    """Of a loss the lowest is best, of another figure the highest; equal ones are all best, and one alone is not."""
    comparison = Comparison(RUNS)
    assert comparison.best("validation_loss") == {1}
    assert comparison.best("classification/accuracy") == {0, 1}
    assert Comparison(RUNS[:1]).best("validation_loss") == frozenset()


def test_training_figures_are_means() -> None:
    """A training figure, which one batch decides, is the mean of the last twentieth of the steps."""
    losses = Results(ResultRow(step, training_loss=float(step)) for step in range(1, 41))
    assert Run("a", results=losses).figures() == {"training_loss": 39.5}
    assert Run("a", results=Results([ResultRow(1, training_loss=2.0)])).figures() == {"training_loss": 2.0}


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("end", [NAN, INF, -INF])
def test_a_training_that_diverged_is_never_the_best(end: float) -> None:
    """A job with a loss that is no number at the end says so, is not the best by any figure, and is sorted last."""
    lost = Results([ResultRow(1, training_loss=0.5, classification={"accuracy": 1.0}), ResultRow(2, training_loss=end)])
    good = Results([ResultRow(1, training_loss=0.8, classification={"accuracy": 0.5}), ResultRow(2, training_loss=0.6)])
    runs = [Run("div", results=lost), Run("good", results=good), Run("none")]
    comparison = Comparison(runs)
    assert [run.diverged for run in runs] == [it["diverged"] for it in comparison.to_dicts()] == [True, False, False]
    for figure in ("training_loss", "classification/accuracy"):
        assert comparison.best(figure) == {1}
        assert [run.label for run in comparison.ordered(figure).runs] == ["good", "div", "none"]
    assert Comparison([runs[0], runs[0]]).best("training_loss") == frozenset()


def test_a_batch_without_a_number_is_left_out_of_the_mean() -> None:
    """A training that goes on after an overflow has not diverged."""
    losses = [NAN if step == 39 else float(step) for step in range(1, 41)]
    run = Run("a", results=Results(ResultRow(step, training_loss=loss) for step, loss in enumerate(losses, 1)))
    assert (run.figures(), run.diverged) == ({"training_loss": 40.0}, False)


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        ("validation_loss", "bacd"),
        ("classification/accuracy", "abcd"),
        ("n_epochs", "abdc"),
        ("status", "dabc"),
        ("suffix", "abcd"),
    ],
)
def test_order(column: str, labels: str) -> None:
    """The best is first, parameters rise as numbers, and jobs without a value are last."""
    assert [run.label for run in Comparison(RUNS).ordered(column).runs] == list(labels)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("validation_loss", "validation_loss"),
        ("validation loss", "validation_loss"),
        ("loss", "validation_loss"),
        ("accuracy", "classification/accuracy"),
        ("epochs", "n_epochs"),
        ("model", "model"),
    ],
)
def test_columns_by_short_names(name: str, column: str) -> None:
    """A column may be called by its title or a part of its name."""
    assert Comparison(RUNS).column(name) == column


def test_columns_that_are_none() -> None:
    """A name of no column, or of several, is refused with those there are."""
    with pytest.raises(ConfigurationError, match=r"^recall: is not a column; there are: label, .*validation_loss"):
        Comparison(RUNS).column("recall")
    with pytest.raises(ConfigurationError, match=r"^el: is a part of several columns: label, fine_tuned_model, model$"):
        Comparison(RUNS).column("el")


def test_dicts() -> None:
    """Each job is a dict of its label, its end, the parameters and the final figures, with None where it has none."""
    first, *_, last = Comparison(RUNS).to_dicts()
    assert list(first) == list(last)
    assert first["n_epochs"] == 1
    assert first["validation_loss"] == 0.5
    assert last["status"] == "failed"
    assert last["suffix"] is last["validation_loss"] is None
