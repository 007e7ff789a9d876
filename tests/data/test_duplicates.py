"""Finding equal rows among many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofinetune.data import _duplicates as duplicates
from aiofinetune.data._duplicates import DigestStore, Repeats, RowSet, digest

ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=60)


@given(ROWS, st.integers(0, 500))
def test_repeats_are_found_whatever_is_on_disk(rows: list[tuple[int, int]], held: int) -> None:
    """Rows that equal an earlier one, and other completions of one prompt, are found if parts are on disk too."""
    store = DigestStore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_MAX_HELD", held)
        for number, (prompt, completion) in enumerate(rows):
            store.add(digest(b"%d" % prompt), digest(b"%d" % completion), number, number + 1)
        found = Repeats(store.groups(), 3)
    store.close()
    expected = [number for number, row in enumerate(rows) if row in rows[:number]]
    prompts = [prompt for prompt, _ in rows]
    conflicts = [n for n, row in enumerate(rows) if row not in rows[:n] and row[0] in prompts[:n]]
    assert [number for number in range(len(rows)) if number in found.duplicates] == expected
    assert [number for number in range(len(rows)) if number in found.conflicts] == conflicts
    assert [line for line, _ in found.duplicate_lines] == [number + 1 for number in expected[:3]]
    assert all(rows[line - 1] == rows[earlier - 1] for line, earlier in found.duplicate_lines)


@given(st.sets(st.integers(0, 3000)))
def test_a_set_of_rows_has_what_was_added(numbers: set[int]) -> None:
    """The bits say which numbers were added."""
    rows = RowSet()
    for number in numbers:
        rows.add(number)
    assert rows.count == len(numbers)
    assert {number for number in range(3100) if number in rows} == numbers
