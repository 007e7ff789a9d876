"""Compare several jobs: their parameters beside their figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs

from aiofinetune.errors import ConfigurationError
from aiofinetune.results._figures import diverged, finite, in_order, is_loss, title_of
from aiofinetune.results._rows import Results

_OWN: Final = ("label", "status", "job", "fine_tuned_model", "seconds", "diverged")
"""The columns that are neither parameters nor figures."""
_SHOWN_FIRST: Final = (
    "classification/accuracy",
    "classification/weighted_f1_score",
    "full_validation_loss",
    "validation_loss",
    "full_validation_token_accuracy",
    "validation_sequence_accuracy",
    "validation_token_accuracy",
)
"""What a sweep is judged by, the most telling first."""


@attrs.frozen
class Run:
    """One job of a comparison.

    Args:
        label: What the job is called: an entry's label, a file's name or the job's id.
        parameters: Its parameters by the request's names; those that are None or absent are not known.
        results: Its results file; None if there is none.
        status: How it ended, as an `Outcome.status`, or where it stands.
        job: Its id.
        fine_tuned_model: The model that it made.
        seconds: How long it took.
    """

    label: str
    parameters: Mapping[str, object] = attrs.field(factory=dict)
    results: Results | None = None
    status: str | None = None
    job: str | None = None
    fine_tuned_model: str | None = None
    seconds: float | None = None

    def figures(self) -> dict[str, float]:
        """Return the final value of each figure, and of a training figure, which has one for each batch, a mean.

        It is the mean of the last twentieth of the steps, or the last value if that is NaN or infinite.
        """
        results = self.results or Results()
        final = {name: it.final for name, it in results.summary().items()}
        for name, value in final.items():
            if name.startswith("training_") and math.isfinite(value):
                points = results.series(name)
                last = [value for _, value in finite(points[-max(1, len(points) // 20) :])]
                # Each is divided by itself, as a sum may be too large.
                final[name] = sum(value / len(last) for value in last)
        return final

    @property
    def diverged(self) -> bool:
        """Whether its training diverged: a loss is NaN or infinite at the end."""
        return diverged({name: it.final for name, it in (self.results or Results()).summary().items()}) is not None


class Comparison:
    """Several jobs side by side, by their final figures: those of the models that they made; see `Run.figures`.

    Args:
        runs: The jobs, in the order in which they are shown.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs: list[Run] = list(runs)
        self._figures = [run.figures() for run in self.runs]
        self._diverged = [diverged(figures) is not None for figures in self._figures]

    @property
    def varied(self) -> list[str]:
        """The parameters in which the jobs differ, in the order in which they first appear."""
        return [name for name in self._parameters() if len({repr(run.parameters.get(name)) for run in self.runs}) > 1]

    @property
    def shared(self) -> dict[str, object]:
        """The parameters that all jobs have alike."""
        varied = {*self.varied}
        return {name: self.runs[0].parameters[name] for name in self._parameters() if name not in varied}

    @property
    def figures(self) -> list[str]:
        """The figures that any job has, the most telling first: those of the validation before those of the training.

        Of classification figures, the accuracy is first.
        """
        known = in_order({name for figures in self._figures for name in figures})
        first = [name for name in _SHOWN_FIRST if name in known]
        rest = [name for name in known if name not in first]
        return [*first, *sorted(rest, key=lambda name: name.startswith("training_"))]

    def value(self, run: int, column: str) -> object:
        """Return a cell: a figure's final value, a parameter's value, or a field of the `Run`; None if there is none.

        Args:
            run: The place of the job, starting at 0.
            column: The name of the column.
        """
        if column in _OWN:
            return getattr(self.runs[run], column)
        return self._figures[run].get(column, self.runs[run].parameters.get(column))

    def best(self, figure: str) -> frozenset[int]:
        """Return the places of the jobs with the best value of a figure; none if fewer than two jobs have it.

        A job that diverged is never among them, whatever its other figures are.
        """
        having = {place: figures[figure] for place, figures in enumerate(self._figures) if figure in figures}
        values = {at: value for at, value in having.items() if math.isfinite(value) and not self._diverged[at]}
        if len(having) < 2 or not values:
            return frozenset()
        best = min(values.values()) if is_loss(figure) else max(values.values())
        return frozenset(place for place, value in values.items() if value == best)

    def column(self, name: str) -> str:
        """Return the column that a user means by a name: the whole name, its title, or a part that only one has.

        Raises:
            ConfigurationError: There is no such column, or the name is a part of several.
        """
        columns = [*_OWN, *self._parameters(), *self.figures]
        plain = name.lower().replace(" ", "_")
        if name in columns:
            return name
        titles = [column for column in columns if title_of(column).lower().replace(" ", "_") == plain]
        found = titles or [column for column in columns if plain in column.lower()]
        if len(found) == 1:
            return found[0]
        problem = "is a part of several columns" if found else "is not a column; there are"
        raise ConfigurationError(f"{name}: {problem}: {', '.join(found or columns)}")

    def ordered(self, column: str) -> Comparison:
        """Return the comparison sorted by a column, the best or lowest first, and jobs without a value last.

        By a figure, those that diverged come after the others that have it.

        Args:
            column: A figure, a parameter, or another of the columns of `to_dicts`.
        """
        is_figure = column in self.figures
        descends = is_figure and not is_loss(column)

        def rank(place: int) -> tuple[int, float, str]:
            value = self.value(place, column)
            if is_figure and value is not None and self._diverged[place]:
                return 2, 0.0, ""
            return _rank(value, descends=descends)

        return Comparison(self.runs[place] for place in sorted(range(len(self.runs)), key=rank))

    def to_dicts(self) -> list[dict[str, object]]:
        """Return a dict for each job, all with the same keys: its label, status, parameters, final figures and more."""
        columns = [*_OWN, *self._parameters(), *self.figures]
        return [{name: self.value(place, name) for name in columns} for place in range(len(self.runs))]

    def _parameters(self) -> Sequence[str]:
        return list(dict.fromkeys(name for run in self.runs for name in run.parameters))


def _rank(value: object, *, descends: bool) -> tuple[int, float, str]:
    """Return what a value is sorted by: numbers before texts, then NaN and infinity, and nothing last."""
    if value is None:
        return 3, 0.0, ""
    if isinstance(value, float) and not math.isfinite(value):
        return 2, 0.0, ""
    if isinstance(value, int | float):
        return 0, -value if descends else value, ""
    return 1, 0.0, str(value)
