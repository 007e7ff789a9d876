"""Draw pictures of jobs with matplotlib (the extra ``plot``), which is imported when one is drawn."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import attrs

from aiofinetune.errors import ConfigurationError, LocalFileError
from aiofinetune.results._comparison import Comparison
from aiofinetune.results._figures import is_loss, title_of
from aiofinetune.results._panels import Curve, Panel, panels_of
from aiofinetune.results._rows import Results

_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Colours that people with any kind of colour blindness tell apart (Okabe and Ito, 2008), without the yellow."""
_DASHES: Final = ("-", "--", ":", "-.")
"""What tells lines apart once the colours are used up."""
_MARKERS: Final = ("o", "D", "s", "^", "v", "P", "X")
_SUFFIXES: Final = (".png", ".svg")
_GREY: Final = "#767676"
_STYLE: Final = {
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    # The same picture is the same file.
    "svg.hashsalt": "aiofinetune",
}


def plot_curves(
    path: str | os.PathLike[str], results: Mapping[str, Results], epochs: Mapping[str, int | None] | None = None
) -> None:
    """Draw the loss and the accuracy of one job or several into a file. This blocks for about a second.

    Args:
        path: The file, which is replaced if it exists; its suffix, ``.png`` or ``.svg``, is its format.
        results: The results files by the jobs' names.
        epochs: The number of epochs of each job; None or absent where it is not known. Without it, epochs are marked if
            the file has figures that are computed once in each.

    Raises:
        ConfigurationError: matplotlib is not installed, the suffix is another one, or no job has any figures.
        LocalFileError: The file cannot be written.
    """
    matplotlib = _matplotlib(path)
    panels = panels_of(results, epochs or {})
    if not panels:
        raise ConfigurationError("there is nothing to plot: no results file has any figures")
    with matplotlib.rc_context(_STYLE):
        figure = _figure(8.0, 0.6 + 2.9 * len(panels))
        all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw_panel(axes, panel, is_first=panel is panels[0])
        _mark_epochs(all_axes[0], panels[0])
        all_axes[-1].set_xlabel(panels[0].x_title)
        if len(results) > 1:
            _add_legend(figure, list(results))
        else:
            figure.suptitle(next(iter(results)), x=0.01, ha="left", fontsize=11)
        _save(figure, path)


def plot_comparison(
    path: str | os.PathLike[str], comparison: Comparison, figure: str | None = None, against: str | None = None
) -> None:
    """Draw a figure of several jobs against a parameter into a file. This blocks for about a second.

    A second parameter in which the jobs differ makes a line of its own for each of its values, and any others too.

    Args:
        path: The file, which is replaced if it exists; its suffix, ``.png`` or ``.svg``, is its format.
        comparison: The jobs.
        figure: The figure; by default the first of `Comparison.figures`.
        against: The parameter; by default the one with the most values.

    Raises:
        ConfigurationError: matplotlib is not installed, the suffix is another one, there is no such column, or the jobs
            have no figures or the same parameters.
        LocalFileError: The file cannot be written.
    """
    matplotlib = _matplotlib(path)
    chosen = _chosen(comparison, figure, against)
    with matplotlib.rc_context(_STYLE):
        picture = _figure(7.0, 4.5)
        axes = picture.subplots()
        _draw_comparison(axes, comparison, chosen)
        _save(picture, path)


@attrs.frozen
class _Chosen:
    """What a picture of a comparison shows."""

    figure: str
    against: str
    others: Sequence[str]


def _chosen(comparison: Comparison, figure: str | None, against: str | None) -> _Chosen:
    figures, varied = comparison.figures, comparison.varied
    if not figures:
        raise ConfigurationError("there is nothing to plot: no job has any figures")
    figure = figures[0] if figure is None else comparison.column(figure)
    if figure not in figures:
        raise ConfigurationError(f"{figure}: is not a figure; there are {', '.join(figures)}")
    values = [comparison.value(place, figure) for place in range(len(comparison.runs))]
    if not any(isinstance(value, float) and math.isfinite(value) for value in values):
        raise ConfigurationError(f"there is nothing to plot: {title_of(figure)} is NaN or infinite in all jobs")
    if against is not None:
        against = comparison.column(against)
    elif varied:
        against = max(varied, key=lambda name: len({repr(run.parameters.get(name)) for run in comparison.runs}))
    if against not in varied:
        problem = "there is nothing to plot against" if against is None else f"{against}: is not varied"
        raise ConfigurationError(f"{problem}: the jobs differ in {', '.join(varied) or 'no parameter'}")
    return _Chosen(figure, against, [name for name in varied if name != against])


