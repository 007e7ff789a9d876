"""Complete a prompt: the model writes one byte at a time, and the limits count tokens."""

import codecs
import heapq
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final, Self, TypeVar

import attrs
import numpy as np

from aiofinetune.local._engines.forward import next_log_probabilities
from aiofinetune.local._engines.layout import ngram_buckets
from aiofinetune.local._engines.model import (
    END_OF_TEXT,
    PROMPT_BYTES,
    Floats,
    Model,
    Symbols,
)
from aiofinetune.local._engines.tokens import extensions, show_token, split_tokens
from aiofinetune.local._engines.written import FinishReason, Written, join

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work that yields after each of its steps, and returns a value at its end."""

# The number of token prefixes that the search for the most likely tokens examines before it returns what it has found.
_SEARCH_STEPS: Final = 100


def write(
    model: Model,
    prompt: str,
    rng: np.random.Generator,
    *,
    max_tokens: int = 16,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    logprobs: int | None = None,
    echo: bool = False,
) -> Iterator[Written | None]:
    """Continue `prompt` until the end of text, a stop or the limit, and yield each piece once it is final.

    None is yielded after work without a final piece, so that a caller can do something else, or stop, about every
    millisecond. Several threads may share a model.

    Args:
        model: The model that writes.
        prompt: The text to continue; only the end of a long prompt is used.
        rng: The random generator that draws the bytes.
        max_tokens: The largest number of tokens to write.
        temperature: The log probabilities are divided by it before a byte is drawn; 0 takes the most likely byte.
        top_p: Bytes are drawn only from the most likely ones, which together have this share of the probability.
        stop: Texts that end the completion; it contains only the text before them.
        logprobs: The number of the most likely tokens to list at each position; 0 for only the log probabilities of
            the tokens themselves; None for no log probabilities.
        echo: Whether to yield the prompt first.
    """
    text = prompt.encode(errors="replace")
    reader = _Reader.at_start(model).read(text[-PROMPT_BYTES:])
    if echo:
        yield (yield from _echo(model, text, logprobs))
    scorer = None if logprobs is None else _Scorer(reader, b"", logprobs)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for tokens, finish_reason in _write(
        reader, max_tokens, lambda chances: _draw(chances, temperature, top_p, rng), stop
    ):
        if tokens or finish_reason:
            shown = decoder.decode(b"".join(tokens), final=finish_reason is not None)
            yield (yield from _scored(shown, tokens, scorer, finish_reason))
        else:
            yield None


def new_rng(seed: int | None) -> np.random.Generator:
    """Return a random generator for a `seed`; None gives different draws each time."""
    return np.random.default_rng(seed)


# Any: the parameters of `write`, which has their types.
def complete(model: Model, prompt: str, *, seed: int | None = None, **parameters: Any) -> Written:
    """Write like `write`, and return the whole text.

    Args:
        model: The model that writes.
        prompt: The text to continue.
        seed: The seed of the draws; None gives different draws each time.
        parameters: The parameters of `write`.
    """
    return join(piece for piece in write(model, prompt, new_rng(seed), **parameters) if piece)


@attrs.frozen(eq=False)
class _Reader:
    """The state of a model within a text; reading more text returns a new reader."""

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
        """Return the log probability that each symbol comes next: (SYMBOLS,)."""
        context = self.ngram_sum / np.float32(math.sqrt(max(self.length, 1)))
        return next_log_probabilities(self.model.weights, self.window, context)


def _write(
    reader: _Reader, max_tokens: int, draw: Callable[[Floats], int], stop: Sequence[str]
) -> Iterator[tuple[list[bytes], FinishReason | None]]:
    """Draw one byte after another; after each, yield the tokens that have become final, and at the end the reason."""
    stops = [text.encode() for text in stop if text]
    unsettled = max(map(len, stops), default=1) - 1  # The last bytes may be the start of a stop.
    pending, token, n_tokens = b"", b"", 0
    while (symbol := draw(reader.predict())) != END_OF_TEXT:
        if n_tokens and symbol in extensions(token):
            token += bytes((symbol,))
        elif n_tokens < max_tokens:
            token, n_tokens = bytes((symbol,)), n_tokens + 1
        else:
            yield split_tokens(pending), "length"
            return
        pending += token[-1:]
        if ended := [text for text in stops if pending.endswith(text)]:
            yield split_tokens(pending[: -max(map(len, ended))]), "stop"
            return
        reader = reader.read(token[-1:])
        # Another byte can change only the last token.
        is_new = len(token) == 1
        settled = _first_tokens(pending, len(pending) - max(unsettled, 1)) if is_new else []
        pending = pending[sum(map(len, settled)) :]
        yield settled, None
    yield split_tokens(pending), "stop"


def _first_tokens(text: bytes, size: int) -> list[bytes]:
    """Return the tokens of `text` that end within its first `size` bytes."""
    if size <= 0:
        return []
    tokens = split_tokens(text)
    ends = itertools.accumulate(map(len, tokens))
    return [token for token, end in zip(tokens, ends, strict=True) if end <= size]


def _draw(log_probabilities: Floats, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(log_probabilities.argmax())
    with np.errstate(over="ignore"):  # Near 0, less likely bytes correctly become minus infinity.
        scaled = (log_probabilities - log_probabilities.max()).astype(np.float64) / temperature
    chances = np.exp(scaled)
    if top_p < 1:
        order = np.argsort(-chances, kind="stable")
        cumulative = np.cumsum(chances[order])
        count = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
        chances[order[count:]] = 0
    cumulative = np.cumsum(chances)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def _echo(model: Model, text: bytes, logprobs: int | None) -> Steps[Written]:
    """Return the prompt as if the model had written it."""
    shown, tokens = text.decode(errors="replace"), split_tokens(text)
    if logprobs is None or not tokens:
        return Written(
            shown, tuple(map(show_token, tokens)), None if logprobs is None else (), () if logprobs else None
        )
    # The start of a long prompt is not scored, because the model does not read it. The first token is never scored.
    count = max(1, len(_first_tokens(text, len(text) - PROMPT_BYTES)))
    unscored = b"".join(tokens[:count])
    scorer = _Scorer(_Reader.at_start(model).read(unscored), tokens[count - 1], logprobs)
    scored = yield from _scored(shown, tokens[count:], scorer, None)
    nothing = (None,) * count
    return attrs.evolve(
        scored,
        tokens=tuple(map(show_token, tokens)),
        token_logprobs=nothing + (scored.token_logprobs or ()),
        top_logprobs=nothing + (scored.top_logprobs or ()),
    )


@attrs.define(eq=False)
class _Scorer:
    """Scores the tokens of a text, one after the other."""

    reader: _Reader
    before: bytes
    count: int

    def score(self, token: bytes) -> Steps[tuple[float, dict[str, float]]]:
        """Return the log probability of the next token, and the most likely tokens at its position."""
        chance = _token_log_probability(self.reader, self.before, token)
        yield
        likeliest = yield from _likeliest_tokens(self.reader, self.before, self.count)
        self.reader, self.before = self.reader.read(token), token
        return chance, dict(likeliest)


def _scored(
    text: str, tokens: Sequence[bytes], scorer: _Scorer | None, finish_reason: FinishReason | None
) -> Steps[Written]:
    shown = tuple(map(show_token, tokens))
    if scorer is None:
        return Written(text, shown, finish_reason=finish_reason)
    chances, likeliest = list[float](), list[dict[str, float]]()
    for token in tokens:
        chance, listed = yield from scorer.score(token)
        chances.append(chance)
        likeliest.append(listed)
    return Written(text, shown, tuple(chances), tuple(likeliest), finish_reason)


def _token_log_probability(reader: _Reader, before: bytes, token: bytes) -> float:
    """Return the log probability that exactly `token` comes next, given that the token `before` it has ended."""
    total = -_log_end(reader.predict(), before)
    for index in range(len(token)):
        total += float(reader.predict()[token[index]])
        reader = reader.read(token[index : index + 1])
    return total + _log_end(reader.predict(), token)


def _likeliest_tokens(reader: _Reader, before: bytes, count: int) -> Steps[list[tuple[str, float]]]:
    """Return the `count` most likely next tokens with their log probabilities, by a best-first search over prefixes."""
    found: list[tuple[str, float]] = []
    # Negative log probability, prefix of a token, whether it is the whole token, reader before the prefix's last byte.
    queue = [(_log_end(reader.predict(), before), b"", False, reader)]
    steps = 0
    while queue and len(found) < count and steps < _SEARCH_STEPS:
        unlikelihood, beginning, is_whole, reader = heapq.heappop(queue)
        if is_whole:
            found.append((show_token(beginning), -unlikelihood))
            continue
        yield
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
    """Return the log probability that the next symbol does not extend `token`."""
    if not token:
        return 0.0
    longer = np.zeros(len(log_probabilities), np.bool_)
    longer[list(extensions(token))] = True
    return float(np.logaddexp.reduce(log_probabilities[~longer]))
