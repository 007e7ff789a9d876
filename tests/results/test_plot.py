"""Pictures of jobs, where matplotlib is installed: `pip install 'aiofinetune[plot]'`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aiofinetune import ConfigurationError, FineTuneError, LocalFileError, ResultRow
from aiofinetune.results import Comparison, Results, Run, plot_comparison, plot_curves

PNG = b"\x89PNG\r\n"


@pytest.fixture
def _matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def job(steps: int, start: float = 4.0) -> Results:
    return Results(
        ResultRow(
            step,
            training_loss=start / step,
            training_token_accuracy=1 - 1 / step,
            validation_loss=start / step if step % 10 == 0 else None,
            classification={"accuracy": 1 - 1 / step} if step % 20 == 0 else {},
        )
        for step in range(1, steps + 1)
    )


def run(label: str, results: Results | None = None, **parameters: object) -> Run:
    return Run(label, parameters, results, "succeeded")


SWEEP = Comparison(
    run(f"{model}-{n}", job(20 * n, start), n_epochs=n, model=model)
    for model, start in (("ada", 4.0), ("curie", 3.0))
    for n in (1, 2, 4)
)


@pytest.mark.usefixtures("_matplotlib")
def test_pictures_of_curves(tmp_path: Path) -> None:
    """One job or several make a picture, PNG or SVG by the file's name; the SVG of equal jobs is the same."""
    plot_curves(tmp_path / "one.png", {"a": job(40)}, {"a": 2})
    assert (tmp_path / "one.png").read_bytes().startswith(PNG)
    for name in ("several.svg", "again.SVG"):
        plot_curves(tmp_path / name, {"first job": job(40), "second": job(20)})
    text = (tmp_path / "several.svg").read_text()
    assert text == (tmp_path / "again.SVG").read_text()
    for words in ("first job", "second", "training loss, smoothed", "validation loss", "accuracy", "epoch 2"):
        assert f"<!-- {words} -->" in text


@pytest.mark.usefixtures("_matplotlib")
def test_more_jobs_than_colours(tmp_path: Path) -> None:
    """Any number of jobs has lines that differ, in colour or in dashes."""
    plot_curves(tmp_path / "many.svg", {f"job-{number}": job(5) for number in range(30)})
    text = (tmp_path / "many.svg").read_text()
    assert all(f"<!-- job-{number} -->" in text for number in range(30))


@pytest.mark.usefixtures("_matplotlib")
def test_pictures_of_comparisons(tmp_path: Path) -> None:
    """A figure is drawn against the parameter with the most values, with a line for each value of the others."""
    path = tmp_path / "picture.svg"
    plot_comparison(path, SWEEP)
    text = path.read_text()
    for words in ("accuracy (higher is better)", "epochs", "model", "ada", "curie", "best: 0.9875"):
        assert f"<!-- {words} -->" in text
    plot_comparison(path, SWEEP, "validation loss", "model")
    text = path.read_text()
    for words in ("validation loss (lower is better)", "epochs", "1", "4", "best: 0.0375"):
        assert f"<!-- {words} -->" in text


@pytest.mark.usefixtures("_matplotlib")
@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda path: plot_curves(path / "a.jpg", {"a": job(2)}), "expected a name that ends in .png or .svg"),
        (lambda path: plot_curves(path / "a.png", {"a": Results()}), "no results file has any figures"),
        (lambda path: plot_comparison(path / "a.png", Comparison([run("a", n_epochs=1)])), "no job has any figures"),
        (lambda path: plot_comparison(path / "a.png", Comparison(SWEEP.runs[:1])), "the jobs differ in no parameter"),
        (lambda path: plot_comparison(path / "a.png", SWEEP, "n_epochs"), "n_epochs: is not a figure; there are"),
        (lambda path: plot_comparison(path / "a.png", SWEEP, None, "label"), "label: is not varied: the jobs differ"),
    ],
)  # fmt: skip
def test_nothing_to_draw(draw: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    """What cannot be drawn is told, with what there is, and no file is made."""
    with pytest.raises(ConfigurationError, match=words):
        draw(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_matplotlib")
def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that does not exist is an error that names the file."""
    with pytest.raises(LocalFileError, match=r"nowhere/a\.png: No such file"):
        plot_curves(tmp_path / "nowhere" / "a.png", {"a": job(2)})


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where matplotlib is missing, the error names the extra that has it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FineTuneError, match=r"pip install 'aiofinetune\[plot\]'"):
        plot_curves(tmp_path / "a.png", {"a": job(2)})


def test_matplotlib_is_imported_when_it_is_used() -> None:
    """Reading and drawing as text import no matplotlib."""
    script = "import sys, aiofinetune.results as r; r.draw_curves({}); sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)  # noqa: S603  # the script above
