"""What ``POST /completions`` takes (reference: create completion), and answering it with the engine."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from aiofinetune import structuring
from aiofinetune.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionUsage
from aiofinetune.errors import RequestInvalid
from aiofinetune.local.store import new_id, now
from aiofinetune.threads import in_thread

if TYPE_CHECKING:
    from aiofinetune.local import sampling
    from aiofinetune.local.model import Model

_LOADED_MODELS: Final = 4
"""Models kept in memory, those used last; the largest takes 7 MB."""

_MOST_PROMPTS: Final = 128
_MOST_TOKENS: Final = 2048
_MOST_STOPS: Final = 4
_MOST_LOGPROBS: Final = 5

_ONLY: Final[dict[str, object]] = {
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "n": 1,
    "presence_penalty": 0,
    "stream": False,
    "top_p": 1,
}
"""Parameters that clients send with their defaults. Another value would ask for what is not done here."""

_IGNORED: Final = frozenset({"user"})


@attrs.frozen(kw_only=True)
class CompletionRequest:
    """The parameters of a completion, with one text made a list of one."""

    model: str
    prompt: tuple[str, ...] = ("",)
    max_tokens: int = 16
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None

    def __attrs_post_init__(self) -> None:
        """Check what the types leave open."""
        for name, expected, fits in (
            ("prompt", f"1 to {_MOST_PROMPTS} texts", 1 <= len(self.prompt) <= _MOST_PROMPTS),
            ("max_tokens", f"a whole number from 0 to {_MOST_TOKENS}", 0 <= self.max_tokens <= _MOST_TOKENS),
            ("temperature", "a number from 0 to 2", 0 <= self.temperature <= 2),
            ("stop", f"at most {_MOST_STOPS} texts, none empty", len(self.stop) <= _MOST_STOPS and all(self.stop)),
            ("seed", "a whole number, 0 or above", self.seed is None or 0 <= self.seed < 1 << 64),
            (
                "logprobs",
                f"a whole number from 0 to {_MOST_LOGPROBS}",
                self.logprobs is None or 0 <= self.logprobs <= _MOST_LOGPROBS,
            ),
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
            if given is not None and (given != only or isinstance(given, bool) != isinstance(only, bool)):
                raise RequestInvalid(name, f"only {structuring.dumps(only).decode()} is supported here")
        elif name in ("prompt", "stop") and isinstance(given, str):
            evened[name] = [given]
        elif name not in _IGNORED and not (name == "suffix" and given is None):
            evened[name] = given
    return structuring.read_request(evened, CompletionRequest)


class Completer:
    """Answers completions on a thread of its own, so that training and other requests go on meanwhile."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aiofinetune-completions")
        self._load = functools.lru_cache(_LOADED_MODELS)(_load)

    async def complete(self, asked: CompletionRequest, weights: Path | None) -> Completion:
        """Complete each prompt.

        Args:
            asked: What the client asked for.
            weights: Where a fine-tuned model's weights are; None for a base model.
        """
        return await in_thread(self._thread, lambda: self._complete(asked, weights))

    def close(self) -> None:
        """End the thread. Nothing may wait for it any more."""
        self._thread.shutdown()

    def _complete(self, asked: CompletionRequest, weights: Path | None) -> Completion:
        # Imported here, on the thread: NumPy takes long enough to import for the event loop to notice.
        from aiofinetune.local import sampling, tokens  # noqa: PLC0415

        model = self._load(asked.model, weights)
        written = [
            sampling.complete(
                model,
                prompt,
                max_tokens=asked.max_tokens,
                temperature=asked.temperature,
                stop=asked.stop,
                seed=asked.seed,
                logprobs=asked.logprobs,
            )
            for prompt in asked.prompt
        ]
        prompt_tokens = sum(tokens.count_tokens(prompt.encode()) for prompt in asked.prompt)
        completion_tokens = sum(len(text.tokens) for text in written)
        return Completion(
            id=new_id("cmpl-"),
            choices=tuple(_choice(index, text) for index, text in enumerate(written)),
            model=asked.model,
            created=now(),
            usage=CompletionUsage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens),
        )


def _choice(index: int, written: sampling.Completion) -> CompletionChoice:
    chances = written.token_logprobs
    logprobs = None if chances is None else CompletionLogprobs(written.tokens, chances)
    return CompletionChoice(written.text, index, written.finish_reason, logprobs)


def _load(name: str, weights: Path | None) -> Model:
    from aiofinetune.local import model  # noqa: PLC0415  # Likewise.

    return model.load_base(name) if weights is None else model.load(weights)
