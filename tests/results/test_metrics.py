"""The metrics of a classifier against scikit-learn's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as untyped  # type: ignore[import-untyped]

from aiofinetune import results

reference: Any = untyped  # Its signatures, as type checkers guess them, leave out most of what it takes.

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)
SCORED = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 0.9, 1.0])), min_size=2, max_size=40
)


@given(LABELS)
def test_multiclass_metrics_match_the_reference(pairs: list[tuple[int, int]]) -> None:
    """Accuracy and weighted F1 are scikit-learn's, whatever classes are present."""
    truth, predicted = map(list, zip(*pairs, strict=True))
    assert results.accuracy(truth, predicted) == pytest.approx(reference.accuracy_score(truth, predicted))
    expected = reference.f1_score(truth, predicted, average="weighted", zero_division=0)
    assert results.weighted_f1(truth, predicted) == pytest.approx(expected)


@given(SCORED, st.sampled_from([0.5, 1.0, 2.0]))
def test_binary_metrics_match_the_reference(rows: list[tuple[bool, float]], beta: float) -> None:
    """Precision, recall, F-beta, AUROC and average precision are scikit-learn's, ties among the scores included."""
    truth = [positive for positive, _ in rows]
    scores = [score for _, score in rows]
    predicted = [score >= 0.5 for score in scores]
    options = {"zero_division": 0}
    assert results.precision(truth, predicted) == pytest.approx(reference.precision_score(truth, predicted, **options))
    assert results.recall(truth, predicted) == pytest.approx(reference.recall_score(truth, predicted, **options))
    expected = reference.fbeta_score(truth, predicted, beta=beta, **options)
    assert results.f_beta(truth, predicted, beta) == pytest.approx(expected)
    if any(truth) and not all(truth):
        assert results.auroc(truth, scores) == pytest.approx(reference.roc_auc_score(truth, scores))
    if any(truth):
        assert results.auprc(truth, scores) == pytest.approx(reference.average_precision_score(truth, scores))


def test_labels_may_be_texts() -> None:
    """Completions are labels as they stand: three of four are right, and F1 is 2/3 and 4/5."""
    truth, predicted = [" cat", " cat", " dog", " dog"], [" cat", " dog", " dog", " dog"]
    assert results.accuracy(truth, predicted) == 0.75
    assert results.weighted_f1(truth, predicted) == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_curves_are_undefined_without_the_classes_they_compare() -> None:
    """With one class there is no area under the curve, rather than a made-up one."""
    scores = [0.1, 0.2]
    assert results.auroc([True, True], scores) is None
    assert results.auroc([False, False], scores) is None
    assert results.auprc([False, False], scores) is None


def test_auroc_rises_with_each_pair_put_right() -> None:
    """A perfect order gives 1, its reverse 0."""
    truth = [False, False, True, True]
    orders = [[4, 3, 2, 1], [4, 2, 3, 1], [1, 3, 2, 4], [1, 2, 3, 4]]
    areas = [results.auroc(truth, order) or 0.0 for order in orders]
    assert areas[0] == 0
    assert areas[-1] == 1
    assert all(lower < higher for lower, higher in pairwise(areas))


@pytest.mark.parametrize("metric", [results.accuracy, results.weighted_f1, results.precision, results.recall,
                                    results.f_beta, results.auroc, results.auprc])  # fmt: skip
def test_what_cannot_be_measured(metric: Callable[[list[bool], list[bool]], float]) -> None:
    """No prediction at all, or another number than of truths, is an error and not a figure."""
    with pytest.raises(ValueError, match="expected at least one"):
        metric([], [])
    with pytest.raises(ValueError, match="2 true values and 1 predictions"):
        metric([True, False], [True])


@pytest.mark.parametrize("metric", [results.auroc, results.auprc])
def test_scores_that_are_no_numbers(metric: Callable[[list[bool], list[float]], float]) -> None:
    """NaN has no place in an order, so it is refused rather than put anywhere."""
    with pytest.raises(ValueError, match="NaN"):
        metric([True, False], [0.5, float("nan")])
