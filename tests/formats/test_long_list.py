"""A list of jobs is read row by row as its bytes arrive."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from aiofinetune.dialects import _long_list
from aiofinetune.dialects._long_list import LongList
from aiofinetune.errors import ProtocolViolation


def read(body: bytes, sizes: random.Random | None = None) -> tuple[list[Any], dict[str, Any]]:
    """Read a body in pieces of random sizes, or in one."""
    reader, rows, position = LongList(lambda data: data), list[Any](), 0
    while position < len(body):
        size = len(body) if sizes is None else sizes.randint(1, 200)
        rows += reader.feed(body[position : position + size])
        position += size
    last, fields = reader.close()
    return rows + last, fields


ROWS = [
    {"id": f"ft-{number}", "events": [{"message": '"},{"'}, {"message": "}, {"}], "files": [{}, {}], "note": "[{\\"}
    for number in range(100)
]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("head", [{}, {"object": "list"}, {"meta": {"data": [1]}}])
@pytest.mark.parametrize("tail", [{}, {"has_more": True}])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n "])
def test_rows_are_the_same_however_the_bytes_arrive(
    monkeypatch: pytest.MonkeyPatch, indent: int | None, head: dict[str, Any], tail: dict[str, Any], start: bytes
) -> None:
    """Whatever is in the rows and wherever the body is cut, the rows and the other fields are those of the JSON."""
    monkeypatch.setattr(_long_list, "_AT_ONCE", 500)
    body = start + json.dumps({**head, "data": ROWS, **tail}, indent=indent).encode()
    for seed in range(5):
        assert read(body, random.Random(seed)) == (ROWS, {**head, **tail})  # noqa: S311  # not a secret
    assert read(body) == (ROWS, {**head, **tail})


def test_rows_come_before_the_end() -> None:
    """Of a long list, most rows are given before the last bytes have come."""
    rows = [{"id": f"ft-{number}", "text": "x" * 1000, "files": [{"id": "a"}]} for number in range(1000)]
    body, reader = json.dumps({"object": "list", "data": rows}).encode(), LongList(lambda data: data)
    given = [len(reader.feed(body[start : start + 65536])) for start in range(0, len(body), 65536)]
    assert sum(given) > 900
    assert len(reader.close()[0]) == 1000 - sum(given)


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"data":[{"id":"a"}', b'{"data":[{"id":"a"}]}}', b"7"])
def test_what_is_no_list_is_refused(body: bytes) -> None:
    """A reply that is cut off, or is not a JSON object, is an error and not a shorter list."""
    with pytest.raises(ProtocolViolation):
        read(body)


@pytest.mark.parametrize("body", [b"{}", b'{"data":null}', b'{"data":{}}', b'{"data":[7,null]}'])
def test_rows_that_are_no_objects_are_passed_over(body: bytes) -> None:
    """A list without rows, or with rows that are not objects, has none."""
    assert read(body)[0] == []
