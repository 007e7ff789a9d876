"""The parameters of ``POST /completions`` (reference: create completion), and the answers of the engine."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import attrs

from aiofinetune import structuring
from aiofinetune._threads import in_thread
from aiofinetune.data._chat import Message
from aiofinetune.errors import RequestInvalid
from aiofinetune.local._engines.tokens import count_tokens
from aiofinetune.local._engines.written import Written, join
from aiofinetune.local._store.database import new_id, now
from aiofinetune.local._store.models import Origin

if TYPE_CHECKING:
    from aiofinetune.local._engines.model import Model

T = TypeVar("T")

_LOADED_MODELS: Final = 4
"""The number of models that stay in memory, the most recently used ones; the largest takes 7 MB."""

_TURN: Final = 0.005
"""Seconds that a completion may use the thread while others wait, about the time to complete one token."""

_MAX_CHOICES: Final = 128
_MAX_TOKENS: Final = 2048
_MAX_STOPS: Final = 4
_MAX_LOGPROBS: Final = 5

_ONLY: Final[dict[str, object]] = {"frequency_penalty": 0, "logit_bias": {}, "presence_penalty": 0, "suffix": None}
"""Parameters that clients send with their default values. This server does not support any other values."""

_IGNORED: Final = frozenset({"user"})


@attrs.frozen(kw_only=True)
class StreamOptions:
    """What a stream contains besides the text."""

    include_usage: bool = False


@attrs.frozen(kw_only=True)
class CompletionRequest:
    """The parameters of a completion; a single prompt or stop is read as a list of one."""

    model: str
    prompt: tuple[str, ...] = ("",)
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    n: int = 1
    best_of: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None

    def __attrs_post_init__(self) -> None:
        """Check what the types do not."""
        for name, expected, fits in (
            ("prompt", f"1 to {_MAX_CHOICES} texts", 1 <= len(self.prompt) <= _MAX_CHOICES),
            ("max_tokens", f"a whole number from 0 to {_MAX_TOKENS}", 0 <= self.max_tokens <= _MAX_TOKENS),
            ("temperature", "a number from 0 to 2", 0 <= self.temperature <= 2),
            ("top_p", "a number from 0 to 1", 0 <= self.top_p <= 1),
            (
                "n",
                f"1 or above, and at most {_MAX_CHOICES} completions in total",
                1 <= self.n <= _MAX_CHOICES // max(len(self.prompt), 1),
            ),
            (
                "best_of",
                "the same value as n, because this server does not rank completions",
                self.best_of in (None, self.n),
            ),
            ("stop", f"at most {_MAX_STOPS} texts, none empty", len(self.stop) <= _MAX_STOPS and all(self.stop)),
            ("seed", "a whole number, 0 or above", self.seed is None or 0 <= self.seed < 1 << 64),
            (
                "logprobs",
                f"a whole number from 0 to {_MAX_LOGPROBS}",
                self.logprobs is None or 0 <= self.logprobs <= _MAX_LOGPROBS,
            ),
            ("stream_options", "stream to be true", self.stream or self.stream_options is None),
        ):
            if not fits:
                raise RequestInvalid(name, f"expected {expected}")


@attrs.frozen(kw_only=True)
class ChatRequest(CompletionRequest):
    """The parameters of a chat. Its prompt is the messages in the template of the built-in models."""

    messages: tuple[Message, ...]


def read_completion_request(value: dict[str, object]) -> CompletionRequest:
    """Read a client's JSON object.

    Raises:
        RequestInvalid: A parameter is unknown or invalid, or this server does not support its value.
    """
    uniform: dict[str, object] = {}
    for name, given in value.items():
        if name in _ONLY:
            only = _ONLY[name]
            # True == 1 in Python, but not in JSON.
            if given is not None and (given != only or isinstance(given, bool)):
                raise RequestInvalid(name, f"this server supports only {structuring.dumps(only).decode()}")
        elif name in ("prompt", "stop") and isinstance(given, str):
            uniform[name] = [given]
        elif name not in _IGNORED:
            uniform[name] = given
    return structuring.read_request(uniform, CompletionRequest)


@attrs.frozen
class Answer:
    """The answer to one request, as a whole or as the events of a stream."""

    asked: CompletionRequest
    id: str = attrs.field(factory=lambda: new_id("cmpl-"))
    created: int = attrs.field(factory=now)

    def whole(self, pieces: Iterable[tuple[int, Written]]) -> dict[str, object]:
        """Return the whole answer that consists of `pieces`."""
        by_choice: dict[int, list[Written]] = {}
        tokens = prompt_tokens = 0
        for index, piece in pieces:
            by_choice.setdefault(index, []).append(piece)
            tokens += len(piece.tokens)
            prompt_tokens += piece.prompt_tokens
        choices = [self._choice(index, join(parts)) for index, parts in by_choice.items()]
        return self._object(choices, is_part=False) | {"usage": self.usage(tokens, prompt_tokens)}

    def part(self, index: int, piece: Written) -> dict[str, object]:
        """Return the event for one piece."""
        return self._object([self._part_of_choice(index, piece)], is_part=True)

    def last_part(self, tokens: int, prompt_tokens: int) -> dict[str, object]:
        """Return the last event of a stream whose client asked for the usage."""
        return self._object([], is_part=True) | {"usage": self.usage(tokens, prompt_tokens)}

    def usage(self, tokens: int, prompt_tokens: int) -> dict[str, int]:
        """Return the usage for an answer whose pieces, and whose prompts, have these numbers of tokens."""
        written = tokens - (prompt_tokens * self.asked.n if self.asked.echo else 0)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": written,
            "total_tokens": prompt_tokens + written,
        }

    def _object(self, choices: list[dict[str, object]], *, is_part: bool) -> dict[str, object]:
        return {
            "id": self.id,
            "object": self._kind(is_part=is_part),
            "created": self.created,
            "model": self.asked.model,
            "choices": choices,
        }

    # What a chat's answer has in another form

    def _kind(self, *, is_part: bool) -> str:  # noqa: ARG002  # a chat's parts are objects of another kind
        return "text_completion"

    def _choice(self, index: int, written: Written) -> dict[str, object]:
        """Return a whole choice."""
        logprobs: Mapping[str, object] | None = None
        if written.token_logprobs is not None:
            logprobs = {
                "tokens": written.tokens,
                "token_logprobs": written.token_logprobs,
                "top_logprobs": written.top_logprobs,
            }
        return {"text": written.text, "index": index, "logprobs": logprobs, "finish_reason": written.finish_reason}

    def _part_of_choice(self, index: int, written: Written) -> dict[str, object]:
        """Return what a stream shows of a choice with its next piece."""
        return self._choice(index, written)


class Completer(Protocol):
    """Writes completions."""

    def write(self, asked: CompletionRequest, origin: Origin) -> AsyncGenerator[list[tuple[int, Written]]]:
        """Yield the pieces of the choices as they are written, each with the index of its choice.

        Args:
            asked: The client's request.
            origin: Where the model comes from.
        """
        ...  # Without this, Pyright takes the method for one that returns None.

    async def close(self) -> None:
        """Free its resources. The server calls this when no request uses it any more."""


class LocalCompleter:
    """Writes completions with the built-in models, on a thread of its own, so that all else continues in the meantime.

    Completions take turns on the thread, so that none waits until another is complete. A completion is abandoned at the
    end of its turn if its client has disconnected or the server closes.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aiofinetune-completions")
        self._door = asyncio.Lock()
        self._load = functools.lru_cache(_LOADED_MODELS)(_load)

    async def write(self, asked: CompletionRequest, origin: Origin) -> AsyncGenerator[list[tuple[int, Written]]]:
        """Yield the pieces as they are written (see `Completer`)."""
        steps = self._steps(asked, origin.weights)
        pieces, is_over = await in_thread(self._thread, lambda: _take_turn(steps))
        yield pieces
        while not is_over:
            # Only one completion that has had a turn waits for the thread at once, so a new one waits for two at most.
            async with self._door:
                pieces, is_over = await in_thread(self._thread, lambda: _take_turn(steps))
            yield pieces

    async def close(self) -> None:
        """End the thread (see `Completer`)."""
        await asyncio.to_thread(self._thread.shutdown)

    def _steps(self, asked: CompletionRequest, weights: Path | None) -> Iterator[tuple[int, Written] | None]:
        """Write all choices; yield the pieces, and None between them."""
        # Imported here, on the thread: NumPy takes long enough to import for the event loop to notice.
        from aiofinetune.local._engines import sampling  # noqa: PLC0415

        model = self._load(asked.model, weights)
        indices = itertools.count()
        for prompt in asked.prompt:
            rng, prompt_tokens = sampling.new_rng(asked.seed), count_tokens(prompt.encode())
            for index in itertools.islice(indices, asked.n):
                for piece in sampling.write(
                    model,
                    prompt,
                    rng,
                    max_tokens=asked.max_tokens,
                    temperature=asked.temperature,
                    top_p=asked.top_p,
                    stop=asked.stop,
                    logprobs=asked.logprobs,
                    echo=asked.echo,
                ):
                    if piece is None:
                        yield None
                    else:
                        yield index, attrs.evolve(piece, prompt_tokens=prompt_tokens)
                        prompt_tokens = 0


def _take_turn(steps: Iterator[T | None]) -> tuple[list[T], bool]:
    """Take steps for the time of a turn; return the values they yield, and whether they were the last."""
    end, values = time.monotonic() + _TURN, list[T]()
    for step in steps:
        if step is not None:
            values.append(step)
        if time.monotonic() > end:
            return values, False
    return values, True


def _load(name: str, weights: Path | None) -> Model:
    from aiofinetune.local._engines import model  # noqa: PLC0415  # as above

    return model.load_base(name) if weights is None else model.load(weights)
