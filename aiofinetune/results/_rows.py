"""Read the results file of a job as typed rows.

Columns are read by name (reference: the legacy fine-tuning guide, "Analyzing your fine-tuned model"), because services
add some and leave out others. A figure that was not computed in a step is an empty cell. Some services write -1
instead, and others whatever their tools write for a missing value. NaN stands for one too, but only in a step of which
a loss is a number: elsewhere it is what the training of a job that diverged has come to.

The jobs API (``/v1/fine_tuning/jobs``) has other names for the same figures. They are read under the reference's names,
so that all that reads rows has one name for each figure: its ``train_loss`` is `ResultRow.training_loss`.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import math
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Final

import attrs

from aiofinetune.errors import ProtocolViolation
from aiofinetune.results._figures import FIELDS, FigureSummary, Points, in_order, is_loss, summarize

_COUNTS: Final = ("step", "elapsed_tokens", "elapsed_examples")
_OTHER_NAMES: Final = {
    "train_loss": "training_loss",
    "train_accuracy": "training_token_accuracy",
    "train_mean_token_accuracy": "training_token_accuracy",
    "valid_loss": "validation_loss",
    "valid_accuracy": "validation_token_accuracy",
    "valid_mean_token_accuracy": "validation_token_accuracy",
    "full_valid_loss": "full_validation_loss",
    "full_valid_mean_token_accuracy": "full_validation_token_accuracy",
}
"""The names of the jobs API. Source: its guide, "Analyzing your fine-tuned model", and the metrics of checkpoints."""
_CLASSIFICATION: Final = "classification/"
_MISSING: Final = frozenset(
    {
        *("", "-", "--", "\u2013", "\u2014", ".", "?", "none", "null", "nil", "missing", "undefined"),
        *("na", "n/a", "<na>", "#n/a", "#na"),
    }
)
"""The texts that tools write for a missing value, in lower case."""
_NOT_FINITE: Final = {
    **dict.fromkeys(("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"), math.nan),
    "1.#inf": math.inf,
    "-1.#inf": -math.inf,
}
"""What C libraries on Windows write, which `float` does not read."""


@attrs.frozen
class ResultRow:
    """The figures of one training step. Losses are in nats per token, and accuracies between 0 and 1.

    The figures of a training that diverged are NaN or infinite.
    """

    step: int
    """The number of the step, starting at 1."""
    elapsed_tokens: int | None = None
    """The number of tokens trained on so far, including repeats."""
    elapsed_examples: int | None = None
    training_loss: float | None = None
    training_sequence_accuracy: float | None = None
    """The fraction of this step's completions that the model predicted exactly."""
    training_token_accuracy: float | None = None
    validation_loss: float | None = None
    validation_sequence_accuracy: float | None = None
    validation_token_accuracy: float | None = None
    classification: Mapping[str, float] = attrs.field(factory=dict)
    """The classification figures that were computed in this step, by the reference's names without their prefix:
    ``"accuracy"``, ``"weighted_f1_score"``, or ``"precision"``, ``"recall"``, ``"auroc"``, ``"auprc"``, ``"f1.0"``…"""
    other: Mapping[str, str] = attrs.field(factory=dict)
    """The cells of columns that are in neither API, unchanged."""
    full_validation_loss: float | None = None
    """The loss on the whole validation file, where `validation_loss` is that of a sample (jobs API)."""
    full_validation_token_accuracy: float | None = None

    def figures(self) -> dict[str, float]:
        """Return the figures that were computed in this step, by column, such as ``"classification/accuracy"``."""
        found = {name: value for name in FIELDS if (value := getattr(self, name)) is not None}
        return found | {_CLASSIFICATION + name: value for name, value in self.classification.items()}

    def to_dict(self) -> dict[str, object]:
        """Return all cells by column; those of unknown columns are texts, and what was not computed is absent."""
        counts = {name: value for name in _COUNTS if (value := getattr(self, name)) is not None}
        return {**counts, **self.figures(), **self.other}


class Results(list[ResultRow]):
    """The rows of a results file: a list, with views of its columns.

    ``pandas.DataFrame(results.to_dicts())`` and ``polars.DataFrame(results.to_dicts(), infer_schema_length=None)`` make
    data frames. (polars looks at the first 100 rows alone unless it is told otherwise, and the validation's columns may
    be empty there.)
    """

    @property
    def metrics(self) -> list[str]:
        """The names of the figures that were computed in any step, by column, in the reference's order."""
        names = {name for name in FIELDS if any(getattr(row, name) is not None for row in self)}
        return in_order(names | {_CLASSIFICATION + name for row in self for name in row.classification})

    def series(self, metric: str) -> Points:
        """Return the steps in which a figure was computed, and its values; nothing for one that never was.

        Args:
            metric: A column, such as ``"training_loss"`` or ``"classification/accuracy"``. Of a column that neither
                API has, the cells that are numbers are returned.
        """
        if metric in FIELDS:
            return [(row.step, value) for row in self if (value := getattr(row, metric)) is not None]
        if metric.startswith(_CLASSIFICATION):
            name = metric.removeprefix(_CLASSIFICATION)
            return [(row.step, row.classification[name]) for row in self if name in row.classification]
        texts = [(row.step, row.other[metric]) for row in self if metric in row.other]
        numbers = [(step, value) for step, text in texts if (value := _number_or_none(text)) is not None]
        return [(step, value) for step, value in numbers if math.isfinite(value)]

    def summary(self) -> dict[str, FigureSummary]:
        """Return the final and the best value of each figure, and the steps in which they were computed."""
        return {name: summarize(name, self.series(name)) for name in self.metrics}

    def to_dicts(self) -> list[dict[str, object]]:
        """Return a dict for each row, all with the same keys; what was not computed is None."""
        rows = [row.to_dict() for row in self]
        found = {name for row in rows for name in row}
        names: list[str] = [name for name in _COUNTS if name in found]
        names += in_order(found & {*FIELDS, *(name for name in found if name.startswith(_CLASSIFICATION))})
        names += [name for name in dict.fromkeys(name for row in self for name in row.other) if name not in names]
        return [{name: row.get(name) for name in names} for row in rows]


