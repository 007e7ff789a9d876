"""The mends of texts that depend on all rows: each returns, for what was found in them, what to do with one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from aiofinetune.data._check import FileChecker

Pair = tuple[str, str]
Transform = Callable[[str, str], Pair | None]
"""Changes a prompt and a completion; None drops the row."""


def _drop_blank(_facts: FileChecker) -> Transform:
    return lambda prompt, completion: (prompt, completion) if completion.strip() else None


def _drop_long(facts: FileChecker) -> Transform:
    most = facts.rules.max_completion_bytes
    return lambda p, c: None if most is not None and len(c.encode()) > most else (p, c)


def _drop_many_tokens(facts: FileChecker) -> Transform:
    return lambda p, c: None if facts.count_tokens(p, c) > facts.rules.max_tokens else (p, c)


def _lower(facts: FileChecker) -> Transform:
    found = facts.tally.fields("upper-case")
    return lambda p, c: (p.lower() if "prompt" in found else p, c.lower() if "completion" in found else c)


def _without_prompt_prefix(facts: FileChecker) -> Transform:
    prefix = facts.prefix("prompt")
    return lambda p, c: (p.removeprefix(prefix), c)


def _without_completion_prefix(facts: FileChecker) -> Transform:
    prefix = facts.prefix("completion")
    space = " " if prefix.startswith(" ") else ""
    if not prefix:
        return lambda p, c: (p, c)
    return lambda p, c: (p, space + c.removeprefix(prefix).lstrip(" ") if c != prefix else c)


def _with_separator(facts: FileChecker) -> Transform:
    ending = facts.ending("no-separator")
    return lambda p, c: (p if not p or p.endswith(ending) else p + ending, c)


def _with_stop(facts: FileChecker) -> Transform:
    ending = facts.ending("no-stop")
    return lambda p, c: (p, c if not c or c.endswith(ending) else c + ending)


def _with_space(_facts: FileChecker) -> Transform:
    return lambda p, c: (p, c if not c or c[0].isspace() else f" {c}")


TEXT_MENDS: Final[Mapping[str, Callable[[FileChecker], Transform]]] = {
    "blank-completion": _drop_blank,
    "completion-too-long": _drop_long,
    "too-many-tokens": _drop_many_tokens,
    "upper-case": _lower,
    "prompt-prefix": _without_prompt_prefix,
    "completion-prefix": _without_completion_prefix,
    "no-separator": _with_separator,
    "no-leading-space": _with_space,
    "no-stop": _with_stop,
}
"""The mends of texts, in the order in which they are applied."""
