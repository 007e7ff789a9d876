"""The tables of a run, in Markdown: ``python -m benchmarks.table out.json``; ``--readme`` renews the README's own."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

Report: TypeAlias = dict[str, Any]  # Any: JSON

_BARE: Final = "aiohttp"
_OURS: Final = "aiofinetune"
_STEEPEST: Final = 1.05
"""The exponent that still counts as linear: what a fit through three noisy points can tell."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """A promise about a figure.

    Args:
        what: In words.
        measured: Gives the figure of a report, or None where it was not measured.
        must: The promise.
        hope: Better still.
        is_most: Whether the figure may be so much at most, rather than at least.
        unit: Of the figure.
    """

    what: str
    measured: Callable[[Report], float | None]
    must: float
    hope: float | None = None
    is_most: bool = True
    unit: str = ""

    def holds(self, figure: float, bound: float) -> bool:
        """Whether a figure is within a bound."""
        return figure <= bound if self.is_most else figure >= bound


def _by_round(report: Report, work: str, peer: str) -> dict[int, dict[str, Any]]:
    return {run["round"]: run for run in report["runs"] if (run["work"], run["peer"]) == (work, peer) and "cpu" in run}


def _ratios(report: Report, work: str, peer: str, other: str = _BARE) -> list[float]:
    """What a peer's operation costs of the CPU, over another's of the same round."""
    ours, theirs = _by_round(report, work, peer), _by_round(report, work, other)
    return [
        (ours[number]["cpu"] / ours[number]["ops"]) / (theirs[number]["cpu"] / theirs[number]["ops"])
        for number in ours.keys() & theirs.keys()
        if theirs[number]["cpu"] > 0
    ]


def _median(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.median(values) if values else None


def _ratio(work: str, peer: str = _OURS, other: str = _BARE) -> Callable[[Report], float | None]:
    return lambda report: _median(_ratios(report, work, peer, other))


def _memory(work: str, unit: int, per_op: bool = False) -> Callable[[Report], float | None]:  # noqa: FBT001, FBT002
    def measured(report: Report) -> float | None:
        runs = _by_round(report, work, _OURS).values()
        return _median(run["peak"] / unit / (run["ops"] if per_op else 1) for run in runs)

    return measured


def _failures(work: str) -> Callable[[Report], float | None]:
    def measured(report: Report) -> float | None:
        runs = [run for run in report["runs"] if (run["work"], run["peer"]) == (work, _OURS)]
        return sum("error" in run for run in runs) if runs else None

    return measured


def _import_over(report: Report) -> float | None:
    ours, theirs = _by_round(report, "import", _OURS), _by_round(report, "import", _BARE)
    return _median(1000 * (ours[number]["cpu"] - theirs[number]["cpu"]) for number in ours.keys() & theirs.keys())


def _installed(field: str) -> Callable[[Report], float | None]:
    def measured(report: Report) -> float | None:
        environment = report["environments"].get("aiofinetune-no-orjson")
        if environment is None:
            return None
        return environment["bytes"] / 1e6 if field == "bytes" else len(environment["distributions"])

    return measured


def _exponent_of(name: str) -> Callable[[Report], float | None]:
    def measured(report: Report) -> float | None:
        return next((exponent(row["points"]) for row in report["growth"] if row["name"] == name), None)

    return measured


_C64: Final = "create c=64"
_LIST: Final = "list 10,000"
_STREAM: Final = "stream, 1 event a chunk"
_MANY: Final = "1,000 streams"

BARS: Final = (
    Bar("create, 64 at once, over bare aiohttp", _ratio(_C64), 1.45, 1.3, unit="x"),
    Bar(
        "create, openai 0.28.1 (shared session) over ours",
        _ratio(_C64, "openai-0.28-shared", _OURS),
        2,
        None,
        False,
        "x",
    ),
    Bar("create, newest openai on aiohttp over ours", _ratio(_C64, "openai-aiohttp", _OURS), 4.5, None, False, "x"),
    Bar("create, newest openai over ours", _ratio(_C64, "openai", _OURS), 8, None, False, "x"),
    Bar("list of 10,000, typed, over bare dicts", _ratio(_LIST), 3.0, 2.2, unit="x"),
    Bar("list of 10,000, newest openai over ours", _ratio(_LIST, "openai", _OURS), 6, None, False, "x"),
    Bar("stream, an event a chunk, over a bare line loop", _ratio(_STREAM), 0.65, 0.5, unit="x"),
    Bar("stream, openai 0.28.1 over ours", _ratio(_STREAM, "openai-0.28-shared", _OURS), 5, None, False, "x"),
    Bar("stream, newest openai over ours", _ratio(_STREAM, "openai", _OURS), 15, None, False, "x"),
    Bar("1,000 streams over bare aiohttp", _ratio(_MANY), 1.15, 1.05, unit="x"),
    Bar("1,000 streams, failed runs", _failures(_MANY), 0),
    Bar("1,000 streams, memory of one", _memory(_MANY, 1000, per_op=True), 20, unit=" KB"),
    Bar("upload of 256 MB over bare aiohttp", _ratio("upload 256 MB"), 1.0, unit="x"),
    Bar("upload of 256 MB, memory over idle", _memory("upload 256 MB", 10**6), 8, unit=" MB"),
    Bar("download of 256 MB over bare aiohttp", _ratio("download 256 MB"), 1.15, 1.0, unit="x"),
    Bar("download of 256 MB, memory over idle", _memory("download 256 MB", 10**6), 4, unit=" MB"),
    Bar("import, over aiohttp's", _import_over, 15, unit=" ms"),
    Bar("import, over the newest openai's", _ratio("import", _OURS, "openai"), 0.45, unit="x"),
    Bar("installed size, without extras", _installed("bytes"), 17, unit=" MB"),
    Bar("installed distributions, without extras", _installed("distributions"), 13),
    Bar("exponent of the cost, jobs in a list", _exponent_of("jobs in a list"), _STEEPEST),
    Bar("exponent of the cost, events in a stream", _exponent_of("events in a stream"), _STEEPEST),
    Bar("exponent of the cost, open streams", _exponent_of("open streams"), _STEEPEST),
    Bar("exponent of the cost, active jobs in a batch", _exponent_of("active jobs in a batch"), _STEEPEST),
)


def exponent(points: list[dict[str, Any]]) -> float | None:
    """The exponent k of cost = c · n^k that fits best: the slope between the logarithms."""
    pairs = [(math.log(point["n"]), math.log(point["cpu"])) for point in points if point["cpu"]]
    if len(pairs) < 2:
        return None
    return statistics.linear_regression(*zip(*pairs, strict=True)).slope


def rendered(report: Report) -> str:
    """All tables of a report."""
    sections = [_heading(report), _works(report), _bars(report), _growth(report), _environments(report)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _heading(report: Report) -> str:
    machine = report["machine"]
    quick = " A quick look: too short to judge by." if report["quick"] else ""
    return (
        f"Measured on {machine['cpu']}, {machine['cores']} cores, {machine['system']}; stub server in"
        f" {report['server']}.{quick} CPU is the client's, user and system, for one operation; its ratio is to bare"
        " aiohttp in the same round (median, and least to most). Memory is the peak over idle. A stall is the longest"
        " time for which the event loop did not turn. All figures are medians."
    )


def summary(report: Report) -> str:
    """The README's tables: what each client takes of the CPU for one operation, next to bare aiohttp."""
    machine = report["machine"]
    works = list(dict.fromkeys((run["work"], run["unit"]) for run in report["runs"]))
    reference = {
        _OURS: "aiofinetune",
        "aiofinetune-uvloop": "on uvloop",
        "aiohttp-msgspec": "aiohttp, msgspec",
        "aiohttp-uvloop": "aiohttp, uvloop",
        "openai-0.28-shared": "openai 0.28.1",
        "openai-1.7": "openai 1.7.1",
        "openai": _newest(report, "openai"),
        "openai-aiohttp": f"{_newest(report, 'openai')}, aiohttp",
        "httpx": "httpx, httpx-sse",
    }
    others = {
        _OURS: "aiofinetune",
        "openai": _newest(report, "openai"),
        "openai-aiohttp": f"{_newest(report, 'openai')}, aiohttp",
        "together": _newest(report, "together"),
    }
    words = (
        f"{machine['cpu']}, {machine['cores']} cores; medians of {_rounds(report)} rounds."
        " Bare is aiohttp with orjson and dicts. For the batch, all but aiofinetune only create and list: no journal,"
        " no limits, no job followed."
    )
    return (
        f"{_summary_of(report, [work for work in works if ':' not in work[0]], reference)}\n\n"
        f"{_summary_of(report, [work for work in works if ':' in work[0]], others)}\n\n"
        f"{textwrap.fill(words, 120)}"
    )


