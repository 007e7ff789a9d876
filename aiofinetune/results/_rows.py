"""The results file of a job, ``compiled_results.csv``, as typed rows.

Columns are read by name (reference: the legacy fine-tuning guide, "Analyzing your fine-tuned model"): services add
and leave out some. A figure that was not computed in a row's step is an empty cell, -1 on some services, and on others
whatever their tools write for a missing value.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from itertools import zip_longest
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
_MISSING: Final = frozenset(
    {
        *("", "-", "--", "\u2013", "\u2014", ".", "?", "none", "null", "nil", "missing", "undefined"),
        *("na", "n/a", "<na>", "#n/a", "#na", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "1.#inf", "-1.#inf"),
    }
)
"""What tools write for a missing value, or for one that is not a number, in lower case."""


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
    """Cells of the columns that the reference does not know, as they are in the file."""


def read_results(data: bytes) -> list[ResultRow]:
    """Read a results file.

    Raises:
        ProtocolViolation: It is not a UTF-8 CSV file with a ``step`` column, or a cell is not a number; the message
            names the line and the column.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProtocolViolation(f"the results file is not UTF-8: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        names = [name.strip() for name in next(filter(None, reader), [])]
        if "step" not in names:
            raise ProtocolViolation(f"the results file has no column 'step'; its first line is {text[:200]!r}")
        return [
            _row(dict(zip_longest(names, cells[: len(names)])), reader.line_num)
            for cells in reader
            if any(cell.strip() for cell in cells)
        ]
    except csv.Error as error:
        raise ProtocolViolation(f"line {reader.line_num} of the results file is not CSV: {error}") from error


def last_figures(rows: Iterable[ResultRow]) -> dict[str, float]:
    """Return the last value of each figure that was ever computed, by the reference's column names."""
    last: dict[str, float] = {}
    for row in rows:
        last.update({name: value for name in _FIGURES if (value := getattr(row, name)) is not None})
        last.update({_CLASSIFICATION + name: value for name, value in row.classification.items()})
    return last


def _row(cells: Mapping[str, str | None], line: int) -> ResultRow:
    counts: dict[str, int] = {}
    figures: dict[str, float] = {}
    classification: dict[str, float] = {}
    other: dict[str, str] = {}
    for name, cell in cells.items():
        if not name:
            # What a comma at the end of each line makes.
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
    """Return a cell's number; None where it is missing, cut off, -1, or not finite."""
    if cell is None or cell.strip().lower() in _MISSING:
        return None
    try:
        number = float(cell)
    except ValueError:
        raise ProtocolViolation(
            f"line {line} of the results file: column {name!r} holds {cell[:40]!r}, not a number"
        ) from None
    return number if math.isfinite(number) and number != -1 else None
