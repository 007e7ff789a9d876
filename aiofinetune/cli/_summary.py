"""The summary of a batch: a file with a line of JSON for each outcome."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from aiofinetune import structuring
from aiofinetune.batch._outcomes import Outcome
from aiofinetune.errors import ConfigurationError, LocalFileError

_TOLD: Final = ("label", "status", "job")
"""The keys by which a line of a summary is recognised; see `Outcome.summary`."""
_MAX_LINE_BYTES: Final = 1 << 20


def check_summary(summary: Path, others: tuple[Path, ...]) -> None:
    """Refuse to overwrite a file that is not a summary, such as a manifest, a journal or training data."""
    if summary.resolve() in [other.resolve() for other in others]:
        raise ConfigurationError(f"summary: {summary} is the manifest or the journal; give another file")
    try:
        with summary.open("rb") as file:
            line = file.readline(_MAX_LINE_BYTES)
        # An empty file may be overwritten.
        told = structuring.loads(line) if line else dict.fromkeys(_TOLD)
    except FileNotFoundError:
        if not summary.parent.is_dir():
            raise ConfigurationError(f"summary: the folder {summary.parent} does not exist") from None
        return
    except (OSError, ValueError):
        told = None
    if not isinstance(told, dict) or not told.keys() >= set(_TOLD):
        raise ConfigurationError(f"summary: {summary} exists and is not a summary; give another file")


class Summary:
    """A summary that is being written. The lines of an earlier run stay until this one has an outcome.

    Args:
        file: The file, open for appending, and not buffered: each line is in it even if this process is killed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._has_begun = False

    def write(self, outcome: Outcome) -> None:
        """Write the line of an outcome, at once.

        Raises:
            LocalFileError: It cannot be written.
        """
        try:
            if not self._has_begun and os.fstat(self._file.fileno()).st_size:
                self._file.truncate(0)
            self._has_begun = True
            self._file.write(structuring.dumps(outcome.summary()) + b"\n")
        except OSError as error:
            raise LocalFileError(f"{self._file.name}: {error.strerror}") from error


@contextlib.contextmanager
def opened(summary: Path | None) -> Iterator[Summary | None]:
    """Return a context manager of the summary to write; None if none is wanted."""
    if summary is None:
        yield None
        return
    try:
        file = summary.open("ab", buffering=0)
    except OSError as error:
        raise LocalFileError(f"{summary}: {error.strerror}") from error
    with file:
        yield Summary(file)