def _summary_of(report: Report, works: list[tuple[str, str]], columns: dict[str, str]) -> str:
    rows = []
    for work, unit in works:
        bare = _median(run["cpu"] / run["ops"] for run in _by_round(report, work, _BARE).values())
        rows.append([f"{work} (one {unit})", _seconds(bare), *(_summary_cell(report, work, peer) for peer in columns)])
    return _markdown(["CPU", "bare aiohttp", *columns.values()], rows)


def _summary_cell(report: Report, work: str, peer: str) -> str:
    if not any((run["work"], run["peer"]) == (work, peer) for run in report["runs"]):
        return ""
    ratio = _median(_ratios(report, work, peer))
    return "failed" if ratio is None else f"{ratio:.2g}"


def _newest(report: Report, name: str) -> str:
    return f"{name} {report['environments'][name]['distributions'][name]}" if name in report["environments"] else name


def _rounds(report: Report) -> int:
    rounds = {int(run["round"]) for run in report["runs"] if run["work"].startswith("create")}
    return len(rounds)


_BETWEEN: Final = ("<!-- python -m benchmarks.table --readme -->\n", "<!-- end -->")


def renew(readme: Path, report: Report) -> None:
    """Put a run's summary in the place of the README's."""
    begin, end = _BETWEEN
    before, found, rest = readme.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise SystemExit(f"{readme}: expected a table between {begin.strip()!r} and {end!r}")
    readme.write_text(f"{before}{begin}{summary(report)}\n{end}{after}")


