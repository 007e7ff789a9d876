"""Data files for tests, and strategies of what may be in them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from hypothesis import strategies as st

from aiofinetune.data import Report

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PAIRS = st.lists(st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS}), max_size=12)

_ODD_VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(TEXTS, max_size=2)
)
_ODD_KEYS = st.sampled_from(["prompt", "completion", "Prompt", "COMPLETION", "id", "messages"])
_ODD_LINES = st.dictionaries(_ODD_KEYS, _ODD_VALUES, max_size=4).map(lambda row: json.dumps(row).encode())
_GOOD_LINES = st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS}).map(lambda row: json.dumps(row).encode())
_CONTENTS = TEXTS | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), max_size=2)
_MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": _CONTENTS}
)
_ODD_ROLES = st.sampled_from(["system", "user", "assistant", "tool", "Assistant", "\ud800", None, 1])
_ODD_CONTENTS = _CONTENTS | _ODD_VALUES | st.just("\ud800") | st.just([{"type": "text", "text": "a", "x": None}])
_ODD_WEIGHTS = st.sampled_from([0, 1, 2, 10**30, 1.0, True, None])
_ODD_MESSAGES: st.SearchStrategy[object] = st.fixed_dictionaries(
    {"role": _ODD_ROLES, "content": _ODD_CONTENTS},
    optional={"weight": _ODD_WEIGHTS, "name": st.sampled_from([None, "a"]), "tool_calls": st.sampled_from([[], [{}]])},
)
_ODD_BESIDE: dict[str, st.SearchStrategy[object]] = {
    "tools": st.sampled_from([None, [], [{}]]),
    "prompt": st.sampled_from([None, "a"]),
    "\ud800": st.none(),
}
_CONVERSATIONS = st.lists(_MESSAGES, max_size=3).map(
    lambda messages: {"messages": [*messages, {"role": "assistant", "content": "b"}]}
)
_ODD_CONVERSATIONS = st.fixed_dictionaries(
    {"messages": st.lists(_MESSAGES | _ODD_MESSAGES, max_size=3)}, optional=_ODD_BESIDE
)
CHAT_FILES = st.lists(_CONVERSATIONS | _ODD_CONVERSATIONS, min_size=1, max_size=2).map(
    lambda rows: b"\n".join(json.dumps(row).encode() for row in rows)
)
"""Contents of files: conversations that are right or nearly right."""

_JSON_PIECES = [b'{"prompt": "', b'"completion": "', b'"}', b"{}", b"[", b"]", b"\\ud800", b"\\u0022", b"NaN", b"1e999"]
_OTHER_PIECES = [b"\n", b"\r\n", b" ", b"\t", b"\x00", b",", b'"', b"a", b"\xe9"]
_MARKS = [b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PK\x03\x04"]
_PIECES = st.sampled_from([*_JSON_PIECES, *_OTHER_PIECES, *_MARKS])
ODD_FILES = (
    st.lists(_GOOD_LINES | _ODD_LINES | st.binary(max_size=20), max_size=8).map(b"\n".join)
    | st.lists(_PIECES, max_size=30).map(b"".join)
    | st.binary(max_size=100)
)
"""Contents of files: rows that are right, nearly right, and anything else."""


def write(folder: Path, rows: Iterable[object], name: str = "train.jsonl") -> Path:
    """Write rows as JSON Lines."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(*texts: tuple[str, str]) -> list[dict[str, str]]:
    """Rows of prompts and completions."""
    return [{"prompt": prompt, "completion": completion} for prompt, completion in texts]


def rows_in(path: Path) -> list[dict[str, object]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def counts(report: Report) -> dict[str, int]:
    """The number of rows with each problem."""
    return {finding.check: finding.count for finding in report.findings}
