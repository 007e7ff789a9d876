"""The texts that models write, in pieces. It is apart from the engines, because the server does not import them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Literal

import attrs

FinishReason = Literal["stop", "length"]


@attrs.frozen
class Written:
    """A piece of the text that a model wrote, in whole tokens, or all of it.

    `finish_reason` is None if more text follows, "length" if the next token would exceed the limit, and otherwise
    "stop". `tokens` are the tokens of the text. `token_logprobs` are their log probabilities in nats, each given the
    tokens before it. `top_logprobs` are the most likely tokens at each position with their log probabilities, the most
    likely one first. Both are None if they were not requested, and contain None for the tokens of an echoed prompt that
    are not scored. `prompt_tokens` is the number of the prompt's tokens in the first piece that is written for it, and
    0 in all others.
    """

    text: str
    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...] | None = None
    top_logprobs: tuple[dict[str, float] | None, ...] | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0


class Unable(Exception):
    """A request cannot be answered.

    Args:
        message: The reason, for the client.
        status: The HTTP status of the answer.
        param: The invalid parameter, if there is one.
    """

    def __init__(self, message: str, status: int, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


def join(pieces: Iterable[Written]) -> Written:
    """Join the pieces of one text."""
    parts = list(pieces)
    chances = [part.token_logprobs for part in parts if part.token_logprobs is not None]
    likeliest = [part.top_logprobs for part in parts if part.top_logprobs is not None]
    return Written(
        text="".join(part.text for part in parts),
        tokens=tuple(itertools.chain.from_iterable(part.tokens for part in parts)),
        token_logprobs=tuple(itertools.chain.from_iterable(chances)) if chances else None,
        top_logprobs=tuple(itertools.chain.from_iterable(likeliest)) if likeliest else None,
        finish_reason=parts[-1].finish_reason,
        prompt_tokens=sum(part.prompt_tokens for part in parts),
    )
