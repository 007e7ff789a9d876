"""Compare aiofinetune with other clients: ``python -m benchmarks``, from the checkout.

Each peer runs in a virtual environment of its own, which is made at the first run. All talk to one stub, on another
core. A measurement is a process of its own; the peers take turns, round by round, and each is compared with bare
aiohttp of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import table
from benchmarks.environments import (
    ALL_DIALECTS,
    PEERS,
    Environment,
    EnvironmentRefused,
    Peer,
    default_folder,
    prepared,
)
from benchmarks.stub import TIMEOUT, environment, figures_of, server_program, stub


@dataclasses.dataclass(frozen=True)
class Work:
    """One thing that all peers do.

    Args:
        name: In the tables.
        kind: What the peers' programs call it.
        unit: What the figures are for one of.
        count: Calls, of a full run and of a quick one; a peer's share applies.
        concurrency: Calls under way at once.
        size: What one call gives (jobs, events), in a full run and in a quick one; a peer's share applies to events.
        server: More options of the stub.
        scaled: Whether slow peers do less of it.
        rounds: The most rounds, for what takes long.
        dialect: What the service speaks; only the peers that speak it take part.
    """

    name: str
    kind: str
    unit: str
    count: tuple[int, int]
    concurrency: int = 1
    size: tuple[int, int] = (0, 0)
    server: tuple[str, ...] = ()
    scaled: bool = True
    rounds: int = 99
    dialect: str = "fine-tunes"


_EVENTS: Final = (100_000, 20_000)
_MEGABYTES: Final = (256, 64)

WORKS: Final = (
    Work("create c=1", "create", "create", (3000, 400)),
    Work("create c=64", "create", "create", (8000, 1500), 64),
    Work("create c=512", "create", "create", (8000, 1500), 512),
    Work("list 1,000", "list", "list", (40, 5), size=(1000, 1000)),
    Work("list 10,000", "list", "list", (6, 1), size=(10_000, 10_000)),
    Work("stream, 1 event a chunk", "stream", "event", (1, 1), size=_EVENTS),
    Work("stream, 32 KB chunks", "stream", "event", (1, 1), size=_EVENTS, server=("chunk=32768",)),
    Work("1,000 streams", "stream", "stream", (1000, 1000), 1000, (10, 2), ("every=1000",), scaled=False, rounds=3),
    Work("upload 256 MB", "upload", "256 MB", (1, 1), scaled=False),
    Work("download 256 MB", "download", "256 MB", (1, 1), scaled=False),
    Work("batch of 10,000", "batch", "job", (10_000, 1000), rounds=2),
    *(
        work
        for dialect in ALL_DIALECTS[1:]
        for work in (
            Work(f"{dialect}: create c=64", "create", "create", (3000, 500), 64, dialect=dialect),
            Work(f"{dialect}: list 1,000", "list", "list", (20, 3), size=(1000, 1000), dialect=dialect),
        )
    ),
)

_OURS: Final = next(peer for peer in PEERS if peer.name == "aiofinetune")

GROWTH: Final = (
    (
        "jobs in a list",
        [Work(f"{n}", "list", "list", (10_000 // n, 2000 // n + 1), size=(n, n)) for n in (100, 1000, 10_000)],
    ),
    ("events in a stream", [Work(f"{n}", "stream", "stream", (1, 1), size=(n, n)) for n in (1000, 10_000, 100_000)]),
    (
        "open streams",
        [Work(f"{n}", "stream", "all", (n, n), n, (4, 2), ("every=1000",)) for n in (10, 100, 1000)],
    ),
    ("active jobs in a batch", [Work(f"{n}", "batch", "batch", (n, n)) for n in (100, 1000, 10_000)]),
)


class Bench:
    """One run of the command.

    Args:
        options: Of the command line.
        folder: For temporary files.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._quick: bool = options.quick
        self._rounds: int = options.rounds or (1 if options.quick else 5)
        self._folder = folder
        self._server = server_program(folder)
        cores = sorted(os.sched_getaffinity(0))
        self._cores: tuple[int | None, int | None] = (cores[0], cores[-1]) if len(cores) > 1 else (None, None)
        self.environments: dict[str, Environment] = {}
        self.refusals: dict[str, str] = {}
        self.runs: list[dict[str, Any]] = []
        self._file = folder / "upload.bin"

    @property
    def server(self) -> str:
        """What the stub is written in."""
        return "asyncio" if len(self._server) > 1 else "C"

    def prepare(self, peers: list[Peer], envs: Path) -> None:
        """Make the environments."""
        for peer in peers:
            _say(f"environment of {peer.name}")
            try:
                self.environments[peer.name] = prepared(peer, envs)
            except EnvironmentRefused as error:
                self.refusals[peer.name] = str(error)

    def compare(self, peers: list[Peer], works: list[Work]) -> None:
        """Let all peers do all works, in turns."""
        for work in works:
            rounds = min(self._rounds, work.rounds)
            for number in range(rounds):
                _say(f"{work.name}, round {number + 1} of {rounds}")
                for peer in (peer for peer in peers if work.dialect in peer.dialects):
                    figures = self._measure(peer, work)
                    self.runs.append(
                        {"work": work.name, "unit": work.unit, "peer": peer.name, "round": number} | figures
                    )

    def import_times(self, peers: list[Peer]) -> None:
        """Measure how long an interpreter that imports the peer takes, over one that does not."""
        rounds = 3 if self._quick else 15
        _say(f"imports, {rounds} rounds")
        there = [peer for peer in peers if peer.name in self.environments]
        for number in range(-1, rounds):
            for peer in there:
                python = str(self.environments[peer.name].python)
                idle, loaded = _time_of(python, "pass"), _time_of(python, peer.imports)
                figures = {"cpu": loaded[0] - idle[0], "wall": loaded[1] - idle[1]}
                if number >= 0:  # the first writes the compiled files
                    run = {"work": "import", "unit": "import", "peer": peer.name, "round": number, "ops": 1}
                    self.runs.append(run | figures)

    def growth(self) -> list[dict[str, Any]]:
        """Measure our cost over three decades of work."""
        rows = []
        for name, works in GROWTH:
            _say(f"growth with {name}")
            points = []
            for work in works:
                runs = [self._measure(_OURS, work) for _ in range(1 if self._quick else 3)]
                whole = 1 if work.kind != "list" else work.count[self._quick]
                cpu = [run["cpu"] / whole for run in runs if "cpu" in run]
                errors = [run["error"] for run in runs if "error" in run]
                points.append({"n": int(work.name), "cpu": min(cpu, default=None), "error": next(iter(errors), None)})
            rows.append({"name": name, "points": points})
        return rows

    def _measure(self, peer: Peer, work: Work) -> dict[str, Any]:
        if peer.name in self.refusals:
            return {"error": self.refusals[peer.name]}
        share = peer.share if work.scaled else 1.0
        count, size = work.count[self._quick], work.size[self._quick]
        server = list(work.server)
        if work.kind == "stream":
            size = max(1, int(size * share))
            server.append(f"events={size}")
        else:
            count = max(1, int(count * share))
        if work.kind == "list":
            server.append(f"jobs={size}")
        if work.kind == "batch":
            size = count
            server.append(f"batch={count}")
        megabytes = _MEGABYTES[self._quick]
        if work.kind in ("upload", "download"):
            server.append(f"bytes={megabytes << 20}")
            if work.kind == "upload" and not self._file.exists():
                with self._file.open("wb") as file:
                    for _ in range(megabytes):
                        file.write(os.urandom(1 << 20))
        target = self._folder / "download.bin"
        if work.kind == "download":
            # What an earlier peer wrote must not be flushed, nor freed, at this one's cost.
            target.unlink(missing_ok=True)
            os.sync()
        client, core = self._cores
        with stub(self._server, core, server) as reference:
            base_url = reference.replace("/v1", "/together/v1") if work.dialect == "together" else reference
            command = [
                *(str(self.environments[peer.name].python), "-m", f"benchmarks.peers.{peer.script}", work.kind),
                *("--base-url", base_url, "--variant", peer.variant, "--loop", peer.loop, "--dialect", work.dialect),
                *("--count", str(count), "--size", str(size)),
                *("--concurrency", str(work.concurrency), "--timeout", str(TIMEOUT)),
                *("--file", str(self._file if work.kind == "upload" else target)),
                *(() if client is None else ("--core", str(client))),
            ]
            figures = figures_of(command)
        per_call = size if work.unit == "event" else 1
        scale = _MEGABYTES[0] / megabytes if work.unit == "256 MB" else 1
        return figures | {"ops": count * per_call / scale}