def read_results(data: bytes) -> Results:
    """Read a results file, which may be in base64, as some services of the jobs API send it.

    Raises:
        ProtocolViolation: The file is not UTF-8 CSV with a ``step`` column, or a cell is not a number; the message
            names the line and the column.
    """
    try:
        text = _plain(data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProtocolViolation(f"the results file is not UTF-8: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        # Blank lines before the header are skipped.
        names = [name.strip() for name in next(filter(None, reader), [])]
        if "step" not in names:
            raise ProtocolViolation(f"the results file has no column 'step'; its first line is {text[:200]!r}")
        names = _renamed(names)
        return Results(
            _row(dict(zip_longest(names, cells[: len(names)])), reader.line_num)
            for cells in reader
            if any(cell.strip() for cell in cells)
        )
    except csv.Error as error:
        raise ProtocolViolation(f"line {reader.line_num} of the results file is not CSV: {error}") from error


def read_metrics(rows: Iterable[Mapping[str, float]]) -> Results:
    """Read figures that a service has recorded, by the reference's names as far as it has them.

    A row that does not say its step is one of the step before.
    """
    results, step = Results(), 0.0
    for number, row in enumerate(rows, 1):
        step = row.get("step", step)
        results.append(_row({**{name: repr(figure) for name, figure in row.items()}, "step": repr(step)}, number))
    return results


def write_csv(results: Results) -> bytes:
    """Write rows as a results file, which `read_results` reads."""
    rows = results.to_dicts()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["step"] if not rows else list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def last_figures(rows: Iterable[ResultRow]) -> dict[str, float]:
    """Return the last value of each figure that was computed, by the reference's column names.

    Those of a training that diverged are NaN or infinite.
    """
    last: dict[str, float] = {}
    for row in rows:
        last.update(row.figures())
    return last


def _renamed(names: list[str]) -> list[str]:
    """Return columns with the reference's names, but for one whose figure another column has already."""
    renamed: list[str] = []
    for name in names:
        other = _OTHER_NAMES.get(name, name)
        renamed.append(name if other in names or other in renamed else other)
    return renamed


def _plain(data: bytes) -> bytes:
    """Return a file's bytes, decoded if they are the base64 of a table."""
    if b"," in data or not data:
        return data
    try:
        decoded = base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        return data
    return decoded if b"step" in decoded[:4096] else data


def _row(cells: Mapping[str, str | None], line: int) -> ResultRow:
    counts: dict[str, int] = {}
    figures: dict[str, float] = {}
    classification: dict[str, float] = {}
    other: dict[str, str] = {}
    for name, cell in cells.items():
        if not name:
            # A comma at the end of each line makes a column without a name.
            continue
        if name not in _COUNTS and name not in FIELDS and not name.startswith(_CLASSIFICATION):
            other[name] = cell or ""
        elif (number := _number(cell, name, line)) is None:
            continue
        elif name in _COUNTS:
            if math.isfinite(number):
                counts[name] = int(number)
        elif name in FIELDS:
            figures[name] = number
        else:
            classification[name.removeprefix(_CLASSIFICATION)] = number
    if "step" not in counts:
        raise ProtocolViolation(f"line {line} of the results file has no step")
    if any(is_loss(name) and math.isfinite(figures[name]) for name in figures):
        # The model is sound, so NaN stands for what was not computed.
        figures = {name: figure for name, figure in figures.items() if not math.isnan(figure)}
        classification = {name: figure for name, figure in classification.items() if not math.isnan(figure)}
    return ResultRow(
        step=counts["step"],
        elapsed_tokens=counts.get("elapsed_tokens"),
        elapsed_examples=counts.get("elapsed_examples"),
        classification=classification,
        other=other,
        **figures,
    )


def _number_or_none(cell: str) -> float | None:
    try:
        return _number(cell, "", 0)
    except ProtocolViolation:
        return None


def _number(cell: str | None, name: str, line: int) -> float | None:
    """Return the number in a cell, which may be NaN or infinite; None if it is missing or -1."""
    text = "" if cell is None else cell.strip().lower()
    if cell is None or text in _MISSING:
        return None
    try:
        number = _NOT_FINITE.get(text) or float(cell)
    except ValueError:
        raise ProtocolViolation(
            f"line {line} of the results file: column {name!r} holds {cell[:40]!r}, not a number"
        ) from None
    return number if number != -1 else None
