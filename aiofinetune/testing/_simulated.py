"""Completions without a model, which say that they are simulated."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Final

from aiofinetune.local._completions import CompletionRequest
from aiofinetune.local._engines.tokens import show_token, split_tokens
from aiofinetune.local._engines.written import FinishReason, Written
from aiofinetune.local._store.models import Origin

TEXT: Final = " simulated: no model wrote this"
"""Every completion, but for limits and stops. Its first token says already what it is."""


class SimulatedCompleter:
    """Completes every prompt with the same words."""

    async def write(self, asked: CompletionRequest, origin: Origin) -> AsyncGenerator[list[tuple[int, Written]]]:  # noqa: ARG002  # There are no weights to read.
        """Yield the tokens of each choice (see `aiofinetune.local._completions.Completer`)."""
        for index, prompt in enumerate(prompt for prompt in asked.prompt for _ in range(asked.n)):
            prompt_tokens = len(_tokens(prompt)) if index % asked.n == 0 else 0
            for tokens, finish_reason in _pieces(prompt, asked):
                chances = None if asked.logprobs is None else (0.0,) * len(tokens)
                likeliest = tuple({token: 0.0} for token in tokens) if asked.logprobs else None
                piece = Written("".join(tokens), tokens, chances, likeliest, finish_reason, prompt_tokens)
                prompt_tokens = 0
                yield [(index, piece)]

    async def close(self) -> None:
        """Close nothing (see `aiofinetune.local._completions.Completer`)."""


def _pieces(prompt: str, asked: CompletionRequest) -> Iterator[tuple[tuple[str, ...], FinishReason | None]]:
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
