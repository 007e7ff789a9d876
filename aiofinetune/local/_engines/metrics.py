"""Metrics of a classifier by their textbook definitions, with scikit-learn's conventions for edge cases."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.intp]
Flags = NDArray[np.bool_]


def accuracy(truth: Labels | Flags, predicted: Labels | Flags) -> float:
    """Return the share of the (n,) predictions that are correct."""
    return float(np.mean(truth == predicted))


def weighted_f1(truth: Labels, predicted: Labels) -> float:
    """Return the mean F1 of the classes, weighted by the number of true instances of each."""
    classes, counts = np.unique(truth, return_counts=True)
    scores = [f_beta(truth == label, predicted == label, 1.0) for label in classes]
    return float(np.average(scores, weights=counts))


def precision(truth: Flags, predicted: Flags) -> float:
    """Return the share of predicted positives that are positive; 0 if nothing is predicted positive."""
    return _ratio(np.count_nonzero(truth & predicted), np.count_nonzero(predicted))


def recall(truth: Flags, predicted: Flags) -> float:
    """Return the share of positives that are predicted positive; 0 if there are no positives."""
    return _ratio(np.count_nonzero(truth & predicted), np.count_nonzero(truth))


def f_beta(truth: Flags, predicted: Flags, beta: float) -> float:
    """Return the harmonic mean of precision and recall, with recall weighted `beta` times (van Rijsbergen 1979)."""
    # The weight of precision. If `beta * beta` overflows it is infinity, where `beta**2` raises OverflowError.
    share = 1 / (1 + beta * beta)
    return _ratio(
        np.count_nonzero(truth & predicted),
        (1 - share) * np.count_nonzero(truth) + share * np.count_nonzero(predicted),
    )


def auroc(truth: Flags, scores: NDArray[np.float64]) -> float | None:
    """Return the probability that a positive scores higher than a negative (Mann and Whitney 1947).

    A tie counts as half. None if the truth has only one class, for which the value is undefined.
    """
    positives, negatives = np.count_nonzero(truth), np.count_nonzero(~truth)
    if not positives or not negatives:
        return None
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((np.sum(ranks[group][truth]) - positives * (positives + 1) / 2) / (positives * negatives))


def auprc(truth: Flags, scores: NDArray[np.float64]) -> float | None:
    """Return the average precision: the sum over all thresholds of precision times the increase in recall.

    None if there are no positives.
    """
    if not truth.any():
        return None
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(truth[order])[last_of_ties]
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * hits / (last_of_ties + 1)))


def _ratio(part: np.integer | float, whole: np.integer | float) -> float:
    return float(part / whole) if whole else 0.0
