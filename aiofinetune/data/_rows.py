"""The shape of rows: prompt and completion, chat messages, or preference pairs; and columns mapped by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from aiofinetune.data._report import Trouble, cut
from aiofinetune.data._rules import MESSAGES, PAIRS, PREFERENCES

_PAIR: Final = {"prompt", "completion"}
_PREFERENCE_FIELDS: Final = (
    ("input", "preferred_output", "non_preferred_output"),
    ("prompt", "chosen", "rejected"),
)
"""The keys of a preference pair in the jobs API, and in what libraries for training write."""
_LIKELY: Final = {
    "prompt": ("prompt", "input", "question", "instruction", "text", "subject", "source", "sentence", "query"),
    "completion": ("completion", "output", "answer", "response", "label", "target", "category", "class", "reply"),
}


@attrs.frozen
class Columns:
    """Which columns or keys hold the prompt and the completion. Case does not matter."""

    prompt: str = "prompt"
    completion: str = "completion"


def find_shape(fields: Mapping[str, object], columns: Columns) -> str | None:
    """Return the shape of a row; None if its keys are of none."""
    if "messages" in fields and all(value in (None, []) for name, value in fields.items() if name != "messages"):
        return MESSAGES
    names = {name.casefold() for name in fields}
    if any(names >= set(keys) for keys in _PREFERENCE_FIELDS):
        return PREFERENCES
    if "messages" in names and not names & _PAIR:
        return MESSAGES
    if {columns.prompt.casefold(), columns.completion.casefold()} & names:
        return PAIRS
    return MESSAGES if "messages" in names else None


def rename(fields: dict[str, object], columns: Columns) -> tuple[dict[str, object], tuple[Trouble, ...]]:
    """Return a row with the keys ``prompt`` and ``completion`` only, and what was wrong with its keys.

    A key that is missing stays so. The exact name is preferred to one that differs in case.
    """
    pair: dict[str, object] = {}
    used: dict[str, str] = {}
    missing: list[str] = []
    for key, wanted in (("prompt", columns.prompt), ("completion", columns.completion)):
        name = wanted if wanted in fields else next((n for n in fields if n.casefold() == wanted.casefold()), None)
        if name is None:
            missing.append(wanted)
        else:
            used[name] = key
            pair[key] = fields[name]
    troubles: list[Trouble] = []
    if missing:
        troubles.append(Trouble("missing-field", missing[0], f"the row has {_listed(fields)}"))
    if renamed := [name for name, key in used.items() if name != key]:
        names = ", ".join(f"{cut(name)} for {used[name]}" for name in renamed)
        troubles.append(Trouble("field-name", cut(renamed[0]), names))
    if not missing and (extra := [name for name in fields if name not in used]):
        troubles.append(Trouble("extra-field", None, _listed(extra)))
    return pair, tuple(troubles)


def suggest_columns(names: Iterable[str]) -> str:
    """Return which columns to name, if some look like prompts and completions; else an empty text."""
    found = {name.casefold(): name for name in names}
    options = []
    for key, likely in _LIKELY.items():
        name = next((found[word] for word in likely if word in found), None)
        if name is None:
            return ""
        options.append(f"--{key} {name}")
    return f"; try {' '.join(options)}"


def text_of(value: object) -> str | None:
    """Return the text that a plain value has in JSON; None for null, NaN, arrays and objects."""
    if value is None or isinstance(value, dict | list) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, str) else json.dumps(value)


def value_trouble(key: str, value: object) -> Trouble | None:
    """Say what is wrong with a value that should be a text; None for NaN, which is found where it is read."""
    if value is None:
        return Trouble("null-value", key, "null")
    if isinstance(value, dict | list):
        return Trouble("nested-value", key, cut(str(value)))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        return Trouble("not-text", key, cut(str(value)))
    except ValueError:  # Python refuses to write an integer of thousands of digits.
        return Trouble("not-text", key, "an integer of thousands of digits")


def _listed(names: Iterable[str]) -> str:
    return cut(", ".join(cut(name) or "(no name)" for name in names) or "an empty object")
