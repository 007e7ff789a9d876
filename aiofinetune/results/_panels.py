"""What a picture of one job or several shows: panels, and the curves in each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, TypeAlias

import attrs

from aiofinetune.results._figures import Points, finite, smoothed, title_of
from aiofinetune.results._rows import Results

Kind: TypeAlias = Literal["dots", "line", "marks"]

_LARGEST: Final = 1e290
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_ACCURACIES: Final[tuple[str, ...]] = (
    "classification/accuracy",
    "full_validation_token_accuracy",
    "validation_sequence_accuracy",
    "validation_token_accuracy",
    "training_token_accuracy",
)
"""By which several jobs are compared: the first that any of them has."""


@attrs.frozen
class Curve:
    """One curve: its points, how they are drawn, and the number of its colour."""

    name: str
    """For the legend; "" for none."""
    points: Sequence[tuple[float, float]]
    kind: Kind
    number: int
    letter: str = ""
    """What tells the line of one job from another's where there are no colours."""


@attrs.frozen
class Panel:
    """A picture of curves over one axis."""

    title: str
    curves: Sequence[Curve]
    x_title: Literal["step", "epoch"]
    x_range: tuple[float, float]
    epochs: Sequence[float]
    """Where each epoch ends."""
    y_range: tuple[float, float]
    is_log: bool = False
    """Whether the axis is logarithmic, because the curves fall to a small part of their height."""

    def share_along(self, x: float) -> float:
        """Return how far along the axis a step is, from 0 to 1; all are at its start if there is one step only."""
        low, high = self.x_range
        # Halves, because the range may be larger than the largest float.
        return min(1.0, max(0.0, (x / 2 - low / 2) / ((high / 2 - low / 2) or 1)))

    def share_of(self, y: float) -> float:
        """Return how far up the axis a value is, from 0 to 1; a value outside the axis is at its end."""
        low, high = self.y_range
        y = min(high, max(low, y))
        if self.is_log:
            return math.log(y / low) / math.log(high / low)
        return (y - low) / (high - low)


def epochs_in(results: Results) -> int | None:
    """Return the number of epochs that a file shows, by the figures that services compute at the end of each.

    None if it has no such figures. The last of them must be in the last step.
    """
    for metric in ("full_validation_loss", *(name for name in results.metrics if name.startswith("classification/"))):
        points = results.series(metric)
        if points and points[-1][0] == results[-1].step:
            return len(points)
    return None


def panels_of(results: Mapping[str, Results], epochs: Mapping[str, int | None]) -> list[Panel]:
    """Return the panels of a picture: of one job its losses and accuracies, of several one panel for each figure.

    Args:
        results: The results files by the jobs' names.
        epochs: The number of epochs of each job, where it is known; see `epochs_in`.
    """
    known = {name: epochs.get(name) or epochs_in(rows) for name, rows in results.items() if rows}
    shown = {name: rows for name, rows in results.items() if rows}
    if not shown:
        return []
    if len(shown) == 1:
        ((name, rows),) = shown.items()
        return list(_panels_of_one(rows, _marks(rows, known[name])))
    return list(_panels_of_many(shown, known))


def _panels_of_one(rows: Results, marks: Sequence[float]) -> Iterator[Panel]:
    x_range = (_first(rows), _last(rows))
    for title, curves in (("loss", _losses(rows)), ("accuracy", _accuracies(rows))):
        if drawn := [curve for curve in curves if curve.points]:
            yield Panel(title, drawn, "step", x_range, marks, *_y_axis(title, drawn))


def _losses(rows: Results) -> Iterator[Curve]:
    training = _drawn(rows, "training_loss")
    yield Curve("training", training, "dots", 0)
    yield Curve("smoothed", smoothed(training), "line", 0)
    yield Curve("validation", _drawn(rows, "full_validation_loss", "validation_loss"), "marks", 1)


def _accuracies(rows: Results) -> Iterator[Curve]:
    training = smoothed(_drawn(rows, "training_token_accuracy"))
    yield Curve("training tokens, smoothed", training, "line", 0)
    validation = _drawn(rows, "full_validation_token_accuracy", "validation_token_accuracy")
    yield Curve("validation tokens", validation, "marks", 1)
    yield Curve("classification", _drawn(rows, "classification/accuracy"), "marks", 2)