def _draw_comparison(axes: Any, comparison: Comparison, chosen: _Chosen) -> None:
    groups, ticks = _groups(comparison, chosen)
    are_numbers = all(_is_number(run.parameters.get(chosen.against, 0)) for run in comparison.runs)
    for number, (name, points) in enumerate(groups.items()):
        xs, ys = zip(*points, strict=True)
        # Between texts there is nothing, so no line is drawn.
        dashes = {} if are_numbers else {"linestyle": "none"}
        style = {**_line_style(number), **dashes, "marker": _marker(number), "markersize": 6}
        axes.plot(xs, ys, label=name or None, **style)
    _ring_best(axes, comparison, chosen, ticks)
    _set_scale(axes, list(ticks), list(ticks.values()))
    axes.set_xlabel(title_of(chosen.against))
    better = "lower is better" if is_loss(chosen.figure) else "higher is better"
    axes.set_title(f"{title_of(chosen.figure)} ({better})", fontsize=11)
    axes.margins(x=0.08, y=0.12)
    if len(groups) > 1:
        axes.legend(title=", ".join(map(title_of, chosen.others)), loc="upper left", bbox_to_anchor=(1.01, 1))


def _groups(comparison: Comparison, chosen: _Chosen) -> tuple[dict[str, list[tuple[float, float]]], dict[float, str]]:
    """Return the points of each line by its name, and the names of the places on the axis."""
    rows = []
    for place, run in enumerate(comparison.runs):
        x, y = run.parameters.get(chosen.against), comparison.value(place, chosen.figure)
        if x is not None and isinstance(y, int | float) and math.isfinite(y):
            rows.append((x, y, tuple(run.parameters.get(name) for name in chosen.others)))
    values = sorted({x for x, _, _ in rows}, key=lambda x: (not _is_number(x), x if _is_number(x) else 0, str(x)))
    are_numbers = all(map(_is_number, values))
    # The jobs that have no number or no figure are left out.
    at = {repr(x): float(x) if are_numbers else float(place) for place, x in enumerate(values)}  # type: ignore[arg-type]  # numbers, as was asked
    groups: dict[str, list[tuple[float, float]]] = {}
    for x, y, others in sorted(
        rows, key=lambda row: [(not _is_number(it), it if _is_number(it) else 0, str(it)) for it in row[2]]
    ):
        groups.setdefault(", ".join(map(_written, others)), []).append((at[repr(x)], y))
    return {name: sorted(points) for name, points in groups.items()}, {at[repr(x)]: _written(x) for x in values}


def _ring_best(
    axes: Any, comparison: Comparison, chosen: _Chosen, ticks: Mapping[float, str]
) -> None:  # Any: matplotlib has no types here
    places = {name: x for x, name in ticks.items()}
    for place in comparison.best(chosen.figure):
        x = places.get(_written(comparison.runs[place].parameters.get(chosen.against)))
        y = comparison.value(place, chosen.figure)
        if x is not None:
            axes.plot([x], [y], "o", markersize=14, markerfacecolor="none", markeredgecolor="black")
            # Within the picture, and clear of the ring.
            side = "left" if x == min(ticks) else "right" if x == max(ticks) else "center"
            axes.annotate(
                f"best: {y:.4g}", (x, y), xytext=(0, -18 if is_loss(chosen.figure) else 12),
                textcoords="offset points", ha=side, va="bottom",
            )  # fmt: skip


def _set_scale(axes: Any, places: Sequence[float], names: Sequence[str]) -> None:
    """Label the values that were tried, on a logarithmic axis if they grow by factors."""
    if len(places) > 2 and places[0] > 0 and places == sorted(places):
        factors = [after / before for before, after in pairwise(places)]
        gaps = [after - before for before, after in pairwise(places)]
        if min(factors) > 1.4 and max(gaps) > 1.5 * min(gaps):
            axes.set_xscale("log")
    axes.set_xticks(places, names)
    axes.minorticks_off()


