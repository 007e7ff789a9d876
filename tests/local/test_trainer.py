"""Training a job: the pure parts, and the process around them."""

import copy
import csv
import json
import os
import random
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from aiofinetune.data._examples import MAX_LINE_BYTES
from aiofinetune.local._engines import job as jobs
from aiofinetune.local._engines import trainer, training
from aiofinetune.local._engines.forward import evaluate
from aiofinetune.local._engines.job import Classification, Row
from aiofinetune.local._engines.model import Model, TextPair, load, load_base
from aiofinetune.local._engines.sampling import complete
from aiofinetune.local._engines.trainer import EXIT_ABANDONED
from aiofinetune.local._engines.training_files import TrainingError

PLAIN: dict[str, Any] = {
    "n_epochs": 2,
    "batch_size": None,
    "learning_rate_multiplier": None,
    "prompt_loss_weight": 0.01,
    "compute_classification_metrics": False,
    "classification_n_classes": None,
    "classification_positive_class": None,
    "classification_betas": None,
}


def name_scripts(scripts: Sequence[str]) -> list[tuple[str, str]]:
    """Return real data that ships with Python: the names of characters, and the scripts they are in."""
    rows = []
    for code in range(0x3000):
        script, _, rest = unicodedata.name(chr(code), "").partition(" ")
        if script in scripts and rest:
            rows.append((f"{rest} ->", f" {script.capitalize()}"))
    random.Random(0).shuffle(rows)  # noqa: S311 - an order, no secret
    return rows


def encode(rows: Sequence[tuple[str, str]]) -> list[TextPair]:
    return [TextPair.of(prompt, completion) for prompt, completion in rows]


def write(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows), encoding="utf-8")
    return path


def train(rows: Sequence[tuple[str, str]], seed: int = 1, **hyperparams: object) -> tuple[Model, list[Row]]:
    """Train ada on `rows` in this process."""
    model, texts = load_base("ada"), encode(rows)
    resolved = jobs.resolve_hyperparams({**PLAIN, **hyperparams}, len(texts))
    return model, list(training.train(model, texts, [], resolved, None, seed))


# The pure parts.


@pytest.mark.parametrize(
    ("examples", "batch_size", "multiplier"),
    [(1, 1, 0.05), (500, 1, 0.05), (2_000, 4, 0.05), (4_000, 8, 0.1), (32_000, 64, 0.2), (1_000_000, 256, 0.2)],
)
def test_defaults_follow_the_number_of_examples(examples: int, batch_size: int, multiplier: float) -> None:
    """The batch is 0.2 % of the examples, and the learning rate follows the batch."""
    resolved = jobs.resolve_hyperparams(PLAIN, examples)
    assert (resolved.batch_size, resolved.learning_rate_multiplier) == (batch_size, multiplier)
    assert resolved.classification_betas == (1.0,)


def test_what_is_asked_for_is_kept() -> None:
    """A value given is no default, and the learning rate follows the batch size given."""
    asked = {**PLAIN, "batch_size": 64, "classification_betas": [0.5, 2]}
    resolved = jobs.resolve_hyperparams(asked, 10)
    assert (resolved.batch_size, resolved.learning_rate_multiplier) == (64, 0.2)
    assert resolved.classification_betas == (0.5, 2)
    assert jobs.resolve_hyperparams({**asked, "learning_rate_multiplier": 1.5}, 10).learning_rate_multiplier == 1.5


def test_result_columns_follow_the_reference(samples: Path) -> None:
    """The columns are those of the reference, in its order."""
    header = (samples / "compiled_results.csv").read_text().splitlines()[0]
    binary = Classification((" a", " b"), "a", (1.0,))
    assert ",".join(jobs.result_columns(has_validation=True, classification=binary)) == header
    multiclass = jobs.result_columns(has_validation=True, classification=attrs.evolve(binary, positive_class=None))
    assert multiclass[-2:] == ["classification/accuracy", "classification/weighted_f1_score"]
    plain = jobs.result_columns(has_validation=False, classification=None)
    assert plain == header.split(",")[:6]


def test_a_row_is_rounded_and_sparse() -> None:
    """Figures have 6 significant digits, whole numbers all of theirs, and what is missing or undefined is empty."""
    row: Row = {"step": 1234567, "training_loss": 0.123456789, "classification/auroc": None}
    columns = ["step", "training_loss", "validation_loss", "classification/auroc"]
    assert jobs.format_row(row, columns) == "1234567,0.123457,,\n"


