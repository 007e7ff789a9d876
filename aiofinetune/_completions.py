"""The completion objects. Imported when first used, because few programs need them."""

from __future__ import annotations

import attrs


@attrs.frozen
class CompletionLogprobs:
    """The log probabilities of a completion's tokens (reference: the completion object)."""

    tokens: tuple[str, ...] = ()
    token_logprobs: tuple[float | None, ...] = ()
    """Natural logarithms."""


@attrs.frozen
class CompletionChoice:
    """One completion of a prompt."""

    text: str
    index: int = 0
    finish_reason: str | None = None
    """``"stop"`` after the model's end of text or a stop sequence, ``"length"`` after `max_tokens` tokens."""
    logprobs: CompletionLogprobs | None = None


@attrs.frozen
class CompletionUsage:
    """The number of tokens that a completion used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


@attrs.frozen
class ChatMessage:
    """What a model has said."""

    content: str | None = None
    """None if it called a tool instead."""
    role: str = "assistant"


@attrs.frozen
class ChatChoice:
    """One answer to a conversation."""

    message: ChatMessage
    index: int = 0
    finish_reason: str | None = None
    """As in `CompletionChoice`."""


@attrs.frozen
class ChatCompletion:
    """A model's answers to a conversation (OpenAI: the chat completion object)."""

    id: str
    choices: tuple[ChatChoice, ...]
    model: str = ""
    created: int = 0
    usage: CompletionUsage | None = None
    object: str = "chat.completion"


@attrs.frozen
class Completion:
    """A model's completions of one or more prompts (reference: the completion object)."""

    id: str
    choices: tuple[CompletionChoice, ...]
    model: str = ""
    created: int = 0
    usage: CompletionUsage | None = None
    object: str = "text_completion"

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text if self.choices else ""
