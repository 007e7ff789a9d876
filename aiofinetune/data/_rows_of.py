"""Read the rows of a file of which every row must be readable."""

from __future__ import annotations

from collections.abc import Iterator

from aiofinetune.data._catalog import CHECKS
from aiofinetune.data._reading import Source
from aiofinetune.errors import DatasetError

# What leaves a row as it is.
_HARMLESS = frozenset({"blank-line", "more-sheets", "duplicate-key", "not-a-number"})


def rows_of(source: Source) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield each row with its line.

    Raises:
        DatasetError: A row cannot be read, or has a text that cannot be written; the error names its line.
        LocalFileError: The file cannot be read.
    """
    count = 0
    for line, fields, troubles in source.records():
        for trouble in troubles:
            if trouble.check not in _HARMLESS:
                raise DatasetError(source.path, line, f"{CHECKS[trouble.check].says} ({trouble.text}) Mend it first")
        if fields is not None:
            count += 1
            yield line or 0, fields
    if not count:
        raise DatasetError(source.path, None, CHECKS["no-rows"].says)
