"""The demo: fine-tune a model on real data through the public API, offline, and show what it learned.

The data comes with Python: the names of Unicode characters. The first word of a name is its script, which the model
learns to tell from the rest of the name: ``CAPITAL LETTER DZHE`` is ``Cyrillic``.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from aiofinetune.cli._output import is_ascii, print_drawing
from aiofinetune.errors import FineTuneError
from aiofinetune.local import LocalServer, OpenModel
from aiofinetune.models import FineTune, FineTuneRequest
from aiofinetune.results import ResultRow, draw_curves, last_figures
from aiofinetune.session import FineTuneSession

_SCRIPTS: Final = ("LATIN", "ARABIC", "CYRILLIC", "ETHIOPIC", "GREEK", "GEORGIAN", "CHEROKEE", "HEBREW")
_TRAINING_ROWS: Final = 2000
_SHOWN: Final = 8
_PROMPTS_AT_ONCE: Final = 50

_OPEN_MODEL: Final = "open-model"
"""The name of the model of ``--model-path``."""
_OPEN_TRAINING_ROWS: Final = 400
_OPEN_HELD_OUT_ROWS: Final = 100
_OPEN_PROMPTS_AT_ONCE: Final = 5
_OPEN_MAX_TOKENS: Final = 8
"""An open model is a hundred times as slow, and its tokens are parts of words."""


@attrs.frozen
class Examples:
    """Prompts and completions, shuffled and split."""

    training: Sequence[tuple[str, str]]
    held_out: Sequence[tuple[str, str]]

    @property
    def majority(self) -> float:
        """The accuracy of always answering with the most common class, on the held-out examples."""
        counts = Counter(completion for _, completion in self.held_out)
        return max(counts.values()) / len(self.held_out)


def examples() -> Examples:
    """Return the names of letters and syllables of eight scripts, the same on every run of one Python version."""
    rows = []
    for code in range(0x20000):
        script, _, rest = unicodedata.name(chr(code), "").partition(" ")
        if script in _SCRIPTS and ("LETTER" in rest or "SYLLABLE" in rest):
            rows.append((f"{rest} ->", f" {script.title()}"))
    random.Random(0).shuffle(rows)  # noqa: S311  # not a secret
    return Examples(rows[:_TRAINING_ROWS], rows[_TRAINING_ROWS : _TRAINING_ROWS + 400])


async def run(model: str, n_epochs: int | None, dialect: str, console: Console, model_path: Path | None = None) -> None:
    """Serve, upload, tune, follow, download, and compare the answers before and after.

    Args:
        model: The base model to tune.
        n_epochs: The number of epochs to train for; by default, 4, or 1 for an open model.
        dialect: The API to use: ``"fine-tunes"``, ``"jobs"`` or ``"together"``.
        console: Where to print.
        model_path: The folder of an open model to tune instead, with less data.

    Raises:
        FineTuneError: Something failed, or the tuned model is no better than the base model or the most common answer.
    """
    data, models = examples(), list[OpenModel]()
    n_epochs = n_epochs or (1 if model_path else 4)
    if model_path is not None:
        model = _OPEN_MODEL
        models.append(await asyncio.to_thread(OpenModel.at, model, model_path))
        data = Examples(data.training[:_OPEN_TRAINING_ROWS], data.held_out[:_OPEN_HELD_OUT_ROWS])
    console.print(
        f"Data: {len(data.training)} names of characters, {len(data.held_out)} held out; {len(_SCRIPTS)} scripts"
    )
    with tempfile.TemporaryDirectory() as folder:
        async with (
            LocalServer(models=models) as server,
            FineTuneSession(server.api_key, base_url=server.url_of(dialect), dialect=dialect) as session,
        ):
            console.print(f"Embedded server: {session.base_url}{session.dialect.endpoints.create_fine_tune.path}")
            job = await _tune(session, model, n_epochs, data, Path(folder), console)
            rows = await session.results(job)
            console.print("Learning curve", style="italic")
            print_drawing(
                console, draw_curves({model: rows}, {model: n_epochs}, width=console.width, is_ascii=is_ascii(console))
            )
            before = await _answers(session, model, data)
            after = await _answers(session, job.fine_tuned_model or "", data)
    _show_answers(data, before, after, console)
    _judge(data, before, after, rows, console)


async def _tune(
    session: FineTuneSession, model: str, n_epochs: int, data: Examples, folder: Path, console: Console
) -> FineTune:
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        training_file = await _upload(session, folder / "train.jsonl", data.training, progress)
        validation_file = await _upload(session, folder / "held_out.jsonl", data.held_out, progress)
        request = FineTuneRequest(
            training_file=training_file,
            validation_file=validation_file,
            model=model,
            n_epochs=n_epochs,
            suffix="scripts",
            extra=dict.fromkeys(session.dialect.acts_with.values(), n_epochs) or None,
        )
        if "compute_classification_metrics" not in session.dialect.lacks:
            request = attrs.evolve(request, compute_classification_metrics=True, classification_n_classes=len(_SCRIPTS))
        job = await session.create_fine_tune(request)
        epochs = progress.add_task("training, in epochs", total=n_epochs)
        async with session.stream_fine_tune_events(job.id) as events:
            async for event in events:
                progress.console.print(f"  {event.message}", highlight=False)
                progress.advance(epochs, event.message.startswith("Completed epoch"))
        return await session.wait(job.id)


async def _upload(session: FineTuneSession, path: Path, rows: Sequence[tuple[str, str]], progress: Progress) -> str:
    lines = "".join(json.dumps({"prompt": prompt, "completion": text}) + "\n" for prompt, text in rows)
    await asyncio.to_thread(path.write_text, lines)
    bar = progress.add_task(f"uploading {path.name}, in bytes", total=None)
    file = await session.upload_file(
        path, progress=lambda sent, total: progress.update(bar, completed=sent, total=total)
    )
    return file.id


async def _answers(session: FineTuneSession, model: str, data: Examples) -> list[str]:
    """Return a model's most likely next word for each held-out prompt."""
    prompts = [prompt for prompt, _ in data.held_out]
    answers: list[str] = []
    # A token of the built-in models is a word.
    is_open = model.startswith(_OPEN_MODEL)
    at_once, max_tokens = (_OPEN_PROMPTS_AT_ONCE, _OPEN_MAX_TOKENS) if is_open else (_PROMPTS_AT_ONCE, 1)
    for start in range(0, len(prompts), at_once):
        batch = prompts[start : start + at_once]
        completion = await session.create_completion(model, batch, max_tokens=max_tokens, temperature=0)
        texts = [choice.text for choice in sorted(completion.choices, key=lambda choice: choice.index)]
        answers += [_first_word(text) for text in texts] if is_open else texts
    return answers


