"""Completions by an open model and its adapters, one token at a time."""

# pyright: reportMissingImports=false
# The extra is not in every environment in which this is checked.

from __future__ import annotations

import collections
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import torch
import transformers
from torch.nn import functional

from aiofinetune.data._chat import Message
from aiofinetune.local._engines.lora.adapters import (
    Loaded,
    add_adapter,
    is_out_of_memory,
    load,
    read_adapter,
    read_on,
    with_adapter,
)
from aiofinetune.local._engines.lora.examples import cut
from aiofinetune.local._engines.lora.streams import Scored, Text
from aiofinetune.local._engines.training_files import TrainingError
from aiofinetune.local._engines.written import FinishReason, Unable, Written
from aiofinetune.local._open_models import OpenModel

# Any: none of the libraries is typed.

_LOADED_ADAPTERS: Final = 8
"""The number of adapters that stay in memory besides those in use."""


class Sampler:
    """A base model and its adapters in memory, with which any number of texts are written in turn.

    Args:
        open_model: The base model, as `OpenModel.as_json` returned it.

    Raises:
        TrainingError: The model cannot be loaded.
    """

    def __init__(self, open_model: Mapping[str, Any]) -> None:
        self._base = load(OpenModel.of_json(open_model))
        self._adapters = _Adapters(self._base)

    def write(self, asked: Mapping[str, Any], weights: str | None) -> Iterator[tuple[int, Written] | None]:
        """Yield the pieces of all choices with the index of each, and None after work without a final piece.

        Args:
            asked: The parameters of `CompletionRequest`; and "messages", if a chat is asked for.
            weights: The path of an adapter; None for the base model.

        Raises:
            Unable: The request cannot be answered.
        """
        try:
            with self._adapters.used(weights) as name:
                for place, prompt in enumerate(self._prompts(asked)):
                    seed = secrets.randbits(63) if asked["seed"] is None else asked["seed"] % (1 << 63)
                    generator = torch.Generator(self._base.device).manual_seed(seed)
                    for number in range(asked["n"]):
                        tokens = len(prompt) if number == 0 else 0
                        for piece in self._choice(prompt, asked, generator, name):
                            if piece is None:
                                yield None
                            else:
                                yield place * asked["n"] + number, attrs.evolve(piece, prompt_tokens=tokens)
                                tokens = 0
        except TrainingError as error:
            raise Unable(str(error), 500) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise Unable("The model's process has not enough memory for this request; ask for less", 503) from error

    def _prompts(self, asked: Mapping[str, Any]) -> list[list[int]]:
        encoder = self._base.encoder
        if asked["messages"] is None:
            return [encoder.prompt(prompt) for prompt in asked["prompt"]]
        try:
            return [encoder.chat_prompt([Message(*message) for message in asked["messages"]])]
        except ValueError as error:
            raise Unable(str(error), 400, "messages") from error

    def _choice(
        self, prompt: Sequence[int], asked: Mapping[str, Any], generator: torch.Generator, adapter: str | None
    ) -> Iterator[Written | None]:
        """Write one choice; in each turn, the model reads the prompt or a token."""
        limit, wanted = self._base.max_length, asked["max_tokens"]
        # A long prompt loses its start, so that there is room for what is asked for, but at most half the length.
        read = cut(prompt, max(1, limit - min(wanted, limit // 2)))
        ids = torch.tensor([read], device=self._base.device)
        logits, cache = self._adapters.read_on(adapter, ids)
        if asked["echo"]:
            yield self._echo(prompt, read, logits[0], asked)
        text = Text(self._decode, read, asked["stop"], asked["logprobs"] is not None, bool(asked["logprobs"]))
        reason: FinishReason = "length"
        for _ in range(min(wanted, limit - len(read))):
            chances = functional.log_softmax(logits[0, -1], -1)
            token = _draw(logits[0, -1], asked["temperature"], asked["top_p"], generator)
            if token in self._base.encoder.ends:
                reason = "stop"
                break
            piece = text.add(token, self._scored(token, chances, asked["logprobs"]))
            yield piece
            if piece and piece.finish_reason:
                return
            logits, cache = self._adapters.read_on(adapter, torch.tensor([[token]], device=ids.device), cache)
        else:
            # The text may be complete: one more token than wanted decides.
            if _draw(logits[0, -1], asked["temperature"], asked["top_p"], generator) in self._base.encoder.ends:
                reason = "stop"
        yield text.end(reason)

    def _scored(self, token: int, chances: torch.Tensor, logprobs: int | None) -> Scored:
        if logprobs is None:
            return Scored(self._show(token))
        best = chances.topk(logprobs) if logprobs else None
        listed = zip(best.values.tolist(), best.indices.tolist(), strict=True) if best else ()
        # The likeliest last, so that it stays if another one looks the same.
        likeliest = {self._show(other): chance for chance, other in reversed(list(listed))}
        return Scored(self._show(token), float(chances[token]), dict(reversed(likeliest.items())) or None)

    def _echo(
        self, prompt: Sequence[int], read: Sequence[int], logits: torch.Tensor, asked: Mapping[str, Any]
    ) -> Written:
        """Return the prompt as if it was written. What the model did not read, and the first token, is not scored."""
        unscored = [Scored(self._show(token)) for token in prompt[: len(prompt) - len(read) + 1]]
        chances = functional.log_softmax(logits[:-1], -1)
        rest = [self._scored(token, row, asked["logprobs"]) for token, row in zip(read[1:], chances, strict=True)]
        tokens = [*unscored, *rest]
        return Written(
            text=self._decode(prompt),
            tokens=tuple(scored.shown for scored in tokens),
            token_logprobs=None if asked["logprobs"] is None else tuple(scored.chance for scored in tokens),
            top_logprobs=tuple(scored.likeliest for scored in tokens) if asked["logprobs"] else None,
        )

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._base.encoder.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _show(self, token: int) -> str:
        tokenizer = self._base.encoder.tokenizer
        shown: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        # Several tokens that are not a whole character would look the same.
        return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in shown else shown


def _draw(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits - logits.max()).double() / temperature
    if top_p < 1:
        scaled = transformers.TopPLogitsWarper(top_p)(None, scaled[None])[0]
    return int(torch.multinomial(functional.softmax(scaled, -1), 1, generator=generator))


class _Adapters:
    """The adapters of a base model in memory, of which one at a time changes what the model computes."""

    def __init__(self, base: Loaded) -> None:
        self._base = base
        self._network = base.network.eval()
        self._names: collections.OrderedDict[str, str] = collections.OrderedDict()
        """The names of the adapters by their paths, the most recently used ones last."""
        self._users: collections.Counter[str] = collections.Counter()
        self._made = 0
        self._active: str | None = None

    def used(self, path: str | None) -> _Use:
        """Return a context manager that keeps an adapter in memory, and yields its name."""
        return _Use(self, path)

    def acquire(self, path: str) -> str:
        """Load an adapter if needed, and return its name."""
        if path not in self._names:
            self._load(path)
        self._names.move_to_end(path)
        self._users[path] += 1
        return self._names[path]

    def release(self, path: str) -> None:
        """Forget one use of an adapter, and adapters that were not used for long."""
        self._users[path] -= 1
        unused = [path for path in self._names if not self._users[path]]
        for old in unused[: max(0, len(self._names) - _LOADED_ADAPTERS)]:
            self._activate(None)
            self._network.delete_adapter(self._names.pop(old))

    def read_on(self, name: str | None, ids: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        """Let the model read more tokens with an adapter, or without one."""
        self._activate(name)
        with torch.inference_mode():
            return read_on(self._network, ids, cache)

    def _load(self, path: str) -> None:
        adapter, self._made = read_adapter(self._base, Path(path)), self._made + 1
        name = f"adapter{self._made}"
        self._activate(None)
        if self._network is self._base.network:
            self._network = with_adapter(self._base, adapter, name)
        else:
            add_adapter(self._base, self._network, adapter, name)
        self._network.eval()
        self._names[path] = name
        self._active = ""  # Whichever peft has made active.

    def _activate(self, name: str | None) -> None:
        if name == self._active or self._network is self._base.network:
            return
        if name is None:
            self._network.base_model.disable_adapter_layers()
        else:
            self._network.base_model.enable_adapter_layers()
            self._network.set_adapter(name)
        self._active = name


class _Use:
    def __init__(self, adapters: _Adapters, path: str | None) -> None:
        self._adapters = adapters
        self._path = path

    def __enter__(self) -> str | None:
        return None if self._path is None else self._adapters.acquire(self._path)

    def __exit__(self, *_error: object) -> None:
        if self._path is not None:
            self._adapters.release(self._path)
