"""Metrics of a classifier by their textbook definitions, with scikit-learn's conventions for edge cases.

They are plain Python: for 100,000 predictions the slowest takes a quarter of a second, which is little beside the
time that a model takes to predict as many.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby


def accuracy(truth: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Return the share of predictions that are correct.

    Args:
        truth: The true label of each example: texts, numbers, flags or anything else that can be compared.
        predicted: The predicted labels, in the same order.

    Raises:
        ValueError: There is no prediction, or not one for each example. So do all metrics of this module.
    """
    _check_lengths(truth, predicted)
    return _hits(truth, predicted) / len(truth)


def weighted_f1(truth: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Return the mean F1 of the classes, weighted by the number of true instances of each.

    Args:
        truth: The true label of each example.
        predicted: The predicted labels, in the same order.
    """
    _check_lengths(truth, predicted)
    counts, guesses = Counter(truth), Counter(predicted)
    hits = Counter(label for label, guess in zip(truth, predicted, strict=True) if label == guess)
    scores = (count * 2 * hits[label] / (count + guesses[label]) for label, count in counts.items())
    return math.fsum(scores) / len(truth)


def precision(truth: Sequence[bool], predicted: Sequence[bool]) -> float:
    """Return the share of predicted positives that are positive; 0 if nothing is predicted positive.

    Args:
        truth: Whether each example is positive.
        predicted: Whether each is predicted positive, in the same order.
    """
    _check_lengths(truth, predicted)
    return _ratio(_both(truth, predicted), sum(predicted))


def recall(truth: Sequence[bool], predicted: Sequence[bool]) -> float:
    """Return the share of positives that are predicted positive; 0 if there are no positives.

    Args:
        truth: Whether each example is positive.
        predicted: Whether each is predicted positive, in the same order.
    """
    _check_lengths(truth, predicted)
    return _ratio(_both(truth, predicted), sum(truth))


def f_beta(truth: Sequence[bool], predicted: Sequence[bool], beta: float = 1.0) -> float:
    """Return the harmonic mean of precision and recall, with recall weighted `beta` times (van Rijsbergen 1979).

    Args:
        truth: Whether each example is positive.
        predicted: Whether each is predicted positive, in the same order.
        beta: How many times as much recall counts as precision; greater than 0.
    """
    _check_lengths(truth, predicted)
    # The weight of precision. If `beta * beta` overflows it is infinity, where `beta**2` raises OverflowError.
    share = 1 / (1 + beta * beta)
    return _ratio(_both(truth, predicted), (1 - share) * sum(truth) + share * sum(predicted))


def auroc(truth: Sequence[bool], scores: Sequence[float]) -> float | None:
    """Return the probability that a positive scores higher than a negative (Mann and Whitney 1947).

    A tie counts as half. None if the truth has only one class, for which the value is undefined.

    Args:
        truth: Whether each example is positive.
        scores: A number for each, in the same order: the higher, the more surely positive.

    Raises:
        ValueError: Also if a score is NaN.
    """
    positives = sum(truth)
    wins = 0.0
    positives_above = 0
    for hits, misses in _ties(truth, scores):
        wins += misses * (positives_above + hits / 2)
        positives_above += hits
    pairs = positives * (len(truth) - positives)
    return wins / pairs if pairs else None


def auprc(truth: Sequence[bool], scores: Sequence[float]) -> float | None:
    """Return the average precision: the sum over all thresholds of precision times the increase in recall.

    None if there are no positives.

    Args:
        truth: Whether each example is positive.
        scores: A number for each, in the same order: the higher, the more surely positive.

    Raises:
        ValueError: Also if a score is NaN.
    """
    positives = found = taken = 0
    total = 0.0
    for hits, misses in _ties(truth, scores):
        found += hits
        taken += hits + misses
        total += hits * found / taken
        positives += hits
    return total / positives if positives else None


def _ties(truth: Sequence[bool], scores: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Yield the number of positives and of negatives with each score, the highest score first."""
    _check_lengths(truth, scores)
    if any(score != score for score in scores):  # noqa: PLR0124  # only NaN differs from itself
        raise ValueError("a score is NaN; expected numbers")
    ordered = sorted(zip(scores, truth, strict=True), key=operator.itemgetter(0), reverse=True)
    for _, group in groupby(ordered, key=operator.itemgetter(0)):
        flags = [flag for _, flag in group]
        hits = sum(flags)
        yield hits, len(flags) - hits


def _check_lengths(truth: Sequence[object], predicted: Sequence[object]) -> None:
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} true values and {len(predicted)} predictions; expected one for each")
    if not len(truth):
        raise ValueError("there are no predictions; expected at least one")


def _hits(truth: Sequence[object], predicted: Sequence[object]) -> int:
    return sum(map(operator.eq, truth, predicted))


def _both(truth: Sequence[bool], predicted: Sequence[bool]) -> int:
    return sum(map(operator.and_, truth, predicted))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
