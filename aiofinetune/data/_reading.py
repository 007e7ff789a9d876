"""Open a data file, and find out its format and encoding."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from aiofinetune._local_files import check_regular
from aiofinetune.data._catalog import CHECKS
from aiofinetune.data._encodings import check_encoding, encoding_of, keeps_ascii
from aiofinetune.data._examples import MAX_LINE_BYTES
from aiofinetune.data._formats import Line, Record, json_lines, json_values, table_rows, workbook_rows
from aiofinetune.data._json_rows import undecodable
from aiofinetune.data._report import Trouble
from aiofinetune.errors import DatasetError, LocalFileError

_BUFFER: Final = 256 << 10
_HEAD: Final = 8 << 10
_SUFFIXES: Final = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv"}
_WORKBOOKS: Final = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_ARRAY: Final = re.compile(r"\s*\[\s*(\{|\])")
_DAMAGED: Final = (EOFError, zlib.error, gzip.BadGzipFile)
"""What gzip raises for a damaged file."""

_HARMLESS: Final = frozenset({"blank-line", "more-sheets", "duplicate-key", "not-a-number"})
"""What leaves a row as it is."""

Progress = Callable[[int, int], None]
"""Called with the number of bytes that were read, and the size of the file."""


class Source:
    """A data file that is open for reading; see `open_source`."""

    def __init__(self, path: str, encoding: str | None, fallback: str | None, max_line_bytes: int) -> None:
        self.path = path
        self.encoding = check_encoding(encoding) if encoding else ""
        self.format = "jsonl"
        self.size = 0
        self.is_compressed = False
        self.has_mark = False
        self._fallback = check_encoding(fallback) if fallback else None
        self._max_line_bytes = max_line_bytes
        self._reader: io.BufferedReader[Any]  # Any: a file, or one that is decompressed
        self._delimiter = "\t"
        self._damage = ""
        self._files: ExitStack

    def open(self, files: ExitStack, raw: io.RawIOBase | None, progress: Progress | None) -> None:
        """Open the file, unless it is open as `raw`, and read its start. `files` closes what is opened here."""
        self._files = files
        if raw is None:
            check_regular(Path(self.path))
            raw = files.enter_context(io.FileIO(self.path))
            self.size = os.fstat(raw.fileno()).st_size
        counted = files.enter_context(_Counted(raw, self.size, progress))
        self._reader = files.enter_context(io.BufferedReader(counted, _BUFFER))
        self.is_compressed = self._reader.peek(2)[:2] == b"\x1f\x8b"
        if self.is_compressed:
            unzipped = files.enter_context(gzip.GzipFile(fileobj=self._reader))
            self._reader = files.enter_context(io.BufferedReader(cast("io.RawIOBase", unzipped), _BUFFER))
        try:
            head = self._reader.peek(_HEAD)[:_HEAD]
        except _DAMAGED as error:
            self._damage, head = str(error), b""
        found = encoding_of(head)
        if not self.encoding:
            self.encoding = found
        if head.startswith(b"\xef\xbb\xbf") and self.encoding == "utf-8":
            self.has_mark = True
            self._reader.read(3)
            head = head[3:]
        self.format = self._find_format(head)

    def _find_format(self, head: bytes) -> str:
        name = self.path.lower().removesuffix(".gz")
        text = head.decode(self.encoding, "replace")
        by_name = _SUFFIXES.get(os.path.splitext(name)[1])  # noqa: PTH122  # of a text
        if head.startswith(_WORKBOOKS) and by_name is None:
            return "xlsx"
        first = text.lstrip().partition("\n")[0].strip()
        if first.startswith('{"'):
            by_name = "jsonl"
        if by_name == "csv":
            self._delimiter = _delimiter(first)
        if by_name in ("csv", "tsv"):
            return by_name
        if _ARRAY.match(text) or first == "{":
            return "json"
        if by_name or not first or first.startswith(("{", "[")):
            return "jsonl"
        if name.endswith(".json"):
            return "jsonl"
        self._delimiter = _delimiter(first)
        return "tsv" if "\t" in first else "csv" if self._delimiter in first else "jsonl"

    def records(self) -> Iterator[Record]:
        """Read the rows, and what else is on the lines. Damage ends the rows."""
        try:
            if not self._damage:
                yield from self._read()
        except _DAMAGED as error:
            self._damage = str(error)
        except UnicodeError as error:
            self._damage = f"the bytes are not {self.encoding}: {error.args[-1]}"
        except OSError as error:
            raise LocalFileError(f"{self.path}: {error.strerror or error}") from error
        if self._damage:
            yield Record(None, None, (Trouble("unreadable-file", None, self._damage),))

    def _read(self) -> Iterator[Record]:
        if self.format == "xlsx":
            return workbook_rows(cast("BinaryIO", self._reader))
        if self.format == "jsonl":
            return json_lines(self._lines())
        # Bytes that are not UTF-8 become surrogates, so that the row that they are in can be named.
        text = self._text("", "surrogateescape" if keeps_ascii(self.encoding) else None)
        if self.format == "json":
            return json_values(text)
        return table_rows(text, _dialect(self._delimiter), self._fallback, self._max_line_bytes)

    def _text(self, newline: str, errors: str | None) -> io.TextIOWrapper:
        return self._files.enter_context(io.TextIOWrapper(self._reader, self.encoding, errors, newline))

    def _lines(self) -> Iterator[Line]:
        """Read lines, and turn them into UTF-8."""
        if self.encoding == "utf-8":
            return self._decoded("utf-8") if self._fallback else self._bounded()
        if keeps_ascii(self.encoding):
            return self._decoded(self.encoding)
        return self._transcoded()

    def _bounded(self) -> Iterator[Line]:
        reader, limit, number = self._reader, self._max_line_bytes, 0
        while line := reader.readline(limit + 1):
            number += 1
            if len(line) > limit:
                start = line[:60].decode("utf-8", "replace")
                while line and not line.endswith(b"\n"):
                    line = reader.readline(limit)
                yield (number, b"", Trouble("line-too-long", None, start))
            else:
                yield (number, line, None)

    def _decoded(self, encoding: str) -> Iterator[Line]:
        for number, line, trouble in self._bounded():
            if trouble is not None or line.isascii():
                yield (number, line, trouble)
                continue
            try:
                yield (number, line.decode(encoding).encode(), None)
            except UnicodeDecodeError as error:
                yield self._decode_again(number, line, error)

    def _decode_again(self, number: int, line: bytes, error: UnicodeDecodeError) -> Line:
        try:
            if self._fallback is not None:
                return (number, line.decode(self._fallback).encode(), None)
        except UnicodeDecodeError:
            pass
        return (number, b"", undecodable(line, error))

    def _transcoded(self) -> Iterator[Line]:
        text, number = self._text("\n", None), 0
        while line := text.readline(self._max_line_bytes + 1):
            number += 1
            content = line.encode("utf-8", "surrogatepass")
            if len(content) > self._max_line_bytes:
                while line and not line.endswith("\n"):
                    line = text.readline(self._max_line_bytes)
                yield (number, b"", Trouble("line-too-long", None, content[:60].decode("utf-8", "replace")))
            else:
                yield (number, content, None)


class _Counted(io.RawIOBase):
    """Reads a file, and reports how much of it was read."""

    def __init__(self, file: io.RawIOBase, size: int, progress: Progress | None) -> None:
        self._file = file
        self._size = size
        self._done = 0
        self._progress = progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # Any: as io.RawIOBase has it
        count: int | None = self._file.readinto(buffer)
        if self._progress is not None:
            self._done += count or 0
            self._progress(self._done, self._size)
        return count


@contextmanager
def open_source(
    path: str | PathLike[str],
    *,
    encoding: str | None = None,
    fallback: str | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
    progress: Progress | None = None,
    raw: io.RawIOBase | None = None,
    size: int = 0,
) -> Iterator[Source]:
    """Return a context manager of a data file.

    Args:
        path: The file: JSON Lines, JSON, CSV, TSV, one of these with gzip, or an Excel workbook.
        encoding: The file's encoding; by default UTF-8, or what its first bytes show.
        fallback: An encoding for the lines that are not valid in `encoding`.
        max_line_bytes: The length of the longest line of JSON Lines that is read.
        progress: Called while the file is read.
        raw: The file, if it is open; it is not closed here, and `path` is only its name.
        size: Its size, if it is open.

    Raises:
        ConfigurationError: An encoding is unknown, or an extra is not installed.
        LocalFileError: The file cannot be opened or read.
    """
    name = fspath(path)
    source = Source(name, encoding, fallback, max_line_bytes)
    source.size = size
    with ExitStack() as files:
        try:
            source.open(files, raw, progress)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            raise LocalFileError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
        yield source


def _delimiter(header: str) -> str:
    """Return what separates the columns of CSV: the commonest of four in the header, a comma if in doubt."""
    return max(",;\t|", key=header.count)


def _dialect(delimiter_: str) -> type[csv.Dialect]:
    class Table(csv.excel):
        delimiter = delimiter_

    return Table


def rows_of(source: Source) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield each row of a file with its line; every row must be readable.

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