def _add_legend(figure: Any, names: Sequence[str]) -> None:
    """Name the jobs below all panels, and make room for it."""
    columns = 2 if max(map(len, names)) <= 40 else 1
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.2 * -(-len(names) // columns))
    figure.legend([_handle(number) for number in range(len(names))], names, loc="outside lower left", ncols=columns)


def _draw_panel(axes: Any, panel: Panel, *, is_first: bool) -> None:
    for curve in panel.curves:
        xs, ys = zip(*curve.points, strict=True)
        axes.plot(xs, ys, label=curve.name, **_curve_style(curve, is_marked=len(xs) < 40))
    # Above the first panel are the names of the epochs, which a long title would cover.
    axes.set_title(panel.title, fontsize=10, pad=18 if panel.epochs and is_first else 6)
    if panel.is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(importlib.import_module("matplotlib.ticker").LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(importlib.import_module("matplotlib.ticker").FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(importlib.import_module("matplotlib.ticker").NullFormatter())
        axes.set_ylim(0.95 * panel.y_range[0], 1.05 * panel.y_range[1])
    else:
        axes.set_ylim(*_padded(panel.y_range))
    axes.set_xlim(*panel.x_range)
    for x in panel.epochs:
        axes.axvline(x, color="#bbbbbb", linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    if not panel.curves[0].letter:
        axes.legend(loc="best", fontsize=9)


def _mark_epochs(axes: Any, panel: Panel) -> None:
    """Write the number of each epoch above its end, as far as there is room."""
    every = max(1, len(panel.epochs) // 12)
    for number, x in enumerate(panel.epochs, 1):
        if panel.x_title == "step" and number % every == 0:
            words = f"epoch {number}" if len(panel.epochs) <= 8 else str(number)
            axes.annotate(
                words, (x, 1), xycoords=("data", "axes fraction"), xytext=(-3, 3), textcoords="offset points",
                ha="right", fontsize=8, color=_GREY,
            )  # fmt: skip


def _curve_style(curve: Curve, *, is_marked: bool) -> dict[str, object]:
    if curve.kind == "dots":
        return {"color": _COLOURS[curve.number], "alpha": 0.25, "linewidth": 0.8}
    style = _line_style(curve.number)
    if curve.kind == "marks":
        return {**style, "linewidth": 1.2, "marker": _marker(curve.number), "markersize": 5, "clip_on": False}
    if is_marked and curve.letter:
        return {**style, "marker": _marker(curve.number), "markersize": 4, "clip_on": False}
    return style


def _line_style(number: int) -> dict[str, object]:
    dashes = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": dashes, "linewidth": 1.8}


def _marker(number: int) -> str:
    # Lines that have the same colour have different markers.
    return _MARKERS[(number + number // len(_COLOURS)) % len(_MARKERS)]


def _handle(number: int) -> Any:
    line = importlib.import_module("matplotlib.lines").Line2D
    return line([], [], marker=_marker(number), markersize=5, **_line_style(number))


def _padded(y_range: tuple[float, float]) -> tuple[float, float]:
    low, high = y_range
    return low - 0.02 * (high - low), high + 0.04 * (high - low)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _figure(width: float, height: float) -> Any:
    # Not by pyplot, which would choose a window system and keep every figure.
    return importlib.import_module("matplotlib.figure").Figure((width, height), dpi=150, layout="constrained")


def _matplotlib(path: str | os.PathLike[str]) -> Any:
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise ConfigurationError(f"{os.fspath(path)}: expected a name that ends in {' or '.join(_SUFFIXES)}")
    try:
        return importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"a picture needs {error.name}: pip install 'aiofinetune[plot]'") from error


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    suffix = Path(path).suffix.lower().removeprefix(".")
    try:
        figure.savefig(path, format=suffix, metadata={"Date": None} if suffix == "svg" else None)
    except OSError as error:
        raise LocalFileError(f"{os.fspath(path)}: {error.strerror}") from error
