"""Completions without a model, which say that they are simulated."""

from __future__ import annotations

import importlib
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiofinetune._threads import in_thread
from aiofinetune.local._completions import CompletionRequest
from aiofinetune.local._engines.tokens import show_token, split_tokens

if TYPE_CHECKING:
    from aiofinetune.local._engines.sampling import Written

TEXT: Final = " simulated: no model wrote this"
"""Every completion, but for limits and stops. Its first token says already what it is."""


class SimulatedCompleter:
    """Completes every prompt with the same words."""

    async def write(self, asked: CompletionRequest, weights: Path | None) -> AsyncGenerator[list[tuple[int, Written]]]:  # noqa: ARG002  # There are no weights to read.
        """Yield the tokens of each choice (see `aiofinetune.local._completions.Completer`)."""
        # On a thread: it imports NumPy, which takes long.
        sampling = await in_thread(None, lambda: importlib.import_module("aiofinetune.local._engines.sampling"))
        for index, prompt in enumerate(prompt for prompt in asked.prompt for _ in range(asked.n)):
            for tokens, finish_reason in _pieces(prompt, asked):
                chances = None if asked.logprobs is None else (0.0,) * len(tokens)
                likeliest = tuple({token: 0.0} for token in tokens) if asked.logprobs else None
                yield [(index, sampling.Written("".join(tokens), tokens, chances, likeliest, finish_reason))]

    def close(self) -> None:
        """Close nothing (see `aiofinetune.local._completions.Completer`)."""


def _pieces(prompt: str, asked: CompletionRequest) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Yield the tokens of a choice one by one, and at the end why it ends."""
    if asked.echo:
        yield _tokens(prompt), None
    ends = [place for stop in asked.stop if (place := TEXT.find(stop)) >= 0]
    tokens = _tokens(TEXT[: min(ends, default=len(TEXT))])
    for token in tokens[: asked.max_tokens]:
        yield (token,), None
    yield (), "length" if len(tokens) > asked.max_tokens else "stop"


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(map(show_token, split_tokens(text.encode(errors="replace"))))
