"""The store's models: the base models, and the models that jobs make."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

import attrs

from aiofinetune import structuring
from aiofinetune._sqlite import transaction
from aiofinetune._threads import in_thread
from aiofinetune.local._open_models import BUILT_IN, OpenModel
from aiofinetune.local._store.database import StoreDatabase, new_id, now
from aiofinetune.local._store.folder import sync_folder
from aiofinetune.local._store.refused import Refused, refuse_if_needed
from aiofinetune.models import Model

ORGANIZATION: Final = "org-local"

_PRETRAINED_AT: Final = 1_793_491_200
"""When the built-in models were made, to the day, in Unix seconds: 2026-11-01."""


@attrs.frozen
class Checkpoint:
    """A model at the end of one of a job's last epochs."""

    step: int
    metrics: Mapping[str, float]
    created_at: int
    weights: Path
    """The path of the weights; for the last epoch, that of the job's model."""
    id: str = ""
    model: str = ""
    """The name of the model."""


@attrs.frozen
class Origin:
    """A model as an engine needs it. The base decides which engine: the built-in one, or that of open models."""

    base: str
    """The name of the base model."""
    weights: Path | None
    """The path of a fine-tuned model's weights; None for the base model itself."""
    open_model: OpenModel | None
    """The base, if it is an open model; None if it is built in."""


