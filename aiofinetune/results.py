"""The results file of a job, ``compiled_results.csv``, as typed rows.

Columns are read by name (reference: the legacy fine-tuning guide, "Analyzing your fine-tuned model"): services add
and leave out some. A figure that was not computed in a row's step is an empty cell, or -1 on some services.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from aiofinetune.errors import ProtocolViolation

_COUNTS: Final = ("step", "elapsed_tokens", "elapsed_examples")
_FIGURES: Final = (
    "training_loss",
    "training_sequence_accuracy",
    "training_token_accuracy",
    "validation_loss",
    "validation_sequence_accuracy",
    "validation_token_accuracy",
)
_CLASSIFICATION: Final = "classification/"


@attrs.frozen
class ResultRow:
    """What was measured in one training step. Losses are in nats a token, accuracies between 0 and 1."""

    step: int
    """From 1."""
    elapsed_tokens: int | None = None
    """Tokens trained on so far, repeats included."""
    elapsed_examples: int | None = None
    training_loss: float | None = None
    training_sequence_accuracy: float | None = None
    """The share of this step's completions that the model would have written exactly."""
    training_token_accuracy: float | None = None
    validation_loss: float | None = None
    validation_sequence_accuracy: float | None = None
    validation_token_accuracy: float | None = None
    classification: Mapping[str, float] = attrs.field(factory=dict)
    """Classification figures by the reference's names without their prefix: ``"accuracy"``, ``"weighted_f1_score"``,
    or ``"precision"``, ``"recall"``, ``"auroc"``, ``"auprc"``, ``"f1.0"``…; only those computed in this step."""
    other: Mapping[str, str] = attrs.field(factory=dict)
    """Columns that the reference does not know, as they stand."""


def read_results(data: bytes) -> list[ResultRow]:
    """Read a results file.

    Raises:
        ProtocolViolation: It is no UTF-8 CSV file with a ``step`` column, or a cell is no number; it names the line
            and the column.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProtocolViolation(f"the results file is not UTF-8: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if "step" not in (reader.fieldnames or ()):
            raise ProtocolViolation(f"the results file has no column 'step'; its first line is {text[:200]!r}")
        return [_row(cells, reader.line_num) for cells in reader]
    except csv.Error as error:
        raise ProtocolViolation(f"line {reader.reader.line_num} of the results file is not CSV: {error}") from error


def last_figures(rows: Iterable[ResultRow]) -> dict[str, float]:
    """The last value of each figure that was ever computed, by the reference's column names."""
    last: dict[str, float] = {}
    for row in rows:
        last.update({name: value for name in _FIGURES if (value := getattr(row, name)) is not None})
        last.update({_CLASSIFICATION + name: value for name, value in row.classification.items()})
    return last


def _row(cells: Mapping[str | None, str | None], line: int) -> ResultRow:
    counts: dict[str, int] = {}
    figures: dict[str, float] = {}
    classification: dict[str, float] = {}
    other: dict[str, str] = {}
    for name, cell in cells.items():
        if name is None:
            # Cells beyond the last column.
            continue
        if name not in _COUNTS and name not in _FIGURES and not name.startswith(_CLASSIFICATION):
            other[name] = cell or ""
        elif (number := _number(cell, name, line)) is None:
            continue
        elif name in _COUNTS:
            counts[name] = int(number)
        elif name in _FIGURES:
            figures[name] = number
        else:
            classification[name.removeprefix(_CLASSIFICATION)] = number
    if "step" not in counts:
        raise ProtocolViolation(f"line {line} of the results file has no step")
    return ResultRow(
        step=counts["step"],
        elapsed_tokens=counts.get("elapsed_tokens"),
        elapsed_examples=counts.get("elapsed_examples"),
        classification=classification,
        other=other,
        **figures,
    )


def _number(cell: str | None, name: str, line: int) -> float | None:
    """A cell's number, or None where there is none: an empty cell, a cell cut off, -1, or no finite number."""
    if cell is None or cell.strip() == "":
        return None
    try:
        number = float(cell)
    except ValueError:
        raise ProtocolViolation(
            f"line {line} of the results file: column {name!r} holds {cell[:40]!r}, not a number"
        ) from None
    return number if math.isfinite(number) and number != -1 else None
