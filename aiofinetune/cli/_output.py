"""Print what several commands have in common: drawings, tables that fit, JSON and CSV."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aiofinetune.results import Line


def is_ascii(console: Console) -> bool:
    """Return whether only ASCII can be relied on."""
    return not console.encoding.lower().startswith("utf")


def has_width(console: Console) -> bool:
    """Return whether output has to fit a width: that of a terminal, or the one that ``COLUMNS`` gives."""
    return console.is_terminal or "COLUMNS" in os.environ


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print text that is no markup, each line on one line."""
    console.print(Text(text, style), soft_wrap=True, highlight=False)


def print_drawing(console: Console, lines: Iterable[Line]) -> None:
    """Print a drawing of `aiofinetune.results`."""
    for line in lines:
        text = Text.assemble(*((piece.text, piece.colour or "") for piece in line))
        console.print(text, soft_wrap=True, highlight=False)


def print_table(console: Console, table: Table) -> None:
    """Print a table; in a pipe as wide as it is, so that no cell is cut or folded."""
    if has_width(console):
        console.print(table)
    else:
        Console(file=console.file, width=10_000).print(table)


def print_json(value: object) -> None:
    """Print JSON in ASCII."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_csv(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows, which all have the same keys, as CSV; what is None is an empty cell."""
    if not rows:
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)


def number(value: float) -> str:
    """Return a figure as people read it."""
    return f"{value:.4f}" if abs(value) >= 0.001 or not value else f"{value:.3g}"


def cell(value: object) -> str:
    """Return a parameter or another cell of a table as text on one line; "" for None."""
    if value is None:
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(character if character.isprintable() else " " for character in text)
