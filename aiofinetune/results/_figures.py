"""What is known of the figures of a results file: their order, their titles, and which way is better."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final, TypeAlias

import attrs

Points: TypeAlias = list[tuple[int, float]]
"""The values of a figure, each with its step."""

FIELDS: Final = (
    "training_loss",
    "training_sequence_accuracy",
    "training_token_accuracy",
    "validation_loss",
    "validation_sequence_accuracy",
    "validation_token_accuracy",
    "full_validation_loss",
    "full_validation_token_accuracy",
)
"""The figures that are fields of a `ResultRow`, in the reference's order of columns."""

_ORDER: Final = (
    *FIELDS,
    "classification/accuracy",
    "classification/weighted_f1_score",
    "classification/precision",
    "classification/recall",
    "classification/auroc",
    "classification/auprc",
)
"""The reference's order of columns; F-beta scores follow."""

_TITLES: Final = {
    "n_epochs": "epochs",
    "classification/accuracy": "accuracy",
    "classification/weighted_f1_score": "weighted F1",
    "classification/auroc": "AUROC",
    "classification/auprc": "AUPRC",
}


@attrs.frozen
class FigureSummary:
    """The final and the best value of one figure, and the steps in which they were computed."""

    final: float
    """The last value that was computed: NaN or infinite if the training diverged."""
    final_step: int
    best: float
    """The lowest loss, or the highest of any other figure. The best of a training figure is that of one batch.

    NaN and infinite values are not among them, unless there are no others: then it is the final one."""
    best_step: int
    """The first step with the best value."""


def summarize(figure: str, points: Points) -> FigureSummary:
    """Return the summary of a figure that has at least one value."""
    sign = 1 if is_loss(figure) else -1
    final_step, final = points[-1]
    best_step, best = min(finite(points) or points[-1:], key=lambda point: sign * point[1])
    return FigureSummary(final, final_step, best, best_step)


def finite(points: Points) -> Points:
    """Return the points without those whose value is NaN or infinite."""
    return [point for point in points if math.isfinite(point[1])]


def diverged(figures: Mapping[str, float]) -> str | None:
    """Say which losses are NaN or infinite, such as ``"training loss is nan"``; None if all are numbers.

    Args:
        figures: The final value of each figure.
    """
    lost = {name: value for name, value in figures.items() if is_loss(name) and not math.isfinite(value)}
    return ", ".join(f"{title_of(name)} is {value}" for name, value in lost.items()) or None


def is_loss(figure: str) -> bool:
    """Return whether lower values of a figure are better."""
    return figure.endswith("loss")


def in_order(figures: Iterable[str]) -> list[str]:
    """Return figures in the reference's order, and others after them by name."""
    known = {name: place for place, name in enumerate(_ORDER)}
    return sorted(figures, key=lambda name: (known.get(name, len(known)), name))


def title_of(figure: str) -> str:
    """Return the name of a figure or parameter as people write it."""
    if found := re.fullmatch(r"classification/f(\d+(?:\.\d+)?)", figure):
        return f"F{float(found[1]):g}"
    return _TITLES.get(figure, figure.removeprefix("classification/").replace("_", " "))


def smoothed(points: Sequence[tuple[int, float]]) -> Points:
    """Return the mean around each point: of a twentieth of them, and of fewer at the start, where a curve is steep."""
    reach = len(points) // 40
    sums = list(accumulate((value for _, value in points), initial=0.0))
    means = []
    for place, (step, _) in enumerate(points):
        before = min(reach, place // 2)
        after = min(before, len(points) - 1 - place)
        means.append((step, (sums[place + after + 1] - sums[place - before]) / (before + 1 + after)))
    return means
