"""Measures of a classifier, by their textbook definitions, and at the edges by scikit-learn's conventions."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.intp]
Flags = NDArray[np.bool_]


def accuracy(truth: Labels | Flags, predicted: Labels | Flags) -> float:
    """Return the share of (n,) predictions that are right."""
    return float(np.mean(truth == predicted))


def weighted_f1(truth: Labels, predicted: Labels) -> float:
    """Return the mean of the classes' F1, each weighted by how often the class is the truth."""
    classes, counts = np.unique(truth, return_counts=True)
    scores = [f_beta(truth == label, predicted == label, 1.0) for label in classes]
    return float(np.average(scores, weights=counts))


def precision(truth: Flags, predicted: Flags) -> float:
    """Return the share of predicted positives that are positive, 0 if nothing was predicted positive."""
    return _ratio(np.count_nonzero(truth & predicted), np.count_nonzero(predicted))


def recall(truth: Flags, predicted: Flags) -> float:
    """Return the share of positives that were predicted positive, 0 if there is no positive."""
    return _ratio(np.count_nonzero(truth & predicted), np.count_nonzero(truth))


def f_beta(truth: Flags, predicted: Flags, beta: float) -> float:
    """Return the harmonic mean of precision and recall, recall counting `beta` times as much (van Rijsbergen 1979)."""
    share = 1 / (1 + beta * beta)  # Of precision. Unlike a power, a product too large is infinite, and this then 0.
    return _ratio(
        np.count_nonzero(truth & predicted),
        (1 - share) * np.count_nonzero(truth) + share * np.count_nonzero(predicted),
    )


def auroc(truth: Flags, scores: NDArray[np.float64]) -> float | None:
    """Return the chance that a positive scores over a negative, a tie counting half (Mann and Whitney 1947).

    None if the truth has one class only, where it is undefined.
    """
    positives, negatives = np.count_nonzero(truth), np.count_nonzero(~truth)
    if not positives or not negatives:
        return None
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((np.sum(ranks[group][truth]) - positives * (positives + 1) / 2) / (positives * negatives))


def auprc(truth: Flags, scores: NDArray[np.float64]) -> float | None:
    """Return the average precision: over all thresholds, precision times the recall added; None if none is positive."""
    if not truth.any():
        return None
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(truth[order])[last_of_ties]
    return float(np.sum(np.diff(hits, prepend=0) / hits[-1] * hits / (last_of_ties + 1)))


def _ratio(part: np.integer | float, whole: np.integer | float) -> float:
    return float(part / whole) if whole else 0.0