def find(rows: Sequence[tuple[str, str]], **hyperparams: object) -> Classification | None:
    """Find the classes of `rows`, the last of which is the validation file."""
    resolved = jobs.resolve_hyperparams({**PLAIN, **hyperparams}, len(rows))
    completions = [completion for _, completion in rows]
    return jobs.find_classes(resolved, completions[:-1], completions[-1:])


ROWS = [("x", " a"), ("y", " b"), ("z", " c")]


def test_classes_are_the_completions_of_both_files() -> None:
    """A class that only the validation file holds is one too; a positive class is found without the space around it."""
    asked = {"compute_classification_metrics": True, "classification_n_classes": 3}
    assert find(ROWS, **asked) == Classification((" a", " b", " c"), None, (1.0,))
    binary = find(ROWS, compute_classification_metrics=True, classification_positive_class="b ")
    assert binary == Classification((" a", " b", " c"), "b", (1.0,))
    assert find(ROWS) is None


@pytest.mark.parametrize(
    ("rows", "asked", "problem"),
    [
        (ROWS, {}, "needs classification_n_classes or classification_positive_class"),
        (ROWS, {"classification_n_classes": 2}, "hold 3 different completions; at most 2 classes are expected"),
        (ROWS, {"classification_positive_class": "d"}, "No completion in the files is the .* 'd'"),
        (
            [(str(n), str(n)) for n in range(200)],
            {"classification_positive_class": "1"},
            "hold 200 different completions; at most 100",
        ),
    ],
)
def test_wrong_classes_are_refused(rows: list[tuple[str, str]], asked: dict[str, object], problem: str) -> None:
    """The message says what was found and what is expected."""
    with pytest.raises(TrainingError, match=problem):
        find(rows, compute_classification_metrics=True, **asked)


