"""What the notes of a journal say when they are read together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofinetune import structuring
from aiofinetune._sqlite import Database
from aiofinetune.batch._journal_notes import SCHEMA, apply, apply_all

REQUEST = {"training_file": "file-1", "model": "ada"}
COLUMNS = "label, attempt, intent, sent_at, is_accepted, hint, job_id, outcome"


def note(kind: str, label: str, attempt: int | None, number: int) -> dict[str, Any]:
    """Return a note that differs from all others by its number."""
    contents: dict[str, dict[str, Any]] = {
        "intend": {"request": REQUEST, "sent": REQUEST, "at": float(number)},
        "replace": {"request": REQUEST},
        "withdraw": {},
        "accept": {"hint": f"hint-{number}"},
        "create": {"job_id": f"ft-{number}"},
        "end": {"job": {"id": f"ft-{number}"}, "at": float(number)},
    }
    # A journal of version 2 knows no attempts.
    about = {"label": label} if attempt is None else {"label": label, "attempt": attempt}
    return {"note": kind, **about, **contents[kind]}


kinds = st.sampled_from(("intend", "create", "end") * 3 + ("withdraw", "accept"))
histories = st.lists(st.tuples(kinds, st.sampled_from("ab"), st.sampled_from((1, 2))), max_size=30)
old_histories = st.lists(st.tuples(kinds | st.just("replace"), st.sampled_from("ab"), st.none()), max_size=20)


def rows(lines: Iterable[bytes], at_once: int | None) -> list[tuple[Any, ...]]:
    """Return the attempts that notes make: so many written together, or each note applied by itself."""
    database = Database("test")
    with database.connected(""):
        database.connection.executescript(SCHEMA)
        if at_once is None:
            for text in lines:
                apply(database, structuring.loads(text), text)
        else:
            apply_all(database, lines, at_once)
        return database.execute(f"SELECT {COLUMNS} FROM attempts ORDER BY number").fetchall()  # noqa: S608  # a constant


@given(older=old_histories, newer=histories, at_once=st.integers(1, 5))
def test_notes_that_are_read_together_say_what_each_of_them_says(
    older: list[tuple[str, str, None]], newer: list[tuple[str, str, int]], at_once: int
) -> None:
    """However many attempts are written to the database together, the notes count in their order."""
    history = [note(*about, number) for number, about in enumerate([*older, *newer])]
    lines = [structuring.dumps(each) for each in history]
    assert rows(lines, at_once) == rows(lines, None)


@pytest.mark.parametrize(
    ("kind", "lacks"),
    [("intend", "request"), ("intend", "sent"), ("intend", "at"), ("end", "job"), ("replace", "request")],
)
def test_a_note_that_lacks_what_a_record_needs(kind: str, lacks: str) -> None:
    """What a record is made of later is looked for when the journal is read."""
    values = note(kind, "a", 1, 1)
    del values[lacks]
    with pytest.raises(KeyError, match=lacks):
        rows([structuring.dumps(values)], 1000)
