"""Answers of a model to prompts, beside the completions that were expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from aiofinetune.results._metrics import accuracy, weighted_f1


@attrs.frozen
class Question:
    """A prompt, and the completion that is expected; None if none is."""

    prompt: str
    completion: str | None = None
    messages: Sequence[Mapping[str, object]] | None = None
    """What a chat model is asked; None asks it the prompt, as the user's message."""

    def is_right(self, answer: str) -> bool | None:
        """Return whether an answer is the completion, apart from white space around both; None if none is expected."""
        return None if self.completion is None else answer.strip() == self.completion.strip()


@attrs.frozen
class Score:
    """How many answers are right."""

    right: int
    count: int
    """The number of answers to prompts with a completion."""
    accuracy: float
    weighted_f1: float | None
    """The mean F1 of the classes; None if most completions differ, so that they are no classes."""

    def __str__(self) -> str:
        f1 = "" if self.weighted_f1 is None else f", weighted F1 {self.weighted_f1:.3f}"
        return f"accuracy {self.accuracy:.3f} ({self.right} of {self.count}){f1}"


@attrs.frozen
class Answers:
    """A model's answers, in the order of the questions."""

    model: str
    texts: Sequence[str]
    cut: int = 0
    """The number of answers that ended because they were too long."""

    def score(self, questions: Sequence[Question]) -> Score | None:
        """Return how many answers are right; None if no question has a completion."""
        rows = zip(questions, self.texts, strict=True)
        pairs = [(it.completion.strip(), text.strip()) for it, text in rows if it.completion is not None]
        if not pairs:
            return None
        truth, answers = map(list, zip(*pairs, strict=True))
        are_classes = 2 * len(set(truth)) <= len(truth)
        right = sum(question.is_right(text) is True for question, text in zip(questions, self.texts, strict=True))
        return Score(right, len(pairs), accuracy(truth, answers), weighted_f1(truth, answers) if are_classes else None)
