"""The rules that the core of a batch keeps, and what decides in a model that drives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

from aiofinetune.batch._core import Settings
from aiofinetune.errors import FineTuneError

T = TypeVar("T")

RULES: Final = (
    "an intent is on the disk before a create leaves",
    "an intent is withdrawn only after a refusal or proof",
    "an accepted attempt is never sent again",
    "a label has one live attempt at most",
    "a new attempt is one that the caller asked for",
    "an attempt has one job at most",
    "a job has one owner",
    "an attempt ends once",
    "nothing is sent unless RUNNING",
    "limits are kept",
    "every entry has an outcome",
    "counts are those of the states",
    "every stop is reached",
    "no event is unexpected",
)


class Chance(Protocol):
    """What decides: hypothesis, or a generator of random numbers."""

    def choice(self, seq: Sequence[T]) -> T:
        """Return one of them."""
        ...


class Broken(AssertionError):
    """A rule that the core broke."""

    def __init__(self, rule: str, detail: object) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


def check(rule: str, holds: object, detail: object = "") -> None:
    """Raise `Broken` unless a rule holds."""
    if rule not in RULES:
        raise LookupError(rule)
    if not holds:
        raise Broken(rule, detail)


class LocalFault(FineTuneError):
    """A results file that cannot be written."""


def settings_of(chance: Chance) -> Settings:
    """Choose what is asked of a batch."""
    return Settings(
        max_active=chance.choice((float("inf"), 1, 2, 5)),
        concurrency=chance.choice((1, 2, 4)),
        per_minute=chance.choice((None, 60.0)),
        max_streams=chance.choice((0, 1, 32)),
        max_waiting=chance.choice((1, 3, 100)),
        wants_results=chance.choice((False, True)),
        fail_fast=chance.choice((False, False, True)),
        accepts_changes=chance.choice((False, True)),
        retries_failed=chance.choice((False, True)),
        retries_uncertain=chance.choice((frozenset(), frozenset({"job-1", "job-2", "job-3"}))),
    )