def _first_word(text: str) -> str:
    return f" {text.split(maxsplit=1)[0]}" if text.strip() else ""


def _accuracy(data: Examples, answers: Sequence[str]) -> float:
    right = sum(answer == expected for answer, (_, expected) in zip(answers, data.held_out, strict=True))
    return right / len(answers)


def _show_answers(data: Examples, before: Sequence[str], after: Sequence[str], console: Console) -> None:
    table = Table("prompt", "expected", "before", "after", title="Held-out prompts", title_justify="left", box=None)
    for (prompt, expected), base, tuned in list(zip(data.held_out, before, after, strict=True))[:_SHOWN]:
        table.add_row(prompt, repr(expected), repr(base), repr(tuned))
    console.print(table)


def _judge(
    data: Examples, before: Sequence[str], after: Sequence[str], rows: Sequence[ResultRow], console: Console
) -> None:
    tuned, base = _accuracy(data, after), _accuracy(data, before)
    figures = last_figures(rows)
    console.print(f"Validation loss at the end: {figures['validation_loss']:.4f}")
    # The jobs API has no classification metrics.
    name = "classification/accuracy" if "classification/accuracy" in figures else "validation_token_accuracy"
    console.print(f"Accuracy in the results file ({name}): {figures[name]:.3f}")
    console.print(f"Accuracy of the answers: {tuned:.3f} after, {base:.3f} before, {data.majority:.3f} by the majority")
    if tuned <= max(base, data.majority):
        raise FineTuneError("the tuned model is no better than the majority class or the base model")
