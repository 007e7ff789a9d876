"""Read the results file of a job, ``compiled_results.csv``, as typed rows.

Columns are read by name (reference: the legacy fine-tuning guide, "Analyzing your fine-tuned model"), because services
add some and leave out others. A figure that was not computed in a step is an empty cell. Some services write -1
instead, and others whatever their tools write for a missing value.
"""

from __future__ import annotations

import base64
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
_OTHER_NAMES: Final[Mapping[str, str]] = {
    "train_loss": "training_loss",
    "train_accuracy": "training_token_accuracy",
    "train_mean_token_accuracy": "training_token_accuracy",
    "valid_loss": "validation_loss",
    "valid_accuracy": "validation_token_accuracy",
    "valid_mean_token_accuracy": "validation_token_accuracy",
}
"""The names that OpenAI's later API has for figures of the reference. Both loss and accuracy are those of tokens."""
_MISSING: Final = frozenset(
    {
        *("", "-", "--", "\u2013", "\u2014", ".", "?", "none", "null", "nil", "missing", "undefined"),
        *("na", "n/a", "<na>", "#n/a", "#na", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "1.#inf", "-1.#inf"),
    }
)
"""The texts that tools write for a missing value or for NaN, in lower case."""


@attrs.frozen
class ResultRow:
    """The figures of one training step. Losses are in nats per token, and accuracies between 0 and 1."""

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
    """The cells of columns that are not in the reference, unchanged."""


def read_results(data: bytes) -> list[ResultRow]:
    """Read a results file: CSV, or the base64 of CSV, which some services send.

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
        # A name of the reference's own goes before another name for the same figure.
        names = _in_reference_words(names)
        if "step" not in names:
            raise ProtocolViolation(f"the results file has no column 'step'; its first line is {text[:200]!r}")
        return [
            _row(dict(zip_longest(names, cells[: len(names)])), reader.line_num)
            for cells in reader
            if any(cell.strip() for cell in cells)
        ]
    except csv.Error as error:
        raise ProtocolViolation(f"line {reader.line_num} of the results file is not CSV: {error}") from error


def _in_reference_words(names: list[str]) -> list[str]:
    """Return the names of columns as the reference has them; a column that has such a name keeps it for itself."""
    own = set(names)
    return [name if (other := _OTHER_NAMES.get(name, name)) in own else other for name in names]


def _plain(data: bytes) -> bytes:
    """Return a results file, decoded if it is base64: that has no comma, and CSV of several columns has."""
    if b"," in data[:1000]:
        return data
    try:
        plain = base64.b64decode(b"".join(data.split()), validate=True)
    except ValueError:
        return data
    return plain if b"step" in plain[:1000] else data


def last_figures(rows: Iterable[ResultRow]) -> dict[str, float]:
    """Return the last value of each figure that was computed, by the reference's column names."""
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
            # A comma at the end of each line makes a column without a name.
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
    """Return the number in a cell; None if it is missing, -1 or not finite."""
    if cell is None or cell.strip().lower() in _MISSING:
        return None
    try:
        number = float(cell)
    except ValueError:
        raise ProtocolViolation(
            f"line {line} of the results file: column {name!r} holds {cell[:40]!r}, not a number"
        ) from None
    return number if math.isfinite(number) and number != -1 else None