class ModelStore:
    """The models. Each has a unique name, and its weights stay on the disk as long as a job needs them.

    Args:
        database: The store's database.
        folder: The folder of the fine-tuned models' weights.
        threads: The threads for blocking work.
        open_models: The base models besides the built-in ones.
    """

    def __init__(
        self, database: StoreDatabase, folder: Path, threads: Executor, open_models: Sequence[OpenModel] = ()
    ) -> None:
        self.database = database
        self._folder = folder
        self._threads = threads
        self._bases: Mapping[str, OpenModel | None] = {
            **dict.fromkeys(BUILT_IN),
            **{model.name: model for model in open_models},
        }

    @property
    def bases(self) -> Sequence[str]:
        """The names of the base models."""
        return tuple(self._bases)

    @transaction
    def list(self) -> tuple[Model, ...]:
        """Return the base models, then the fine-tuned ones, oldest first."""
        rows = self.database.execute("SELECT id, created FROM models ORDER BY number")
        return (*map(self._base_model, self._bases), *(Model(name, created, ORGANIZATION) for name, created in rows))

    @transaction
    def get(self, name: str) -> Model:
        """Return one model, or refuse with 404."""
        if name in self._bases:
            return self._base_model(name)
        return Model(name, self._find(name)[2], ORGANIZATION)

    @transaction
    def locate(self, name: str) -> Origin:
        """Return where a model comes from; refuse with 404 if it does not exist, or its base is not served."""
        return self.origin(name)

    async def delete(self, name: str) -> None:
        """Delete a fine-tuned model; refuse if a job that is not over trains it further."""
        weights = await self._forget(name)
        await in_thread(self._threads, lambda: weights.unlink(missing_ok=True))

    @transaction
    def _forget(self, name: str) -> Path:
        if name in self._bases:
            raise Refused(403, f"'{name}' is a base model; only fine-tuned models can be deleted", param="model")
        _, weights, _ = self._find(name)
        refuse_if_needed(self.database, "model", name)
        self.database.execute("DELETE FROM models WHERE id = ?", (name,))
        self.database.execute("DELETE FROM checkpoints WHERE model = ?", (name,))
        return self._folder / weights

    @transaction
    def checkpoints(self, job_id: str, after: str | None, count: int) -> Sequence[Checkpoint]:
        """Return the checkpoints of a job, at most `count`, latest first.

        Args:
            job_id: The job.
            after: The id of the checkpoint before the first one to return; refuse with 400 if it does not exist.
            count: The most checkpoints to return.
        """
        last = None
        if after is not None:
            row = self.database.execute(
                "SELECT number FROM checkpoints WHERE id = ? AND job = ?", (after, job_id)
            ).fetchone()
            if row is None:
                raise Refused(400, "after: expected the id of a checkpoint of this job", param="after")
            (last,) = row
        rows = self.database.execute(
            "SELECT step, metrics, created_at, coalesce(weights, ''), id, model FROM checkpoints"
            " WHERE job = ? AND number < coalesce(?, number + 1) ORDER BY number DESC LIMIT ?",
            (job_id, last, count),
        )
        return [
            Checkpoint(step, structuring.loads(metrics), created_at, self._folder / weights, checkpoint_id, model)
            for step, metrics, created_at, weights, checkpoint_id, model in rows
        ]

    # In a transaction

    def origin(self, name: str) -> Origin:
        """Return where a model comes from; refuse with 404 if it does not exist, or its base is not served."""
        if name in self._bases:
            return Origin(name, None, self._bases[name])
        base, weights, _ = self._find(name)
        if base not in self._bases:
            raise Refused(
                404,
                f"The model '{name}' is made from '{base}', which this server was started without",
                param="model",
                code="model_not_found",
            )
        return Origin(base, self._folder / weights, self._bases[base])

    def _find(self, name: str) -> tuple[str, str, int]:
        """Return the base of a fine-tuned model or a checkpoint, its weights and its time; refuse with 404."""
        row: tuple[str, str, int] | None = self.database.execute(
            "SELECT base, weights, created FROM models WHERE id = ?"
            " UNION ALL SELECT base, weights, created_at FROM checkpoints WHERE model = ? AND weights IS NOT NULL",
            (name, name),
        ).fetchone()
        if row is None:
            raise _no_model(name)
        return row

    def add(self, path: Path, base: str, suffix: str | None) -> str:
        """Add a model whose weights are already in their place, and return its name."""
        sync_folder(self._folder)
        name = self._new_name(base, suffix)
        self.database.execute(
            "INSERT INTO models (id, base, created, weights) VALUES (?, ?, ?, ?)", (name, base, now(), path.name)
        )
        return name

    def add_checkpoint(self, job_id: str, model: str, base: str, checkpoint: Checkpoint, *, is_last: bool) -> None:
        """Add a checkpoint of a job.

        Args:
            job_id: The job.
            model: The name of the job's model.
            base: The base of that model.
            checkpoint: The checkpoint.
            is_last: Whether it is that of the last epoch, which is the job's model itself.
        """
        self.database.execute(
            "INSERT INTO checkpoints (id, job, created_at, step, metrics, model, base, weights)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                new_id("ftckpt_"),
                job_id,
                checkpoint.created_at,
                checkpoint.step,
                structuring.dumps(checkpoint.metrics),
                model if is_last else f"{model}:ckpt-step-{checkpoint.step}",
                base,
                None if is_last else checkpoint.weights.name,
            ),
        )

    def _base_model(self, name: str) -> Model:
        open_model = self._bases[name]
        if open_model is None:
            return Model(name, _PRETRAINED_AT, "aiofinetune")
        return Model(name, open_model.created_at, ORGANIZATION)

    def _new_name(self, base: str, suffix: str | None) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", (suffix or "").lower()).strip("-")
        start = dt.datetime.now(dt.UTC)

        def name_after(seconds: int) -> str:
            at = start + dt.timedelta(seconds=seconds)
            return f"{base}:ft-local{':' if slug else ''}{slug}-{at:%Y-%m-%d-%H-%M-%S}"

        def is_taken(seconds: int) -> bool:
            found = self.database.execute("SELECT 1 FROM models WHERE id = ?", (name_after(seconds),))
            return found.fetchone() is not None

        # Where jobs end faster than one a second, the names of the seconds to come are taken, maybe for hours. Their
        # end is found in a few steps: the first free second of those that are 1, 2, 4… ahead, then between these.
        taken, free = -1, 0
        while is_taken(free):
            taken, free = free, 2 * free + 1
        while free - taken > 1:
            middle = (taken + free) // 2
            taken, free = (middle, free) if is_taken(middle) else (taken, middle)
        return name_after(free)


def _no_model(name: str) -> Refused:
    return Refused(404, f"The model '{name}' does not exist", param="model", code="model_not_found")