def test_metrics_need_a_validation_file() -> None:
    """There is nothing to classify without one."""
    asked = jobs.resolve_hyperparams({**PLAIN, "compute_classification_metrics": True}, 2)
    with pytest.raises(TrainingError, match="needs a validation file"):
        jobs.find_classes(asked, [" a"], [])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\n{}", "The training file, line 2: the key 'prompt' is missing; "),
        (b"", "The training file: no example was found; "),
        (b" " * (MAX_LINE_BYTES + 1), "The training file, line 1: the line is too long; "),
        (
            json.dumps({"prompt": "", "completion": "x" * 5000}).encode(),
            "The training file, line 1: the completion has 5,000 bytes; at most 4,095",
        ),
    ],
)
def test_a_bad_file_is_named_by_its_role_and_line(tmp_path: Path, content: bytes, problem: str) -> None:
    """No path of the machine is in the message."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrainingError) as caught:
        training.read_texts(str(path), "training")
    assert str(caught.value).startswith(problem)
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_file_is_named_by_its_role(tmp_path: Path) -> None:
    """So is one that cannot be opened."""
    with pytest.raises(TrainingError, match=r"^The validation file could not be read: No such file or directory\.$"):
        training.read_texts(str(tmp_path / "none"), "validation")


# Training itself.


@pytest.fixture(scope="module")
def scripts() -> list[tuple[str, str]]:
    return name_scripts(["LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW", "ETHIOPIC"])


def test_training_learns_to_classify(scripts: list[tuple[str, str]]) -> None:
    """On real data, with the defaults, ada leaves the most frequent class far behind, and one token is the label."""
    model, texts, held_out = load_base("ada"), encode(scripts[:400]), encode(scripts[400:500])
    asked = {**PLAIN, "n_epochs": 4, "compute_classification_metrics": True, "classification_n_classes": 6}
    hyperparams = jobs.resolve_hyperparams(asked, len(texts))
    classification = jobs.find_classes(hyperparams, training.completions(texts), training.completions(held_out))
    rows = list(training.train(model, texts, held_out, hyperparams, classification, 1))
    truth = [label for _, label in scripts[400:500]]
    majority = max(map(truth.count, set(truth))) / len(truth)
    assert (rows[-1]["classification/accuracy"] or 0) > majority + 0.3
    assert (rows[-1]["validation_loss"] or 9) < (rows[199]["validation_loss"] or 0)
    written = [complete(model, prompt, max_tokens=1, temperature=0).text for prompt, _ in scripts[400:500]]
    assert np.mean([text == label for text, label in zip(written, truth, strict=True)]) > majority + 0.3


def test_rows_count_and_measure(scripts: list[tuple[str, str]]) -> None:
    """Steps, tokens and examples add up, a last batch may be smaller, and sparse columns are filled each epoch."""
    model, texts = load_base("ada"), encode(scripts[:10])
    asked = {**PLAIN, "batch_size": 4, "compute_classification_metrics": True, "classification_positive_class": "Latin"}
    hyperparams = jobs.resolve_hyperparams(asked, len(texts))
    classification = jobs.find_classes(hyperparams, training.completions(texts), training.completions(texts))
    rows = list(training.train(model, texts, texts, hyperparams, classification, 1))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["elapsed_examples"] for row in rows] == [4, 8, 10, 14, 18, 20]
    assert rows[-1]["elapsed_tokens"] == 2 * sum(map(training.count_text_tokens, texts))
    assert [row["step"] for row in rows if "validation_loss" in row] == [1, 3, 4, 6]
    assert [row["step"] for row in rows if "classification/auroc" in row] == [3, 6]
    columns = jobs.result_columns(has_validation=True, classification=classification)
    assert set(rows[-1]) == set(columns)


def test_accuracies_count_tokens_and_whole_completions() -> None:
    """What a model has learnt by heart it gets right; one wrong token of two is half the tokens and no completion."""
    model, rows = train([("a", " one two"), ("b", " one two")] * 4, n_epochs=30, learning_rate_multiplier=0.2)
    assert (rows[-1]["training_token_accuracy"], rows[-1]["training_sequence_accuracy"]) == (1, 1)
    measured = jobs.resolve_hyperparams(PLAIN, 1)
    other = encode([("a", " one six")])
    last = list(training.train(copy.deepcopy(model), other, other, attrs.evolve(measured, n_epochs=1), None, 1))[-1]
    assert (last["training_token_accuracy"], last["training_sequence_accuracy"]) == (0.5, 0)


def test_an_undefined_measure_is_absent(scripts: list[tuple[str, str]]) -> None:
    """With positives alone to classify, the area under the curve is no number."""
    latin = [row for row in scripts if row[1] == " Latin"][:4]
    classification = Classification((" Greek", " Latin"), "Latin", (1.0, 2.0))
    row = training.classification_metrics(load_base("ada"), encode(latin), classification)
    assert row["classification/auroc"] is None
    assert "classification/f2.0" in row


def test_the_same_seed_gives_the_same_bits(scripts: list[tuple[str, str]]) -> None:
    """And another seed, another order."""
    one, again, other = (train(scripts[:40], seed=seed)[0].weights.output_weight for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    "change",
    [{"n_epochs": 3}, {"batch_size": 8}, {"learning_rate_multiplier": 0.1}, {"prompt_loss_weight": 0.5}],
    ids=lambda change: next(iter(change)),
)
def test_each_hyperparameter_acts(scripts: list[tuple[str, str]], change: dict[str, Any]) -> None:
    """Changing it changes the model."""
    plain, changed = train(scripts[:40])[0], train(scripts[:40], **change)[0]
    assert not np.allclose(plain.weights.output_weight, changed.weights.output_weight, atol=1e-4)


def test_the_prompt_weight_teaches_prompts(scripts: list[tuple[str, str]]) -> None:
    """The heavier prompts weigh, the better the model foresees them."""
    prompts = [TextPair.of("", prompt) for prompt, _ in scripts[:40]]
    losses = []
    for weight in (0.0, 0.01, 1.0):
        model, _ = train(scripts[:40], prompt_loss_weight=weight)
        losses.append(evaluate(model, prompts, 0.0).loss)
    assert losses == sorted(losses, reverse=True)


# The process.


@attrs.frozen
class Job:
    """A job in a folder of its own."""

    folder: Path

    def start(self, rows: Sequence[tuple[str, str]], **changes: Any) -> "subprocess.Popen[str]":
        """Start a trainer on `rows`, every fifth of which validates."""
        job = {
            "training_path": str(write(self.folder / "train.jsonl", [row for n, row in enumerate(rows) if n % 5])),
            "validation_path": str(write(self.folder / "valid.jsonl", rows[::5])),
            "model": "ada",
            "model_path": str(self.folder / "model.npz"),
            "results_path": str(self.folder / "results.csv"),
            "hyperparams": PLAIN | changes.pop("hyperparams", {}),
            "seed": 7,
        } | changes
        path = self.folder / "job.json"
        path.write_text(json.dumps(job))
        return subprocess.Popen(  # noqa: S603 - this interpreter, and paths made here
            [sys.executable, "-P", trainer.__file__, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def run(self, rows: Sequence[tuple[str, str]], **changes: Any) -> tuple[list[dict[str, Any]], int, str]:
        """Run a trainer to its end: what it reported, its exit status, and its stderr."""
        with self.start(rows, **changes) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            reports = [json.loads(line) for line in process.stdout]
            return reports, process.wait(), process.stderr.read()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_job_from_start_to_success(job: Job, scripts: list[tuple[str, str]], tmp_path: Path) -> None:
    """The reports come in order, the results have a row a step, and the model can be trained further, and repeated."""
    reports, status, errors = job.run(scripts[:50])
    assert (status, errors) == (0, "")
    assert [report["type"] for report in reports] == ["started", "epoch", "epoch", "succeeded"]
    assert reports[0]["examples"] == 40
    figures = reports[1].pop("figures")
    assert reports[1] == {"type": "epoch", "epoch": 1, "n_epochs": 2, "step": 40}
    assert reports[-1]["trained_tokens"] == 2 * reports[0]["tokens"]
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 80
    assert figures.keys() == set(jobs.CHECKPOINT_FIGURES)
    assert {name: f"{value:.6g}" for name, value in figures.items()} == {
        name: value for name, value in rows[39].items() if name in figures
    }
    assert int(rows[-1]["elapsed_tokens"]) == reports[-1]["trained_tokens"]
    assert not list(tmp_path.glob("*.partial"))

    model, results = (tmp_path / "model.npz").read_bytes(), (tmp_path / "results.csv").read_bytes()
    job.run(scripts[:50])
    assert (tmp_path / "model.npz").read_bytes() == model
    assert (tmp_path / "results.csv").read_bytes() == results

    further, status, _ = job.run(scripts[:50], model=str(tmp_path / "model.npz"))
    assert (further[-1]["type"], status) == ("succeeded", 0)
    with (tmp_path / "results.csv").open() as file:
        assert float(next(csv.DictReader(file))["training_loss"]) < float(rows[0]["training_loss"])
    assert load(tmp_path / "model.npz").base == "ada"


def test_a_bad_file_fails_the_job(job: Job, tmp_path: Path) -> None:
    """The owner is told which file and line, and nothing is written."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": " b"}\n{"prompt": "a"}\n')
    reports, status, _ = job.run(ROWS * 5, validation_path=str(bad))
    (report,) = reports
    assert (report["type"], status) == ("failed", 1)
    assert report["message"].startswith("The validation file, line 2: the key 'completion' is missing")
    assert not (tmp_path / "model.npz").exists()