def _time_of(python: str, program: str) -> tuple[float, float]:
    """CPU and wall time of an interpreter's life, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run([python, "-I", "-c", program], env=environment(), capture_output=True, check=False)  # noqa: S603  # our own programs
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def _machine() -> dict[str, Any]:
    """What the figures were measured on; nothing that names it."""
    model = "an unknown processor"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.release().split('-')[0]}"}


def _say(words: str) -> None:
    sys.stderr.write(f"{words}\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare aiofinetune with other clients.")
    names = ", ".join([*(work.kind for work in WORKS), "import", "growth"])
    parser.add_argument("--quick", action="store_true", help="less of everything: for a look, in under three minutes")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help=f"works or peers, by (part of) name: {names}"
    )
    parser.add_argument("--rounds", type=int, help="how often the peers take turns; 5 by default, 1 with --quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--envs", type=Path, default=default_folder(), help="where the environments are kept")
    return parser.parse_args()


def main() -> None:
    """Run the benchmarks, and print their tables."""
    options = _options()
    only: list[str] = options.only
    peers = [peer for peer in PEERS if peer.name in only or not any(name in only for name in (p.name for p in PEERS))]
    wanted = [name for name in only if name not in {peer.name for peer in PEERS}]

    def is_wanted(*names: str) -> bool:
        return not wanted or any(want in name for want in wanted for name in names)

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        bench.prepare(peers, options.envs)
        begin = time.monotonic()
        if is_wanted("import"):
            bench.import_times(peers)
        bench.compare(peers, [work for work in WORKS if is_wanted(work.name, work.kind)])
        growth = bench.growth() if is_wanted("growth") and _OURS in peers else []
    report: dict[str, Any] = {
        "machine": _machine(),
        "server": bench.server,
        "quick": options.quick,
        "seconds": round(time.monotonic() - begin),
        "environments": {
            name: {"python": e.version, "distributions": e.distributions, "bytes": e.bytes}
            for name, e in bench.environments.items()
        },
        "refusals": bench.refusals,
        "runs": bench.runs,
        "growth": growth,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(table.rendered(report))


if __name__ == "__main__":
    main()
