"""Standard output and standard error that may fail: a full disk, a pipe that is closed, a terminal that is gone."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, TextIO

from aiofinetune.errors import LocalFileError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NAMES: Final = ("stdout", "stderr")


class OutputFailed(LocalFileError):
    """Standard output cannot be written. Its notes are what was to be told all the same.

    Args:
        number: The number of the system's error.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stdout cannot be written: {os.strerror(number)}")
        self.is_closed_pipe = number == errno.EPIPE
        """Whether nobody reads it any more, as in ``aiofinetune list | head -1``."""


class _Guarded(io.RawIOBase):
    """Writes what another stream writes. A failure is raised once, by stdout alone; what follows it is dropped.

    So a failure has words of its own, is no traceback, and is not repeated at the exit of the interpreter. What cannot
    be told on stderr cannot be told at all.

    Args:
        inner: The other stream; None if there is none.
        name: Its name.
    """

    def __init__(self, inner: io.RawIOBase | None, name: str) -> None:
        self._inner = inner
        self._has_failed = False
        self.name = f"<{name}>"
        self._is_told = name == "stdout"

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the number of the other stream's file."""
        return super().fileno() if self._inner is None else self._inner.fileno()

    def isatty(self) -> bool:
        """Return whether the other stream is a terminal."""
        return self._inner is not None and self._inner.isatty()

    def write(self, data: ReadableBuffer, /) -> int | None:
        """Write as much as the other stream takes at once.

        Raises:
            OutputFailed: Nothing can be written to stdout; raised only the first time.
        """
        if self._has_failed:
            return memoryview(data).nbytes
        try:
            # Where there is none, the system says why.
            return os.write(-1, data) if self._inner is None else self._inner.write(data)
        except OSError as error:
            self._has_failed = True
            if self._is_told:
                raise OutputFailed(error.errno or errno.EIO) from error
            return memoryview(data).nbytes


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Return a context manager in which no failure of stdout or stderr is an `OSError`.

    Raises:
        OutputFailed: Standard output cannot be written.
    """
    before = {name: getattr(sys, name) for name in _NAMES}
    for name, stream in before.items():
        setattr(sys, name, _guard(stream, name))
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            sys.stderr.flush()
            for name, stream in before.items():
                setattr(sys, name, stream)


def _guard(stream: TextIO | None, name: str) -> TextIO:
    if stream is not None and not isinstance(stream, io.TextIOWrapper):
        # Not a stream of the interpreter's own.
        return stream
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(_Guarded(None, name)), "utf-8", "replace", write_through=True)
    stream.flush()
    raw = getattr(stream.buffer, "raw", stream.buffer)
    return io.TextIOWrapper(
        io.BufferedWriter(_Guarded(raw, name)),
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


@contextlib.contextmanager
def telling(words: str) -> Iterator[None]:
    """Return a context manager in which something is printed that was done, and must be told if it cannot be printed.

    Args:
        words: What was done, such as ``"created ft-1"``; a note of the `OutputFailed`.
    """
    try:
        yield
    except OutputFailed as error:
        error.add_note(words)
        raise
