"""Compare the built-in trainer with that of another commit: ``python -m benchmarks.trainer [--against COMMIT]``.

Each job is a process of its own, as the server starts it, on one thread. The jobs of the two commits take turns. A
figure of speed is the CPU time of a job less that of a job with one example; it and each ratio are medians over the
rounds. The share of the matrix rate is the time that the multiplications of a job, forward and backward, would take at
the rate at which NumPy multiplies two large matrices.

The accuracy is that of held-out examples, by their most likely class, from real data that comes with Python.
"""

from __future__ import annotations

import argparse
import ast
import csv
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Final

import numpy as np

from aiofinetune.local._engines.model import SIZES, SYMBOLS

ROOT: Final = Path(__file__).parent.parent
MODELS: Final = {"ada": 100_000, "davinci": 40_000}
"""The number of characters that each job trains on, at least two batches."""
LENGTHS: Final = (50, 500)
BATCHES: Final = (8, 64)
SEEDS: Final = (1, 2, 3)
TRAINED, HELD_OUT = 1500, 1000
MUST: Final = 1.3

Rows = list[tuple[str, str]]


class Tree:
    """The package at one commit, in a folder."""

    def __init__(self, folder: Path) -> None:
        """Find the trainer, which has moved once."""
        self._folder = folder
        is_new = (folder / "aiofinetune/local/_engines/trainer.py").exists()
        self._module = "aiofinetune.local._engines.trainer" if is_new else "aiofinetune.local.trainer"

    def train(self, job: dict[str, object], path: Path) -> float:
        """Run a job, whose description goes to `path`; return the CPU time of its process, in seconds."""
        path.write_text(json.dumps(job))
        command = [sys.executable, "-m", self._module, str(path)]
        environment = os.environ | {"PYTHONPATH": str(self._folder), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(  # noqa: S603  # our own program
            command, cwd=self._folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        # Its standard input stays open to the end, for the trainer ends with it.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.stdin is not None  # noqa: S101  # as above
        process.stdin.close()
        if process.returncode != 0:
            raise RuntimeError(f"{self._module} in {self._folder} failed: {process.returncode}")
        return usage.ru_utime + usage.ru_stime

    def time(self, job: dict[str, object], single: dict[str, object], path: Path) -> float:
        """Return the CPU time of a job less that of a job with a single example, in seconds."""
        return self.train(job, path) - self.train(single, path)


def write_rows(path: Path, rows: Rows) -> str:
    """Write a training file, and return its path."""
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": label}) + "\n" for prompt, label in rows))
    return str(path)


def job_of(folder: Path, model: str, training: str, *, seed: int = 1, **hyperparams: object) -> dict[str, object]:
    """Describe a job as the server does."""
    defaults = {"n_epochs": 1, "prompt_loss_weight": 0.01, "batch_size": None, "learning_rate_multiplier": None}
    classes = {f"classification_{name}": None for name in ("n_classes", "positive_class", "betas")}
    return {
        "model": model,
        "seed": seed,
        "training_path": training,
        "validation_path": None,
        "hyperparams": {**defaults, **classes, "compute_classification_metrics": False, **hyperparams},
        "results_path": str(folder / "results.csv"),
        "model_path": str(folder / "model.npz"),
    }


def passages(length: int, count: int) -> Rows:
    """Return rows of `length` characters of the help topics, the last tenth of each as the completion."""
    text = itertools.cycle(" ".join(" ".join(topics[name] for name in sorted(topics)).split()))
    rows = ("".join(itertools.islice(text, length)) for _ in range(count))
    return [(row[: -length // 10], row[-length // 10 :]) for row in rows]


def names() -> Rows:
    """Return names of characters, with the script of each, which is not in the name."""
    found = [(code, unicodedata.name(chr(code), "").partition(" ")) for code in range(0x3000)]
    scripts = ("LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW", "ETHIOPIC", "DEVANAGARI", "CANADIAN")
    return [(f"{rest} ->", f" {script.capitalize()}") for _, (script, _, rest) in found if script in scripts and rest]


def categories() -> Rows:
    """Return names of characters, with the category of each."""
    wanted = {"Lu": " capital", "Ll": " small", "Lo": " letter", "Mn": " mark", "So": " sign", "Sm": " mathematics"}
    found = [(unicodedata.name(chr(code), ""), unicodedata.category(chr(code))) for code in range(0x3000)]
    return [(f"{name} ->", wanted[category]) for name, category in found if name and category in wanted]


def docstrings() -> Rows:
    """Return the first lines of docstrings of the standard library, with what each is of."""
    lines: dict[str, str] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                line = (ast.get_docstring(node) or "").partition("\n")[0]
                lines[line] = " class" if isinstance(node, ast.ClassDef) else " function"
    return [(f"{line} ->", kind) for line, kind in lines.items() if line]


def compare_speed(new: Tree, old: Tree, folder: Path, rounds: int) -> None:
    """Print the median CPU times and their ratio for each model, length of the rows, and batch size."""
    rate = matrix_rate()
    sys.stdout.write(f"One core multiplies large matrices at {rate / 1e9:.0f} GFLOP/s.\n\n")
    sys.stdout.write("| model | characters | batch | before, s | now, s | ratio | of the matrix rate, before | now |\n")
    sys.stdout.write("|---|---:|---:|---:|---:|---:|---:|---:|\n")
    single = write_rows(folder / "single.jsonl", passages(50, 1))
    ratios = []
    for model, length, batch in itertools.product(MODELS, LENGTHS, BATCHES):
        rows = passages(length, max(2, MODELS[model] // (length * batch)) * batch)
        training = write_rows(folder / "rows.jsonl", rows)
        job, start = (job_of(folder, model, path, batch_size=batch) for path in (training, single))
        times = [tree.time(job, start, folder / "job.json") for _ in range(rounds) for tree in (old, new)]
        before, now = statistics.median(times[::2]), statistics.median(times[1::2])
        ratios.append(statistics.median(a / b for a, b in zip(times[::2], times[1::2], strict=True)))
        least = len(rows) * (length + 1) * flops(model) / rate
        cells = f"{before:.2f} | {now:.2f} | {ratios[-1]:.2f} | {least / before:.0%} | {least / now:.0%}"
        sys.stdout.write(f"| {model} | {length} | {batch} | {cells} |\n")
        sys.stdout.flush()
    sys.stdout.write(f"\nleast ratio {min(ratios):.2f} (must be at least {MUST})\n\n")


def flops(model: str) -> int:
    """Return the number of operations of the multiplications for a position, forward and backward."""
    size = SIZES[model]
    inputs, features = size.window * size.byte_width + size.context, size.hidden + size.context
    return 6 * (inputs * size.hidden + features * SYMBOLS)


def matrix_rate(width: int = 1024) -> float:
    """Return the best of a few rates at which one core multiplies matrices, in operations a second."""
    matrix, times = np.ones((width, width), np.float32), []
    for _ in range(10):
        begin = time.process_time()
        np.matmul(matrix, matrix)
        times.append(time.process_time() - begin)
    return 2 * width**3 / min(times)


def compare_accuracy(new: Tree, old: Tree, folder: Path, seeds: Sequence[int]) -> None:
    """Print the accuracies for each data set and model: means over the seeds, each with an order of its own."""
    sys.stdout.write("| data | model | before, % | now, % | points |\n|---|---|---:|---:|---:|\n")
    for source, model in itertools.product((names, categories, docstrings), MODELS):
        runs = [list(accuracies_of(source(), model, seed, folder, old, new)) for seed in seeds]
        before, now = (statistics.fmean(accuracies) * 100 for accuracies in zip(*runs, strict=True))
        sys.stdout.write(f"| {source.__name__} | {model} | {before:.2f} | {now:.2f} | {now - before:+.2f} |\n")
        sys.stdout.flush()


def accuracies_of(rows: Rows, model: str, seed: int, folder: Path, *trees: Tree) -> Iterator[float]:
    """Yield the accuracy of a job by each of the `trees`."""
    random.Random(seed).shuffle(rows)  # noqa: S311  # an order, no secret
    held_out = rows[TRAINED : TRAINED + HELD_OUT]
    n_classes = len({label for _, label in rows})
    job = job_of(
        folder,
        model,
        write_rows(folder / "rows.jsonl", rows[:TRAINED]),
        seed=seed,
        n_epochs=2,
        compute_classification_metrics=True,
        classification_n_classes=n_classes,
    ) | {"validation_path": write_rows(folder / "held_out.jsonl", held_out)}
    for tree in trees:
        tree.train(job, folder / "job.json")
        with (folder / "results.csv").open() as file:
            yield float(list(csv.DictReader(file))[-1]["classification/accuracy"])


def main() -> None:
    """Compare the speed, and then the accuracy."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer", description="Compare the built-in trainer.")
    parser.add_argument("--against", default="dcc77a5", help="the other commit (by default, %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("speed", "accuracy"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (other := folder / "other").mkdir()
        archive = ["git", "-C", str(ROOT), "archive", options.against, "aiofinetune"]
        packed = subprocess.run(archive, check=True, capture_output=True).stdout  # noqa: S603  # as above
        subprocess.run(["tar", "-x", "-C", str(other)], check=True, input=packed)  # noqa: S603, S607  # as above
        new, old = Tree(ROOT), Tree(other)
        if options.only != "accuracy":
            compare_speed(new, old, folder, options.rounds)
        if options.only != "speed":
            compare_accuracy(new, old, folder, SEEDS)


if __name__ == "__main__":
    main()
