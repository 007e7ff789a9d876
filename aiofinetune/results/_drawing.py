"""Draw the curves of jobs as text: what a terminal shows, in Unicode or in ASCII.

A drawing is a list of lines, and a line a list of pieces: a text and the name of its colour. This module knows nothing
of terminals, so that anything can show a drawing.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import attrs

from aiofinetune.results._panels import Curve, Panel, panels_of
from aiofinetune.results._rows import Results

COLOURS: Final = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442")
"""Colours that people with any kind of colour blindness tell apart (Okabe and Ito, 2008), bright enough on black."""
FAINT: Final = "bright_black"
_LETTER_EVERY: Final = 12
"""The number of columns from one letter on a line to the next."""
_MIN_WIDTH: Final = 40
_MAX_MARGIN: Final = 9
"""The number of columns that the numbers beside a panel may take."""


class Piece(NamedTuple):
    """Some characters of one colour."""

    text: str
    colour: str | None = None


Line = list[Piece]


@attrs.frozen
class _Signs:
    """The characters of a drawing."""

    dot: str
    marks: str
    line: str
    wall: str
    floor: str
    corner: str
    tick: str
    foot: str
    epoch: str

    def mark_of(self, number: int) -> str:
        """Return the mark of a curve; marks differ, as colours may not be seen."""
        return self.marks[(number - 1) % len(self.marks)]


_UNICODE: Final = _Signs("·", "●◆▲", "━", "│", "─", "└", "┤", "┴", "┊")
_ASCII: Final = _Signs(".", "ox#", "*", "|", "-", "+", "+", "+", ":")


def draw_curves(
    results: Mapping[str, Results],
    epochs: Mapping[str, int | None] | None = None,
    *,
    width: int = 80,
    height: int = 12,
    is_ascii: bool = False,
) -> list[Line]:
    """Draw the loss and the accuracy of one job or several.

    Args:
        results: The results files by the jobs' names.
        epochs: The number of epochs of each job; None where it is not known.
        width: The number of columns; at least 40.
        height: The number of rows of each panel; at least 2.
        is_ascii: Whether to keep to ASCII.
    """
    signs = _ASCII if is_ascii else _UNICODE
    lines: list[Line] = []
    for panel in panels_of(results, epochs or {}):
        lines += [*_panel(panel, max(width, _MIN_WIDTH), max(height, 2), signs), []]
    return lines


class _Grid:
    """The cells of a panel, each with a character and its colour. What is drawn later covers what was there."""

    def __init__(self, panel: Panel, width: int, height: int, signs: _Signs) -> None:
        self._panel = panel
        self._signs = signs
        self.width = width
        self.height = height
        self.cells: list[list[Piece]] = [[Piece(" ")] * width for _ in range(height)]

    def column(self, x: float) -> int:
        return round((self.width - 1) * self._panel.share_along(x))

    def row(self, y: float) -> int:
        return round((self.height - 1) * (1 - self._panel.share_of(y)))

    def level(self, y: float) -> int:
        """Return the row of dots of a value: each row of cells has four, and its middle is where `row` puts it."""
        exact = (self.height - 1) * (1 - self._panel.share_of(y))
        return min(4 * self.height - 1, math.floor(4 * (exact + 0.5)))

    def half_column(self, x: float) -> int:
        """Return the column of dots: each cell has two."""
        return round((2 * self.width - 1) * self._panel.share_along(x))

    def put(self, column: int, row: int, text: str, colour: str | None) -> None:
        if 0 <= column < self.width:
            self.cells[row][column] = Piece(text, colour)

    def draw(self, curve: Curve, number: int) -> None:
        colour = COLOURS[number % len(COLOURS)]
        if curve.kind == "dots":
            for x, y in curve.points:
                # The axis leaves out batches that are far above the curves.
                if self._panel.y_range[0] <= y <= self._panel.y_range[1]:
                    self.put(self.column(x), self.row(y), self._signs.dot, FAINT)
        elif curve.kind == "marks":
            for x, y in curve.points:
                self.put(self.column(x), self.row(y), self._signs.mark_of(number), colour)
        else:
            self._draw_line(curve, number, colour)

    def _draw_line(self, curve: Curve, number: int, colour: str) -> None:
        heights = dict(_heights(curve.points, self))
        is_unicode = self._signs is _UNICODE
        braille: dict[tuple[int, int], int] = {}
        before = None
        for place, y in heights.items():
            level = self.level(y)
            # A steep line covers all rows between two places, half of them at either.
            for dot in _between(before, level):
                cell = (place // 2, dot // 4)
                braille[cell] = braille.get(cell, 0) | _dot(place % 2, dot % 4)
            before = level
        for (column, row), bits in braille.items():
            self.put(column, row, chr(0x2800 + bits) if is_unicode else self._signs.line, colour)
        if curve.letter:
            self._put_letters(curve.letter, heights, number, colour)

    def _put_letters(self, letter: str, heights: Mapping[int, float], number: int, colour: str) -> None:
        first = (3 * number) % _LETTER_EVERY
        last = max(heights) // 2
        for column in (*range(first, last, _LETTER_EVERY), last):
            if 2 * column in heights:
                self.put(column, self.row(heights[2 * column]), letter, colour)


def _dot(column: int, row: int) -> int:
    """Return the bit of a dot of a braille character (Unicode, "Braille Patterns")."""
    return ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))[row][column]


def _between(before: int | None, level: int) -> range:
    if before is None or before == level:
        return range(level, level + 1)
    return range(before + 1, level + 1) if before < level else range(level, before)


def _heights(points: Sequence[tuple[float, float]], grid: _Grid) -> Iterator[tuple[int, float]]:
    """Yield the value of a line at each half column that it crosses: the mean of its points, or a value between."""
    sums: dict[int, tuple[float, int]] = {}
    for x, y in points:
        place = grid.half_column(x)
        total, count = sums.get(place, (0.0, 0))
        sums[place] = (total + y, count + 1)
    means = [(place, total / count) for place, (total, count) in sorted(sums.items())]
    for (place, y), (next_place, next_y) in itertools.pairwise(means):
        for step in range(next_place - place):
            yield place + step, y + (next_y - y) * step / (next_place - place)
    yield from means[-1:]


def _panel(panel: Panel, width: int, height: int, signs: _Signs) -> Iterator[Line]:
    ticks = (_log_ticks if panel.is_log else _ticks)(*panel.y_range, max(3, height // 3))
    names = [f"{tick:g}" if panel.is_log else _number(tick, ticks) for tick in ticks]
    if max(map(len, names)) > _MAX_MARGIN:
        names = [f"{tick:.3g}" for tick in ticks]
    margin = max(map(len, names))
    grid = _Grid(panel, width - margin - 2, height, signs)
    for x in panel.epochs:
        for row in range(height):
            grid.put(grid.column(x), row, signs.epoch, FAINT)
    for curve in panel.curves:
        grid.draw(curve, curve.number)
    yield from _legend(panel, width, signs)
    labels = {grid.row(tick): name for tick, name in zip(ticks, names, strict=True)}
    for row, cells in enumerate(grid.cells):
        label = labels.get(row, "")
        wall = signs.tick if label else signs.wall
        yield [Piece(f"{label:>{margin}} "), Piece(wall, FAINT), *_joined(cells)]
    yield from _floor(panel, grid, margin, signs)


def _legend(panel: Panel, width: int, signs: _Signs) -> Iterator[Line]:
    """Yield the panel's title and the names of its curves, on as many lines as they need."""
    line: Line = [Piece(panel.title, "bold")]
    used = cells_of(panel.title)
    for curve in panel.curves:
        if not curve.name:
            continue
        sign = {"dots": signs.dot, "marks": signs.mark_of(curve.number), "line": signs.line}[curve.kind]
        sign = f"{sign}{curve.letter}{sign}" if curve.letter else sign
        colour = FAINT if curve.kind == "dots" else COLOURS[curve.number % len(COLOURS)]
        room = width - 5 - len(sign)
        # A job may be called anything, but not control the terminal.
        name = "".join(character if character.isprintable() else " " for character in curve.name)
        name = _end_of(name, room, "…" if signs is _UNICODE else "")
        if used + 4 + len(sign) + cells_of(name) > width:
            yield line
            line, used = [], 0
        line += [Piece("   "), Piece(sign, colour), Piece(f" {name}")]
        used += 4 + len(sign) + cells_of(name)
    yield line


