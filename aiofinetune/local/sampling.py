"""Completing a prompt: a byte at a time underneath, counted in tokens."""

import heapq
import math
from collections.abc import Sequence
from typing import Final, Literal, Self

import attrs
import numpy as np

from aiofinetune.local.model import (
    END_OF_TEXT,
    PROMPT_BYTES,
    Floats,
    Model,
    Symbols,
    next_log_probabilities,
    ngram_buckets,
)
from aiofinetune.local.tokens import extensions, show_token, split_tokens

# How many beginnings of tokens the search for the likeliest tokens looks into before it settles for those it has found.
_SEARCH_STEPS: Final = 100


@attrs.frozen
class Completion:
    """What a model wrote.

    `finish_reason` is "length" if the next token would have been one too many, else "stop". `tokens` are the text's.
    `token_logprobs` are their log probabilities, in nats, each after those before it; `top_logprobs` are the likeliest
    tokens in each one's place, likeliest first, with theirs. Both are None if they were not asked for.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...] | None
    top_logprobs: tuple[dict[str, float], ...] | None


def complete(
    model: Model,
    prompt: str,
    *,
    max_tokens: int = 16,
    temperature: float = 1.0,
    stop: Sequence[str] = (),
    seed: int | None = None,
    logprobs: int | None = None,
) -> Completion:
    """Write on after `prompt` until the end of text, a stop or the bound.

    Several threads may share a model; the interpreter lock is never held for longer than the work on one byte.

    Args:
        model: The model that writes.
        prompt: What comes before; of a long one, the end is used.
        max_tokens: The most tokens to write.
        temperature: What log probabilities are divided by before a byte is drawn; at 0 the likeliest is taken.
        stop: Texts that end the completion, which keeps what is before them.
        seed: What decides the draws; None for others each time.
        logprobs: How many of the likeliest tokens to list in each place, 0 for the tokens' own log probabilities
            alone; None for none at all.
    """
    reader = _Reader.at_start(model).read(prompt.encode(errors="replace")[-PROMPT_BYTES:])
    written, finish_reason = _write(reader, max_tokens, temperature, stop, np.random.default_rng(seed))
    tokens = split_tokens(written)
    shown = tuple(map(show_token, tokens))
    text = written.decode(errors="replace")
    if logprobs is None:
        return Completion(text, finish_reason, shown, None, None)
    chances, likeliest = [], []
    before = b""
    for token in tokens:
        chances.append(_token_log_probability(reader, before, token))
        likeliest.append(dict(_likeliest_tokens(reader, before, logprobs)))
        reader, before = reader.read(token), token
    return Completion(text, finish_reason, shown, tuple(chances), tuple(likeliest))


@attrs.frozen(eq=False)
class _Reader:
    """A model part-way through a text; reading on gives another reader."""

    model: Model
    window: Symbols  # (window,): the last symbols read
    ngram_sum: Floats  # (context,): of all n-grams read
    length: int

    @classmethod
    def at_start(cls, model: Model) -> Self:
        size = model.size
        return cls(model, np.full(size.window, END_OF_TEXT, np.uint16), np.zeros(size.context, np.float32), 0)

    def read(self, text: bytes) -> "_Reader":
        symbols = np.concatenate((self.window, np.frombuffer(text, np.uint8).astype(np.uint16)))
        buckets = ngram_buckets(symbols[-len(text) - 3 :], self.model.size.bucket_bits)
        ngrams = self.model.weights.ngram_embedding[buckets].sum(axis=(0, 1))
        return _Reader(self.model, symbols[-len(self.window) :], self.ngram_sum + ngrams, self.length + len(text))

    def predict(self) -> Floats:
        """Return the log probability of each symbol to come next: (SYMBOLS,)."""
        context = self.ngram_sum / np.float32(math.sqrt(max(self.length, 1)))
        log_probabilities: Floats = next_log_probabilities(self.model.weights, self.window[None], context[None])[0]
        return log_probabilities


def _write(
    reader: _Reader, max_tokens: int, temperature: float, stop: Sequence[str], rng: np.random.Generator
) -> tuple[bytes, Literal["stop", "length"]]:
    stops = [text.encode() for text in stop if text]
    written, token, n_tokens = b"", b"", 0
    while (symbol := _draw(reader.predict(), temperature, rng)) != END_OF_TEXT:
        if n_tokens and symbol in extensions(token):
            token += bytes((symbol,))
        elif n_tokens < max_tokens:
            token, n_tokens = bytes((symbol,)), n_tokens + 1
        else:
            return written, "length"
        written += bytes((symbol,))
        if ended := [text for text in stops if written.endswith(text)]:
            return written[: -max(map(len, ended))], "stop"
        reader = reader.read(written[-1:])
    return written, "stop"


def _draw(log_probabilities: Floats, temperature: float, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(log_probabilities.argmax())
    with np.errstate(over="ignore"):  # Near 0, the quotients of the less likely are minus infinity, as they should be.
        scaled = (log_probabilities - log_probabilities.max()).astype(np.float64) / temperature
    cumulative = np.cumsum(np.exp(scaled))
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def _token_log_probability(reader: _Reader, before: bytes, token: bytes) -> float:
    """Return how likely `token`, and not a longer one, comes next, given that the token `before` it has ended."""
    total = -_log_end(reader.predict(), before)
    for index in range(len(token)):
        total += float(reader.predict()[token[index]])
        reader = reader.read(token[index : index + 1])
    return total + _log_end(reader.predict(), token)


def _likeliest_tokens(reader: _Reader, before: bytes, count: int) -> list[tuple[str, float]]:
    """Return the `count` likeliest next tokens and their log probabilities, by a best-first search over beginnings."""
    found: list[tuple[str, float]] = []
    # Unlikelihood, beginning of a token, whether it is the whole, and a reader short of its last byte.
    queue = [(_log_end(reader.predict(), before), b"", False, reader)]
    steps = 0
    while queue and len(found) < count and steps < _SEARCH_STEPS:
        unlikelihood, beginning, is_whole, reader = heapq.heappop(queue)
        if is_whole:
            found.append((show_token(beginning), -unlikelihood))
            continue
        steps += 1
        reader = reader.read(beginning[-1:])
        log_probabilities = reader.predict()
        if beginning:
            heapq.heappush(queue, (unlikelihood - _log_end(log_probabilities, beginning), beginning, True, reader))
        for byte in extensions(beginning) - (extensions(before) if before and not beginning else frozenset()):
            longer = beginning + bytes((byte,))
            heapq.heappush(queue, (unlikelihood - float(log_probabilities[byte]), longer, False, reader))
    return found


def _log_end(log_probabilities: Floats, token: bytes) -> float:
    """Return the log probability that `token` is not made longer by what comes next."""
    if not token:
        return 0.0
    longer = np.zeros(len(log_probabilities), np.bool_)
    longer[list(extensions(token))] = True
    return float(np.logaddexp.reduce(log_probabilities[~longer]))
