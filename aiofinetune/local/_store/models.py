"""The store's models: the base models, and the models that jobs make."""

from __future__ import annotations

import datetime as dt
import re
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

from aiofinetune._sqlite import transaction
from aiofinetune._threads import in_thread
from aiofinetune.local._store.database import StoreDatabase, now
from aiofinetune.local._store.folder import sync_folder
from aiofinetune.local._store.refused import Refused, refuse_if_needed
from aiofinetune.models import Model

BASE_MODELS: Final = ("ada", "babbage", "curie", "davinci")
ORGANIZATION: Final = "org-local"


class ModelStore:
    """The models. Each has a unique name, and its weights stay on the disk as long as a job needs them.

    Args:
        database: The store's database.
        folder: The folder of the fine-tuned models' weights.
        threads: The threads for blocking work.
    """

    def __init__(self, database: StoreDatabase, folder: Path, threads: Executor) -> None:
        self.database = database
        self._folder = folder
        self._threads = threads

    @transaction
    def list(self) -> tuple[Model, ...]:
        """Return the base models, then the fine-tuned ones, oldest first."""
        rows = self.database.execute("SELECT id, created FROM models ORDER BY number")
        return (*map(_base_model, BASE_MODELS), *(Model(name, created, ORGANIZATION) for name, created in rows))

    @transaction
    def get(self, name: str) -> Model:
        """Return one model, or refuse with 404."""
        if name in BASE_MODELS:
            return _base_model(name)
        row = self.database.execute("SELECT created FROM models WHERE id = ?", (name,)).fetchone()
        if row is None:
            raise _no_model(name)
        return Model(name, row[0], ORGANIZATION)

    @transaction
    def weights_path(self, name: str) -> Path | None:
        """Return the path of a model's weights, or None for a base model; refuse with 404."""
        return None if name in BASE_MODELS else self.find(name)[1]

    async def delete(self, name: str) -> None:
        """Delete a fine-tuned model; refuse if a job that is not over trains it further."""
        weights = await self._forget(name)
        await in_thread(self._threads, lambda: weights.unlink(missing_ok=True))

    @transaction
    def _forget(self, name: str) -> Path:
        if name in BASE_MODELS:
            raise Refused(403, f"'{name}' is a base model; only fine-tuned models can be deleted", param="model")
        _, weights = self.find(name)
        refuse_if_needed(self.database, "model", name)
        self.database.execute("DELETE FROM models WHERE id = ?", (name,))
        return weights

    # In a transaction

    def find(self, name: str) -> tuple[str, Path]:
        """Return the base of a fine-tuned model and the path of its weights; refuse with 404."""
        row = self.database.execute("SELECT base, weights FROM models WHERE id = ?", (name,)).fetchone()
        if row is None:
            raise _no_model(name)
        return row[0], self._folder / row[1]

    def add(self, path: Path, base: str, suffix: str | None) -> str:
        """Add a model whose weights are already in their place, and return its name."""
        sync_folder(self._folder)
        name = self._new_name(base, suffix)
        self.database.execute(
            "INSERT INTO models (id, base, created, weights) VALUES (?, ?, ?, ?)", (name, base, now(), path.name)
        )
        return name

    def _new_name(self, base: str, suffix: str | None) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", (suffix or "").lower()).strip("-")
        time_of_name = dt.datetime.now(dt.UTC)
        while True:
            name = f"{base}:ft-local{':' if slug else ''}{slug}-{time_of_name:%Y-%m-%d-%H-%M-%S}"
            if self.database.execute("SELECT 1 FROM models WHERE id = ?", (name,)).fetchone() is None:
                return name
            time_of_name += dt.timedelta(seconds=1)


def _base_model(name: str) -> Model:
    return Model(name, owned_by="aiofinetune")


def _no_model(name: str) -> Refused:
    return Refused(404, f"The model '{name}' does not exist", param="model", code="model_not_found")
