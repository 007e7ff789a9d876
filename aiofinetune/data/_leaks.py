"""Find prompts that a training file and a validation file share, also where only space or case differ."""

from __future__ import annotations

import heapq
from os import PathLike
from typing import Final

from aiofinetune.data._duplicates import DigestStore, digest
from aiofinetune.data._messages import texts_of
from aiofinetune.data._reading import open_source
from aiofinetune.data._report import SHOWN_PLACES, Place
from aiofinetune.data._rows import Columns, rename, text_of
from aiofinetune.data._rules import JOBS

_TRAINING: Final = bytes(16)
_VALIDATION: Final = bytes(15) + b"\1"


def prompt_of(fields: dict[str, object], columns: Columns) -> str:
    """Return what a model is asked in a row, in lower case and with single spaces; if nothing, what it answers."""
    messages = fields.get("messages")
    if isinstance(messages, list):
        text = "\n".join(text for _, text in texts_of(messages[:-1]))
    else:
        pair, _ = rename(fields, columns)
        text = (
            text_of(pair.get("prompt")) or text_of(pair.get("completion")) or "\n".join(t for _, t in texts_of(fields))
        )
    return " ".join(text.casefold().split())


def find_shared(
    training: str | PathLike[str],
    validation: str | PathLike[str],
    columns: Columns,
    *,
    encoding: str | None,
    fallback: str | None,
) -> tuple[int, list[Place]]:
    """Return the number of rows of the validation file whose prompt the training file has, and the first of them."""
    store, lowest = DigestStore(), list[tuple[int, int]]()
    try:
        for path, side in ((training, _TRAINING), (validation, _VALIDATION)):
            with open_source(path, encoding=encoding, fallback=fallback, max_line_bytes=JOBS.max_line_bytes) as source:
                for number, record in enumerate(source.records()):
                    if record.fields is not None:
                        text = prompt_of(record.fields, columns)
                        key = digest(text.encode("utf-8", "surrogatepass"))
                        # The training file's rows come first, so they are the first of their groups.
                        store.add(key, side, number << 1 | (side == _VALIDATION), record.line or 0)
                name = source.path
        count = 0
        for rows in store.groups():
            if rows[0].completion == _TRAINING:
                shared = [row.line for row in rows if row.completion == _VALIDATION]
                count += len(shared)
                lowest = heapq.nsmallest(SHOWN_PLACES, [*lowest, *((line, rows[0].line) for line in shared)])
    finally:
        store.close()
    return count, [Place(name, line, None, f"as line {earlier} of the training file") for line, earlier in lowest]
