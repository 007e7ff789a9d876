"""Completions: what a model makes of a prompt. Imported when they are first asked for, for few programs do."""

from __future__ import annotations

import attrs


@attrs.frozen
class CompletionLogprobs:
    """Log probabilities of a completion's tokens (reference: the completion object)."""

    tokens: tuple[str, ...] = ()
    token_logprobs: tuple[float | None, ...] = ()
    """Natural logarithms."""


@attrs.frozen
class CompletionChoice:
    """One completion of a prompt."""

    text: str
    index: int = 0
    finish_reason: str | None = None
    """``"stop"`` at the model's end of text or a stop sequence, ``"length"`` at `max_tokens`."""
    logprobs: CompletionLogprobs | None = None


@attrs.frozen
class CompletionUsage:
    """Tokens that a completion took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


@attrs.frozen
class Completion:
    """What a model makes of a prompt (reference: the completion object)."""

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