def _floor(panel: Panel, grid: _Grid, margin: int, signs: _Signs) -> Iterator[Line]:
    floor = [signs.floor] * grid.width
    for x in panel.epochs:
        floor[grid.column(x)] = signs.foot
    yield [Piece(" " * (margin + 1)), Piece(signs.corner + "".join(floor), FAINT)]
    low, high = panel.x_range
    places = [low, *panel.epochs, high] if panel.x_title == "step" else [*panel.epochs, high]
    yield [Piece(_spread(panel.x_title, [(grid.column(x), f"{x:.10g}") for x in places], margin + 2, grid.width))]
    if panel.epochs and panel.x_title == "step":
        names = [(grid.column(x), str(number)) for number, x in enumerate(panel.epochs, 1)]
        yield [Piece(_spread("epoch", names, margin + 2, grid.width), FAINT)]


def _spread(title: str, labels: Sequence[tuple[int, str]], margin: int, width: int) -> str:
    """Return labels centred at their columns, without those that have no room; the last one has priority."""
    text = list(f"{title:<{margin}}" + " " * width)
    taken = [place < len(title) + 1 for place in range(len(text))]
    for column, label in [*labels[-1:], *labels[:-1]]:
        start = min(max(0, margin + column - (len(label) - 1) // 2), margin + width - len(label))
        if not any(taken[max(0, start - 1) : start + len(label) + 1]):
            text[start : start + len(label)] = label
            taken[start : start + len(label)] = [True] * len(label)
    return "".join(text).rstrip()


def _joined(cells: Sequence[Piece]) -> Line:
    """Return pieces with neighbours of one colour joined."""
    line: Line = []
    for piece in cells:
        if line and line[-1].colour == piece.colour:
            line[-1] = Piece(line[-1].text + piece.text, piece.colour)
        else:
            line.append(piece)
    return line


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers between two values."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda size: abs(size - rough))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)] or [low]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers between two positive values, of which each is a multiple of the one before."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(ticks) <= count + 1:
            break
    return ticks or [low]


def _number(tick: float, ticks: Sequence[float]) -> str:
    """Return a number with as many digits as its neighbours need."""
    gap = min((after - before for before, after in itertools.pairwise(ticks)), default=abs(tick) or 1)
    digits = next((digits for digits in range(9) if abs(round(gap, digits) - gap) < gap / 100), 9)
    return f"{tick + 0.0:.{digits}f}"


def cells_of(text: str) -> int:
    """Return how many cells of a terminal a text takes: two for each wide character, none for one that combines."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def _end_of(text: str, room: int, sign: str) -> str:
    """Return a text that fits into so many cells: its end, after a sign, if it is longer."""
    if cells_of(text) <= room:
        return text
    while text and cells_of(text) > room - 1:
        text = text[1:]
    return sign + text
