"""What writes the completions: by the built-in engine in this process, or by an open model in a process of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from aiofinetune.local._completions import CompletionRequest, LocalCompleter
from aiofinetune.local._engines.written import Written
from aiofinetune.local._open_completions import OpenCompleter
from aiofinetune.local._store.models import Origin


class Completers:
    """Writes the completions of each model by the engine of its base."""

    def __init__(self) -> None:
        self._built_in = LocalCompleter()
        self._open = OpenCompleter()

    def write(self, asked: CompletionRequest, origin: Origin) -> AsyncGenerator[list[tuple[int, Written]]]:
        """Yield the pieces as they are written (see `aiofinetune.local._completions.Completer`)."""
        completer = self._built_in if origin.open_model is None else self._open
        return completer.write(asked, origin)

    async def close(self) -> None:
        """End the thread and the processes."""
        await self._built_in.close()
        await self._open.close()
