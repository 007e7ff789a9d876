"""Print what several commands have in common: lines, drawings, tables that fit, times as people say them, JSON and CSV.

No control character of a text that is printed here reaches the terminal.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

import attrs
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aiofinetune.results import Line

_GAP: Final = 2
"""The number of spaces between two columns."""
_MIN_FOLDED: Final = 16
"""The least width of a column whose cells may be folded."""
_LATEST: Final = 253402300799
"""The last second of the year 9999."""
_AGES: Final = ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h"), (60 * 86400, 86400, "days"))
"""Up to how many seconds, in seconds of what unit, an age is given."""


def one_line(text: str) -> str:
    """Return a text on one line, without the control characters of terminals."""
    return "".join(character if character.isprintable() else " " for character in text)


def is_ascii(console: Console) -> bool:
    """Return whether only ASCII can be relied on."""
    return not console.encoding.lower().startswith("utf")


def has_width(console: Console) -> bool:
    """Return whether output has to fit a width: that of a terminal, or the one that ``COLUMNS`` gives."""
    return console.is_terminal or "COLUMNS" in os.environ


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print text without markup on one line, which only the terminal wraps."""
    console.print(Text(one_line(text), style), soft_wrap=True, highlight=False)


def print_text(console: Console, text: str, style: str = "") -> None:
    """Print text without markup, and wrap it between words if the output has a width.

    Commands that people paste go through `print_line`, which does not wrap.
    """
    console.print(Text(one_line(text), style), soft_wrap=not has_width(console), highlight=False)


def print_drawing(console: Console, lines: Iterable[Line]) -> None:
    """Print a drawing of `aiofinetune.results`."""
    for line in lines:
        text = Text.assemble(*((piece.text, piece.colour or "") for piece in line))
        console.print(text, soft_wrap=True, highlight=False)


def print_table(console: Console, table: Table) -> None:
    """Print a table; in a pipe as wide as it is, so that no cell is cut or folded, and no line ends with spaces."""
    if has_width(console):
        console.print(table)
        return
    wide = Console(file=io.StringIO(), width=10_000)
    with wide.capture() as capture:
        wide.print(table)
    for line in capture.get().splitlines():
        print_line(console, line.rstrip())


def print_fields(console: Console, fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values, a pair on each line; a pair without a value is left out."""
    shown = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        text = Text.assemble((f"{name:<{width}}", "bold"), "  ", one_line(value))
        console.print(text, soft_wrap=True, highlight=False)


@attrs.frozen
class Column:
    """A column of a table.

    Args:
        title: What stands above it.
        cells: Its texts.
        may_fold: Whether a cell may take several lines. Ids do not, so that they can be copied.
        is_number: Whether to align it to the right.
    """

    title: str
    cells: Sequence[str]
    may_fold: bool = False
    is_number: bool = False

    @property
    def width(self) -> int:
        """The least width, in cells of a terminal."""
        width = max(map(cell_len, (self.title, *self.cells)))
        return min(width, _MIN_FOLDED) if self.may_fold else width


def print_columns(console: Console, columns: Sequence[Column]) -> None:
    """Print a table, whose first columns matter most: the last ones are left out, and named, if there is no room.

    In a pipe the table is as wide as it is, so that no cell is cut or folded.
    """
    kept = list(columns)
    while has_width(console) and len(kept) > 1 and _width(kept) > console.width:
        kept.pop()
    if has_width(console) and _width(kept) > console.width:
        for cell in (kept[0].title, *kept[0].cells):
            print_line(console, cell)
    elif has_width(console):
        console.print(_table(kept))
    else:
        for cells in zip(*map(_padded, kept), strict=True):
            print_line(console, (" " * _GAP).join(cells).rstrip())
    if left_out := [column.title for column in columns[len(kept) :] if any(column.cells)]:
        print_line(console, f"no room for: {', '.join(left_out)} (--json has all)", "dim")


def _width(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + _GAP * (len(columns) - 1)


def _padded(column: Column) -> Iterator[str]:
    """Yield the title and the cells of a column, all as wide as the widest."""
    cells = [one_line(cell) for cell in (column.title, *column.cells)]
    width = max(map(cell_len, cells))
    for cell in cells:
        space = " " * (width - cell_len(cell))
        yield space + cell if column.is_number else cell + space


def _table(columns: Sequence[Column]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column in columns:
        justify = "right" if column.is_number else "left"
        if column.may_fold:
            table.add_column(column.title, overflow="fold")
        else:
            table.add_column(column.title, no_wrap=True, justify=justify, min_width=column.width)  # type: ignore[arg-type]  # one of two words
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table


def print_csv(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows, which all have the same keys, as CSV; what is None is an empty cell."""
    if not rows:
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)


def print_json_line(value: object) -> None:
    """Print JSON on one line in ASCII, at once; NaN and infinity, which JSON does not have, are null."""
    try:
        line = json.dumps(value, allow_nan=False)
    except ValueError:
        line = json.dumps(_finite(value))
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _finite(value: object) -> object:
    """Return a JSON value with None in place of NaN and infinity."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ago(then: float | None, now: float | None = None) -> str:
    """Return how long ago a Unix time is, such as ``"3 min ago"``; its date after two months; "" for None."""
    if then is None:
        return ""
    seconds = (time.time() if now is None else now) - then
    for most, unit, name in _AGES:
        if abs(seconds) < most:
            count = int(abs(seconds) / unit)
            words = f"{count} {'day' if name == 'days' and count == 1 else name}"
            return f"{words} ago" if seconds >= 0 else f"in {words}"
    return clock(then, "%Y-%m-%d")


def clock(then: float | None, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return a Unix time as this machine's clock shows it; "" for None."""
    if then is None:
        return ""
    if not 0 <= then <= _LATEST:
        # Times come from outside.
        return f"{then:.0f}"
    return datetime.fromtimestamp(then).astimezone().strftime(form)


def moment(then: float | None) -> str:
    """Return a Unix time as this machine's clock shows it, and how long ago it is."""
    return "" if then is None else f"{clock(then)} ({ago(then)})"


def size(count: int | None) -> str:
    """Return a number of bytes as people read it."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def duration(seconds: float) -> str:
    """Return a number of seconds as people read it, such as ``"1:02:03"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float) -> str:
    """Return a figure as people read it."""
    return f"{value:.4f}" if 0.001 <= abs(value) < 1e9 or not value else f"{value:.3g}"


def cell(value: object) -> str:
    """Return a parameter or another cell of a table as text on one line; "" for None."""
    if value is None:
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return one_line(text)
