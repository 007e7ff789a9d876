"""What a look at the list keeps of the jobs that have ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiofinetune._jobs import looking
from aiofinetune._jobs.looking import Seen


def row(number: int) -> dict[str, Any]:
    """Return a row of the list."""
    return {"id": f"ft-{number}", "status": "succeeded", "fine_tuned_model": f"ada:ft-{number}"}


@pytest.mark.parametrize("at_once", [1, 2, 5, 7, 23])
def test_all_that_ended_are_read_in_their_order(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """However many there are and however they come, they are given in blocks, in the order of the list, and once."""
    monkeypatch.setattr(looking, "_BLOCK", 5)
    monkeypatch.setattr(looking, "_MAX_PLAIN", 2)
    seen = Seen(lambda job_id: job_id != "ft-3", ())
    for start in range(0, 23, at_once):
        seen.add(map(row, range(start, min(start + at_once, 23))))
    blocks = list(seen.ended(lambda *_: None))
    assert [len(block) for block in blocks] == [5, 5, 5, 5, 2]
    assert [job.id for block in blocks for job in block.values()] == [f"ft-{n}" for n in range(23) if n != 3]
    assert list(seen.ended(lambda *_: None)) == []


def test_a_status_is_in_memory_once() -> None:
    """However many jobs have a status, it is one object, whatever the word."""
    seen = Seen(lambda _job_id: True, ())
    rows = json.loads(json.dumps([{"id": f"ft-{number}", "status": "pending"} for number in range(3)]))
    assert len({id(row["status"]) for row in rows}) == 3
    seen.add(rows)
    assert len({id(status) for status in seen.active.values()}) == 1
    assert set(seen.active.values()) == {"pending"}


def test_many_that_ended_take_little_memory() -> None:
    """Of very many, most are kept compressed."""
    seen = Seen(lambda _job_id: True, ())
    seen.add({**row(number), "model": "ada" * 100} for number in range(12_000))
    kept = sum(map(len, seen._blocks))  # what it keeps
    assert kept < 12_000 * 400 * 0.9
    assert sum(len(block) for block in seen.ended(lambda *_: None)) == 12_000