def test_a_surprise_fails_the_job_without_paths(job: Job, tmp_path: Path) -> None:
    """What nobody foresaw is reported by its type, with a traceback for the server's log."""
    reports, status, errors = job.run(ROWS * 5, model=str(tmp_path / "gone.npz"))
    message = "The trainer failed: FileNotFoundError: No such file or directory"
    assert (reports, status) == ([{"type": "failed", "message": message}], 1)
    assert errors.startswith("Traceback")


def test_a_trainer_without_a_server_ends_before_its_imports(tmp_path: Path) -> None:
    """When its standard input has ended already, the trainer is gone before NumPy is imported."""
    ended = subprocess.run(  # noqa: S603 - this interpreter, and paths made here
        [sys.executable, "-X", "importtime", "-P", trainer.__file__, str(tmp_path / "none")],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ended.returncode == EXIT_ABANDONED
    assert "numpy" not in ended.stderr


@pytest.mark.parametrize("end", ["stdin", "SIGTERM"])
def test_an_abandoned_trainer_ends_at_once(job: Job, scripts: list[tuple[str, str]], tmp_path: Path, end: str) -> None:
    """When its standard input ends, or on SIGTERM, the trainer is gone and no file appears."""
    with job.start(scripts[:50], hyperparams={"n_epochs": 1_000_000}) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["type"] == "started"
        if end == "stdin":
            process.stdin.close()
            assert process.wait() == EXIT_ABANDONED
        else:
            process.terminate()
            assert process.wait() == -signal.SIGTERM
    assert not (tmp_path / "results.csv").exists()
    assert not (tmp_path / "model.npz").exists()
