"""Examples as token ids: by the model's own tokenizer, and its own template for conversations.

A tokenizer without a template gets the template of the built-in models (`aiofinetune.data._chat`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import attrs

from aiofinetune.data._chat import Message, join
from aiofinetune.data._examples import Example
from aiofinetune.local._engines.training_files import TrainingError


@attrs.frozen
class Encoded:
    """An example as token ids; `completion` ends with a token that ends the text."""

    prompt: Sequence[int]
    completion: Sequence[int]

    @property
    def length(self) -> int:
        """The number of tokens."""
        return len(self.prompt) + len(self.completion)

    def weights(self, prompt_weight: float) -> list[float]:
        """Return the weight of each token but the first, which the model does not predict."""
        return [prompt_weight] * (len(self.prompt) - 1) + [1.0] * len(self.completion)


@attrs.frozen(eq=False)
class Encoder:
    """Turns texts and conversations into token ids.

    Args:
        tokenizer: A tokenizer of transformers.
        ends: The tokens that end a text; the first one is added where a text has none.
    """

    tokenizer: Any  # Any: transformers is an extra.
    ends: Sequence[int]
    _start: Sequence[int] = attrs.field(init=False)
    """The tokens before each text."""

    def __attrs_post_init__(self) -> None:
        """Find the tokens that the tokenizer puts before a text."""
        around = list(self.tokenizer("")["input_ids"])
        object.__setattr__(self, "_start", around[:1] if self.tokenizer.bos_token_id in around else [])

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a template for conversations."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def prompt(self, text: str) -> list[int]:
        """Return a prompt to continue. It has at least one token, because a model continues tokens."""
        return [*self._start, *self._ids(text)] or [self.ends[0]]

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt that asks for the assistant's next message.

        Raises:
            ValueError: The template does not allow such messages.
        """
        if not self.has_template:
            return self.prompt(join(tuple(messages)))
        return self._ids(self._templated(messages, asks=True))

    def example(self, example: Example) -> Encoded:
        """Encode an example.

        Raises:
            ValueError: The template does not allow such messages.
        """
        if example.messages and self.has_template:
            return self._conversation(example.messages)
        prompt = self.prompt(example.prompt)
        return Encoded(prompt, [*self._continuation(example.prompt, example.completion), self.ends[0]])

    def completions(self, example: Example, completions: Sequence[str]) -> list[Encoded]:
        """Encode an example with each of some other completions."""
        if not (example.messages and self.has_template):
            return [self.example(Example(example.prompt, completion)) for completion in completions]
        *before, last = example.messages
        return [
            # A conversation's completion has a space before the words of the assistant.
            self._conversation((*before, attrs.evolve(last, content=completion.removeprefix(" "))))
            for completion in completions
        ]

    def _conversation(self, messages: Sequence[Message]) -> Encoded:
        """Encode a conversation, whose last message is the completion."""
        asked, whole = self._templated(messages[:-1], asks=True), self._templated(messages, asks=False)
        # Some templates end a question in another way than they go on with an answer.
        answer = whole.removeprefix(asked) if whole.startswith(asked) else messages[-1].content
        completion = self._continuation(asked, answer)
        # What follows the end of the answer, such as a line break, is never written.
        ends = [place for place, token in enumerate(completion) if token in self.ends]
        if ends:
            return Encoded(self._ids(asked), completion[: ends[0] + 1])
        return Encoded(self._ids(asked), [*completion, self.ends[0]])

    def _continuation(self, before: str, text: str) -> list[int]:
        """Return the tokens of a text as they are after another, if the other's tokens stay the same."""
        first, both = self._ids(before), self._ids(before + text)
        is_same = len(both) > len(first) and both[: len(first)] == first
        return both[len(first) :] if is_same else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _templated(self, messages: Sequence[Message], *, asks: bool) -> str:
        # Templates know "system", which was the name of "developer".
        conversation = [
            {"role": "system" if message.role == "developer" else message.role, "content": message.content}
            for message in messages
        ]
        try:
            text: str = self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=asks)
        except Exception as error:  # A template is a program: it can raise anything.
            raise ValueError(f"the model's template refuses this conversation: {error}") from error
        return text


def encode_file(
    encoder: Encoder, examples: Sequence[Example], role: str, max_length: int, longest: int = 0
) -> list[Encoded]:
    """Encode the examples of a file, each with at most `max_length` tokens.

    A longer prompt is cut at its start, to a length that is the same for all examples: if the room that a completion
    leaves decided, the length of the prompt would reveal the completion.

    Args:
        encoder: The encoder.
        examples: The examples.
        role: What the file is for: ``"training"`` or ``"validation"``.
        max_length: The most tokens of an example.
        longest: The length of the longest completion in other files of the job.

    Raises:
        TrainingError: A completion is too long, or a conversation does not fit the model's template.
    """
    encoded = []
    for number, example in enumerate(examples, start=1):
        try:
            encoded.append(_short_enough(encoder.example(example), max_length))
        except ValueError as error:
            raise TrainingError(f"The {role} file, example {number}: {error}.", f"{role}_file") from error
    room = max_length - max(longest, *(len(each.completion) for each in encoded))
    return [attrs.evolve(each, prompt=cut(each.prompt, room)) for each in encoded]


def _short_enough(encoded: Encoded, max_length: int) -> Encoded:
    length = len(encoded.completion)
    if length >= max_length:
        raise ValueError(f"the completion has {length:,} tokens; at most {max_length - 1:,} are expected")
    return encoded


def cut(prompt: Sequence[int], room: int) -> Sequence[int]:
    """Return the end of a prompt that is too long, after its first token, which may be the start of the text."""
    if len(prompt) <= room:
        return prompt
    return prompt[-1:] if room < 2 else [prompt[0], *prompt[len(prompt) - room + 1 :]]


def micro_batch(batch_size: int, longest: int, most: int) -> int:
    """Return the examples to compute at once: the largest divisor of `batch_size` with at most `most` tokens in all."""
    fitting = (size for size in range(batch_size, 0, -1) if batch_size % size == 0 and size * longest <= most)
    return next(fitting, 1)


def end_tokens(tokenizer: Any, configured: int | Collection[int] | None) -> list[int]:  # Any: as above
    """Return the tokens that end a text, the tokenizer's own first.

    Args:
        tokenizer: A tokenizer of transformers.
        configured: Those of the model's generation_config.

    Raises:
        ValueError: There is none.
    """
    others = [configured] if isinstance(configured, int) else configured or []
    found = [end for end in dict.fromkeys([tokenizer.eos_token_id, *others]) if end is not None]
    if not found:
        raise ValueError("the tokenizer has no token that ends a text (eos_token)")
    return found
