"""What ``POST /completions`` takes (reference: create completion), and answering it with the engine."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from aiofinetune import structuring
from aiofinetune._threads import in_thread
from aiofinetune.errors import RequestInvalid
from aiofinetune.local._engines.tokens import count_tokens
from aiofinetune.local._store.database import new_id, now

if TYPE_CHECKING:
    from aiofinetune.local._engines.model import Model
    from aiofinetune.local._engines.sampling import Written

T = TypeVar("T")

_LOADED_MODELS: Final = 4
"""Models kept in memory, those used last; the largest takes 7 MB."""

_TURN: Final = 0.005
"""Seconds that a completion has the thread for while others wait. A completion of one token takes about so long."""

_MAX_CHOICES: Final = 128
_MAX_TOKENS: Final = 2048
_MAX_STOPS: Final = 4
_MAX_LOGPROBS: Final = 5

_ONLY: Final[dict[str, object]] = {"frequency_penalty": 0, "logit_bias": {}, "presence_penalty": 0, "suffix": None}
"""Parameters that clients send with their defaults. Another value would ask for what is not done here."""

_IGNORED: Final = frozenset({"user"})


@attrs.frozen(kw_only=True)
class StreamOptions:
    """What a stream holds besides the text."""

    include_usage: bool = False


@attrs.frozen(kw_only=True)
class CompletionRequest:
    """The parameters of a completion, with one text made a list of one."""

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
        """Check what the types leave open."""
        for name, expected, fits in (
            ("prompt", f"1 to {_MAX_CHOICES} texts", 1 <= len(self.prompt) <= _MAX_CHOICES),
            ("max_tokens", f"a whole number from 0 to {_MAX_TOKENS}", 0 <= self.max_tokens <= _MAX_TOKENS),
            ("temperature", "a number from 0 to 2", 0 <= self.temperature <= 2),
            ("top_p", "a number from 0 to 1", 0 <= self.top_p <= 1),
            (
                "n",
                f"1 or above, and at most {_MAX_CHOICES} completions in all",
                1 <= self.n <= _MAX_CHOICES // max(len(self.prompt), 1),
            ),
            ("best_of", "the same as n: completions are not ranked here", self.best_of in (None, self.n)),
            ("stop", f"at most {_MAX_STOPS} texts, none empty", len(self.stop) <= _MAX_STOPS and all(self.stop)),
            ("seed", "a whole number, 0 or above", self.seed is None or 0 <= self.seed < 1 << 64),
            (
                "logprobs",
                f"a whole number from 0 to {_MAX_LOGPROBS}",
                self.logprobs is None or 0 <= self.logprobs <= _MAX_LOGPROBS,
            ),
            ("stream_options", "stream to be true with it", self.stream or self.stream_options is None),
        ):
            if not fits:
                raise RequestInvalid(name, f"expected {expected}")


def read_completion_request(value: dict[str, object]) -> CompletionRequest:
    """Read a client's JSON object.

    Raises:
        RequestInvalid: A parameter is unknown, wrong, or asks for what this server does not do.
    """
    evened: dict[str, object] = {}
    for name, given in value.items():
        if name in _ONLY:
            only = _ONLY[name]
            # True == 1 in Python, and not in JSON.
            if given is not None and (given != only or isinstance(given, bool)):
                raise RequestInvalid(name, f"only {structuring.dumps(only).decode()} is supported here")
        elif name in ("prompt", "stop") and isinstance(given, str):
            evened[name] = [given]
        elif name not in _IGNORED:
            evened[name] = given
    return structuring.read_request(evened, CompletionRequest)


@attrs.frozen
class Answer:
    """What the answer to one request says, in one piece or in the events of a stream."""

    asked: CompletionRequest
    id: str = attrs.field(factory=lambda: new_id("cmpl-"))
    created: int = attrs.field(factory=now)

    def whole(self, pieces: Iterable[tuple[int, Written]]) -> dict[str, object]:
        """Return the answer that all pieces make."""
        from aiofinetune.local._engines import sampling  # noqa: PLC0415  # NumPy takes long to import; by now it is there.

        by_choice: dict[int, list[Written]] = {}
        tokens = 0
        for index, piece in pieces:
            by_choice.setdefault(index, []).append(piece)
            tokens += len(piece.tokens)
        choices = [_choice(index, sampling.join(parts)) for index, parts in by_choice.items()]
        return self._object(choices) | {"usage": self.usage(tokens)}

    def part(self, index: int, piece: Written) -> dict[str, object]:
        """Return the event for one piece."""
        return self._object([_choice(index, piece)])

    def last_part(self, tokens: int) -> dict[str, object]:
        """Return the event that ends a stream which was asked to tell the tokens used."""
        return self._object([]) | {"usage": self.usage(tokens)}

    def usage(self, tokens: int) -> dict[str, int]:
        """Count the tokens, of which the pieces held so many."""
        prompt_tokens = sum(count_tokens(prompt.encode()) for prompt in self.asked.prompt)
        written = tokens - (prompt_tokens * self.asked.n if self.asked.echo else 0)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": written,
            "total_tokens": prompt_tokens + written,
        }

    def _object(self, choices: list[dict[str, object]]) -> dict[str, object]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.asked.model,
            "choices": choices,
        }


def _choice(index: int, written: Written) -> dict[str, object]:
    logprobs: Mapping[str, object] | None = None
    if written.token_logprobs is not None:
        logprobs = {
            "tokens": written.tokens,
            "token_logprobs": written.token_logprobs,
            "top_logprobs": written.top_logprobs,
        }
    return {"text": written.text, "index": index, "logprobs": logprobs, "finish_reason": written.finish_reason}


class Completer:
    """Writes completions on a thread of its own, so that training and other requests go on meanwhile.

    Completions take turns on the thread, so that none waits until another is whole; one that nobody waits for, because
    its client went away or the server ends, is given up at the end of its turn.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aiofinetune-completions")
        self._door = asyncio.Lock()
        self._load = functools.lru_cache(_LOADED_MODELS)(_load)

    async def write(self, asked: CompletionRequest, weights: Path | None) -> AsyncGenerator[list[tuple[int, Written]]]:
        """Give what is written of the choices, as it is written, each piece with the number of its choice.

        Args:
            asked: What the client asked for.
            weights: Where a fine-tuned model's weights are; None for a base model.
        """
        steps = self._steps(asked, weights)
        pieces, is_over = await in_thread(self._thread, lambda: _take_turn(steps))
        yield pieces
        while not is_over:
            # One at a time of those that had a turn waits for the thread, so that a new one is next but one at most.
            async with self._door:
                pieces, is_over = await in_thread(self._thread, lambda: _take_turn(steps))
            yield pieces

    def close(self) -> None:
        """End the thread. Nothing may wait for it any more."""
        self._thread.shutdown()

    def _steps(self, asked: CompletionRequest, weights: Path | None) -> Iterator[tuple[int, Written] | None]:
        """Write all choices; yield the pieces, and None between them."""
        # Imported here, on the thread: NumPy takes long enough to import for the event loop to notice.
        from aiofinetune.local._engines import sampling  # noqa: PLC0415

        model = self._load(asked.model, weights)
        indices = itertools.count()
        for prompt in asked.prompt:
            rng = sampling.new_rng(asked.seed)
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
                    yield None if piece is None else (index, piece)


def _take_turn(steps: Iterator[T | None]) -> tuple[list[T], bool]:
    """Take steps for the time of a turn; return what they gave, and whether those were all."""
    end, gained = time.monotonic() + _TURN, list[T]()
    for step in steps:
        if step is not None:
            gained.append(step)
        if time.monotonic() > end:
            return gained, False
    return gained, True


def _load(name: str, weights: Path | None) -> Model:
    from aiofinetune.local._engines import model  # noqa: PLC0415  # Likewise.

    return model.load_base(name) if weights is None else model.load(weights)