def _works(report: Report) -> str:
    works = dict.fromkeys(run["work"] for run in report["runs"])
    return "\n\n".join(_work(report, work) for work in works)


def _work(report: Report, work: str) -> str:
    runs = [run for run in report["runs"] if run["work"] == work]
    rows = [_row(report, work, peer, runs) for peer in dict.fromkeys(run["peer"] for run in runs)]
    return _markdown([f"{work} (one {runs[0]['unit']})", "CPU", "x bare", "wall", "memory", "stall"], rows)


def _row(report: Report, work: str, peer: str, runs: list[dict[str, Any]]) -> list[str]:
    mine = [run for run in runs if run["peer"] == peer]
    good = [run for run in mine if "cpu" in run]
    errors = [run["error"] for run in mine if "error" in run]
    if not good:
        return [peer, f"failed: {errors[0]}".replace("|", "/"), "", "", "", ""]
    ratios = _ratios(report, work, peer)
    middle = _median(ratios)
    ratio = "" if middle is None else f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    name = f"{peer} ({len(errors)} of {len(mine)} failed: {errors[0]})".replace("|", "/") if errors else peer
    cpu, wall = (_median(run[field] / run["ops"] for run in good) for field in ("cpu", "wall"))
    peak, stall = (_median(run[field] for run in good if field in run) for field in ("peak", "stall"))
    memory = "" if peak is None else f"{peak / 1e6:.1f} MB"
    return [name, _seconds(cpu), ratio, _seconds(wall), memory, _seconds(stall)]


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def _bars(report: Report) -> str:
    rows = []
    for bar in BARS:
        figure = bar.measured(report)
        relation = "≤" if bar.is_most else "≥"
        must = f"{relation} {bar.must:g}{bar.unit}"
        hope = "" if bar.hope is None else f"{relation} {bar.hope:g}{bar.unit}"
        if figure is None:
            rows.append([bar.what, "not measured", must, hope, ""])
            continue
        verdict = "holds" if bar.holds(figure, bar.must) else "**falls short**"
        if bar.hope is not None and bar.holds(figure, bar.hope):
            verdict = "holds, as hoped"
        rows.append([bar.what, f"{figure:.3g}{bar.unit}", must, hope, verdict])
    return _markdown(["Bar", "measured", "must", "hope", ""], rows)


def _growth(report: Report) -> str:
    rows = []
    for row in report["growth"]:
        points = [f"{point['n']:,}: {_seconds(point['cpu']) or point['error']}" for point in row["points"]]
        fitted = exponent(row["points"])
        rows.append([row["name"], *points, "" if fitted is None else f"{fitted:.2f}"])
    return _markdown(["Cost (CPU) as work grows", "", "", "", "exponent"], rows) if rows else ""


_TELLERS: Final = (
    *("aiofinetune", "openai", "together", "aiohttp", "httpx", "httpx2", "httpx-sse"),
    *("orjson", "msgspec", "pydantic", "uvloop"),
)
"""The distributions whose versions say what an environment is."""


def _environments(report: Report) -> str:
    rows = []
    for peer, environment in report["environments"].items():
        found = environment["distributions"]
        versions = ", ".join(f"{name} {found[name]}" for name in _TELLERS if name in found)
        size = f"{environment['bytes'] / 1e6:.1f} MB"
        rows.append([peer, environment["python"], size, str(len(found)), versions])
    rows += [[peer, "refused", "", "", why.replace("|", "/")] for peer, why in report["refusals"].items()]
    return _markdown(["Environment", "Python", "size", "distributions", "versions"], rows)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:" for _ in head[1:]]], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str]) -> None:
    """Print the tables of a run, or renew the README's."""
    report: Report = json.loads(Path(arguments[0]).read_text())
    if "--readme" in arguments:
        renew(Path(__file__).parent.parent / "README.md", report)
    else:
        sys.stdout.write(rendered(report))


if __name__ == "__main__":
    main(sys.argv[1:])
