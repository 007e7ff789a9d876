"""The classification metrics against scikit-learn's."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as untyped  # type: ignore[import-untyped]

from aiofinetune.local._engines import metrics

reference: Any = untyped  # Its signatures, as type checkers guess them, leave out most of what it takes.

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)
SCORED = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 0.9, 1.0])), min_size=2, max_size=40
)


@given(LABELS)
def test_multiclass_metrics_match_the_reference(pairs: list[tuple[int, int]]) -> None:
    """Accuracy and weighted F1 are scikit-learn's, whatever classes are present."""
    truth, predicted = np.array(pairs, np.intp).T
    assert metrics.accuracy(truth, predicted) == pytest.approx(reference.accuracy_score(truth, predicted))
    expected = reference.f1_score(truth, predicted, average="weighted", zero_division=0)
    assert metrics.weighted_f1(truth, predicted) == pytest.approx(expected)


@given(SCORED, st.sampled_from([0.5, 1.0, 2.0]))
def test_binary_metrics_match_the_reference(rows: list[tuple[bool, float]], beta: float) -> None:
    """Precision, recall, F-beta, AUROC and average precision are scikit-learn's, ties among the scores included."""
    truth = np.array([positive for positive, _ in rows])
    scores = np.array([score for _, score in rows])
    predicted = scores >= 0.5
    options = {"zero_division": 0}
    assert metrics.precision(truth, predicted) == pytest.approx(reference.precision_score(truth, predicted, **options))
    assert metrics.recall(truth, predicted) == pytest.approx(reference.recall_score(truth, predicted, **options))
    expected = reference.fbeta_score(truth, predicted, beta=beta, **options)
    assert metrics.f_beta(truth, predicted, beta) == pytest.approx(expected)
    if truth.any() and not truth.all():
        assert metrics.auroc(truth, scores) == pytest.approx(reference.roc_auc_score(truth, scores))
    if truth.any():
        assert metrics.auprc(truth, scores) == pytest.approx(reference.average_precision_score(truth, scores))


def test_curves_are_undefined_without_the_classes_they_compare() -> None:
    """With one class there is no area under the curve, rather than a made-up one."""
    scores = np.array([0.1, 0.2])
    assert metrics.auroc(np.array([True, True]), scores) is None
    assert metrics.auroc(np.array([False, False]), scores) is None
    assert metrics.auprc(np.array([False, False]), scores) is None


def test_auroc_rises_with_each_pair_put_right() -> None:
    """A perfect order gives 1, its reverse 0."""
    truth = np.array([False, False, True, True])
    orders = [[4, 3, 2, 1], [4, 2, 3, 1], [1, 3, 2, 4], [1, 2, 3, 4]]
    areas = [metrics.auroc(truth, np.array(order, np.float64)) or 0.0 for order in orders]
    assert areas[0] == 0
    assert areas[-1] == 1
    assert all(lower < higher for lower, higher in pairwise(areas))
