"""Jobs in an instant: they go the way of a job that trains, but nothing is trained, and their results are made up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from aiofinetune import structuring
from aiofinetune._threads import in_thread
from aiofinetune.local._atomic import replacing
from aiofinetune.local._engines.training_files import TrainingError
from aiofinetune.local._machines import Machine, shared
from aiofinetune.local._store.attempts import Attempt
from aiofinetune.local._trainers import Ended

if TYPE_CHECKING:
    from aiofinetune.local._engines.job import Row
    from aiofinetune.local._engines.model import TextPair

OnLine = Callable[[bytes], Awaitable[None]]
Report = Mapping[str, object]

MARK_COLUMN: Final = "simulated"
"""The last column of the results; it is 1 in each row."""

_WEIGHTS: Final = b"simulated: there are no weights\n"


class InstantTrainers:
    """Runs jobs without training. What a trainer would refuse fails its job with the same words."""

    slots = 1

    def machines(self, running: Collection[Attempt]) -> Sequence[Machine]:
        """Return one machine that has nothing (see `aiofinetune.local._trainers.Trainers`)."""
        return shared([{}], [attempt.needs for attempt in running])

    async def run(self, attempt: Attempt, on_line: OnLine) -> Ended:
        """Run a job (see `aiofinetune.local._trainers.Trainers`)."""
        reports = await in_thread(None, lambda: _simulate(attempt))
        # All at once, so that the store commits them together; tasks start in the order in which they are made.
        async with asyncio.TaskGroup() as group:
            for report in reports:
                group.create_task(_write(report, on_line))
        return Ended(is_well=True, how="without an error")


async def _write(report: Report, on_line: OnLine) -> None:
    await on_line(structuring.dumps(report))


def _simulate(attempt: Attempt) -> list[Report]:
    """Write what a trainer leaves, and return what it reports."""
    from aiofinetune.local._engines import job, training  # noqa: PLC0415  # On a thread: NumPy takes long to import.

    try:
        texts = training.read_texts(str(attempt.training_path), "training")
        validation = training.read_texts(str(attempt.validation_path), "validation") if attempt.validation_path else []
        hyperparams = job.resolve_hyperparams(structuring.write_reply(attempt.job.hyperparams), len(texts))
        classification = job.find_classes(hyperparams, training.completions(texts), training.completions(validation))
    except TrainingError as error:
        return [{"type": "failed", "message": str(error), "param": error.param}]

    columns = [*job.result_columns(has_validation=bool(validation), classification=classification), MARK_COLUMN]
    steps = job.steps_per_epoch(len(texts), hyperparams.batch_size)
    rows = list(_rows(texts, hyperparams.batch_size, hyperparams.n_epochs, columns))
    with replacing(attempt.results_path) as results:
        results.write((",".join(columns) + "\n").encode())
        results.writelines(job.format_row(row, columns).encode() for row in rows)
    for path in (attempt.model_path, *attempt.checkpoint_paths().values()):
        path.write_bytes(_WEIGHTS)

    reports: list[Report] = [{"type": "started"}]
    for epoch in range(1, hyperparams.n_epochs + 1):
        row = rows[epoch * steps - 1]
        figures = {name: row[name] for name in job.CHECKPOINT_FIGURES if name in row}
        place = {"epoch": epoch, "n_epochs": hyperparams.n_epochs, "step": epoch * steps}
        reports.append({"type": "epoch", **place, "figures": figures})
    return [*reports, {"type": "succeeded", "trained_tokens": rows[-1]["elapsed_tokens"]}]


def _rows(texts: list[TextPair], batch_size: int, n_epochs: int, columns: list[str]) -> Iterator[Row]:
    """Yield the rows of the results: the counts are right, the losses fall, and all else rises towards 1."""
    from aiofinetune.local._engines.training import count_text_tokens  # noqa: PLC0415  # as above

    tokens, examples = 0, 0
    epoch = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
    sizes = [(sum(map(count_text_tokens, batch)), len(batch)) for batch in epoch]
    for step, (more_tokens, more_examples) in enumerate(itertools.chain(*[sizes] * n_epochs), start=1):
        tokens, examples = tokens + more_tokens, examples + more_examples
        row: Row = {name: 1 / step if name.endswith("loss") else 1 - 1 / (step + 1) for name in columns}
        counts = {"step": step, "elapsed_tokens": tokens, "elapsed_examples": examples, MARK_COLUMN: 1}
        yield {**row, **counts}