def _first(rows: Results) -> int:
    # A file may have its steps in any order.
    return min(row.step for row in rows)


def _last(rows: Results) -> int:
    return max(row.step for row in rows)


def _drawn(rows: Results, *figures: str) -> Points:
    """Return the first of the figures that has any numbers, without what is NaN or infinite.

    The largest are cut, so that sums of them are finite.
    """
    points = next((points for figure in figures if (points := finite(rows.series(figure)))), [])
    return [(step, min(_LARGEST, max(-_LARGEST, value))) for step, value in points]


def _panels_of_many(shown: Mapping[str, Results], epochs: Mapping[str, int | None]) -> Iterator[Panel]:
    """Yield a panel for each figure. If steps are not the same part of an epoch in all jobs, the axis is epochs."""
    lengths = {_last(rows) / count for name, rows in shown.items() if (count := epochs[name])}
    in_epochs = None not in epochs.values() and len(lengths) > 1
    scales = {
        name: (epochs[name] or 1) / _last(rows) if in_epochs and _last(rows) else 1.0 for name, rows in shown.items()
    }
    longest = max(shown, key=lambda name: _last(shown[name]) * scales[name])
    last = _last(shown[longest]) * scales[longest]
    first = 0.0 if in_epochs else float(min(_first(rows) for rows in shown.values()))
    marks = [float(end) for end in range(1, (epochs[longest] or 0) + 1)]
    marks = marks if in_epochs else _marks(shown[longest], epochs[longest])
    for metric in _compared(shown.values()):
        is_training = metric.startswith("training_")
        curves = []
        for number, (name, rows) in enumerate(shown.items()):
            points = _drawn(rows, metric)
            points = smoothed(points) if is_training else points
            scaled = [(step * scales[name], value) for step, value in points]
            if scaled:
                curves.append(Curve(name, scaled, "line", number, _LETTERS[number % len(_LETTERS)]))
        title = title_of(metric) + ", smoothed" * is_training
        yield Panel(title, curves, "epoch" if in_epochs else "step", (first, last), marks, *_y_axis(title, curves))


def _compared(shown: Iterable[Results]) -> list[str]:
    found = {metric for rows in shown for metric in rows.metrics if _drawn(rows, metric)}
    losses: list[str] = [n for n in ("training_loss", "full_validation_loss", "validation_loss") if n in found]
    # The loss on the whole validation file says the same as that on a sample of it, with less noise.
    return losses[:2] + [name for name in _ACCURACIES if name in found][:1]


def _marks(rows: Results, epochs: int | None) -> list[float]:
    """Return the steps in which the epochs end, from the first row on."""
    first, last = _first(rows), _last(rows)
    ends = [last * number / epochs for number in range(1, epochs + 1)] if epochs else []
    return [end for end in ends if end >= first]


def _y_axis(title: str, curves: Sequence[Curve]) -> tuple[tuple[float, float], bool]:
    """Return the range of the axis and whether it is logarithmic.

    Single batches far above the curves are cut off, and so is the start of an accuracy, so that the rest has room.
    """
    if "accuracy" in title:
        values = [y for curve in curves for y in sorted(y for _, y in curve.points)[len(curve.points) // 20 :]]
    else:
        values = [y for curve in curves if curve.kind != "dots" for _, y in curve.points]
    for curve in curves:
        if curve.kind == "dots":
            values += sorted(y for _, y in curve.points)[: math.ceil(0.98 * len(curve.points))]
    low, high = min(values), max(values)
    if "accuracy" in title and low >= 0 and high <= 1:
        return (max(0.0, low - 0.02), min(1.0, max(high, low + 0.05) + 0.01)), False
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-3):
        reach = max(0.5, abs(high) / 2)
        return (low - reach, high + reach), False
    if low > 0 and high > 10 * low:
        # Not all the way down to one lucky batch.
        firm = [y for curve in curves if curve.kind != "dots" for _, y in curve.points]
        return (max(low, min(firm) / 2, high / 1e6), high), True
    return (0.0 if 0 < low < 0.2 * high else low, high), False
