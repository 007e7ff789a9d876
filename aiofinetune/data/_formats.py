"""The formats of data files: from an open file to its rows.

A row that cannot be read is reported, not raised: `Record.troubles` says why.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple

from aiofinetune.data._json_rows import Decoder
from aiofinetune.data._report import Trouble, cut
from aiofinetune.errors import ConfigurationError

_PIECE: Final = 1 << 20
_MAX_VALUE: Final = 16 << 20
"""The number of characters of the longest item of a JSON array that is read."""
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_field_limit: Final = threading.Lock()
"""Held while the limit of the module `csv` is another, so that of two threads neither leaves the other's."""
_ESCAPED: Final = re.compile("[\udc80-\udcff]")


class Record(NamedTuple):
    """What is on a line, or on the lines of a row of CSV."""

    line: int | None
    """The line on which it starts, from 1; None for what concerns the whole file."""
    fields: dict[str, object] | None
    """The row; None if there is none, or it cannot be read."""
    troubles: tuple[Trouble, ...] = ()


Line = tuple[int, bytes, Trouble | None]
"""The number of a line, the line in UTF-8, and why it cannot be read."""


def json_lines(lines: Iterable[Line]) -> Iterator[Record]:
    """Read JSON Lines."""
    parse = Decoder().parse
    for number, line, trouble in lines:
        if trouble is not None:
            yield Record(number, None, (trouble,))
            continue
        value, troubles = parse(line)
        if type(value) is dict:
            yield Record(number, value, troubles)
        elif line.isspace():
            yield Record(number, None, (Trouble("blank-line", None, ""),))
        else:
            yield _record(number, value, troubles, line)


def _record(number: int, value: object, troubles: tuple[Trouble, ...], text: bytes) -> Record:
    if isinstance(value, dict):
        return Record(number, value, troubles)
    if value is None and troubles and troubles[0].check != "not-a-number":
        return Record(number, None, troubles)
    shown = cut(text[:200].decode("utf-8", "replace").strip())
    return Record(number, None, (Trouble("not-object", None, shown),))


def json_values(text: io.TextIOBase) -> Iterator[Record]:
    """Read JSON that is not on lines: an array of objects, or objects one after the other."""
    decoder, buffer, line, is_array, ended = Decoder(), "", 1, None, False
    while True:
        start = _next_value(buffer, is_array=bool(is_array))
        line += buffer.count("\n", 0, start)
        buffer = buffer[start:]
        if is_array is None and buffer:
            is_array = buffer.startswith("[")
            if is_array:
                buffer = buffer[1:]
                continue
        if buffer.startswith("]") and is_array:
            return
        value, end, problem = _decode_value(decoder, buffer) if buffer else (None, 0, "the end of the file")
        # A value that ends with the buffer may go on, and a broken one may only be cut.
        if not ended and (end == len(buffer) or problem) and len(buffer) <= _MAX_VALUE:
            piece = text.read(max(_PIECE, len(buffer)))
            buffer, ended = buffer + piece, not piece
            continue
        if not buffer:
            if is_array:
                yield Record(None, None, (Trouble("unreadable-file", None, "the array is not closed"),))
            return
        if problem:
            yield Record(line, None, (Trouble("not-json", None, f"{problem}: {cut(buffer[:60])}"),))
            yield Record(None, None, (Trouble("unreadable-file", None, f"nothing after line {line} was read"),))
            return
        yield _record(line, value, decoder.troubles(), buffer[: min(end, 200)].encode("utf-8", "replace"))
        line += buffer.count("\n", 0, end)
        buffer = buffer[end:]


def _next_value(buffer: str, *, is_array: bool) -> int:
    """Return where the next value starts: after white space and, in an array, a comma."""
    match = _SPACE.match(buffer)
    start = match.end() if match else 0
    if is_array and buffer.startswith(",", start):
        match = _SPACE.match(buffer, start + 1)
        start = match.end() if match else start + 1
    return start


def _decode_value(decoder: Decoder, buffer: str) -> tuple[object, int, str]:
    """Return the value at the start of the buffer, where it ends, and what is wrong with it."""
    try:
        value, end = decoder.decode(buffer)
    except json.JSONDecodeError as error:
        return None, 0, error.msg
    except (ValueError, RecursionError):
        return None, 0, "too large or nested too deeply"
    return value, end, ""


def table_rows(
    text: Iterable[str], dialect: type[csv.Dialect], fallback: str | None, max_field: int
) -> Iterator[Record]:
    """Read CSV or TSV with a header.

    Args:
        text: The lines. Bytes that could not be decoded are surrogates.
        dialect: The form of the table.
        fallback: An encoding for such bytes.
        max_field: The number of characters of the longest field.
    """
    reader = csv.reader(text, dialect, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = _next_row(reader, max_field)
        except StopIteration:
            return
        except csv.Error as error:
            if "limit" not in str(error):
                yield Record(line, None, (Trouble("not-csv", None, str(error)),))
                continue
            words = f"a field has more than {max_field:,} characters; a quotation mark may be missing"
            yield Record(line, None, (Trouble("line-too-long", None, words),))
            yield Record(None, None, (Trouble("unreadable-file", None, f"nothing after line {line} was read"),))
            return
        if not any(cells):
            # A line without a cell is blank; so is, in what spreadsheets write, one of nothing but delimiters.
            yield Record(line, None, (Trouble("blank-line", None, ""),))
            continue
        trouble = _decode_cells(cells, fallback)
        if header is None:
            header = [cell.strip() for cell in cells]
            if trouble is not None:
                yield Record(line, None, (trouble,))
            if twice := [name for name, count in Counter(header).items() if name and count > 1]:
                yield Record(None, None, (Trouble("duplicate-key", min(twice), f"the header has {min(twice)} twice"),))
            continue
        yield _row(line, header, cells, trouble)


def _next_row(reader: Iterator[list[str]], max_field: int) -> list[str]:
    """Return the next row, whose fields may be as long as `max_field`."""
    # The limit belongs to the whole process and its host, and is as it was when this returns.
    with _field_limit:
        before = csv.field_size_limit(max_field)
        try:
            return next(reader)
        finally:
            csv.field_size_limit(before)


def _decode_cells(cells: list[str], fallback: str | None) -> Trouble | None:
    """Decode in place the cells that hold undecodable bytes; say what remains."""
    for position, cell in enumerate(cells):
        if cell.isascii() or not _ESCAPED.search(cell):
            continue
        content = cell.encode("utf-8", "surrogateescape")
        try:
            cells[position] = content.decode(fallback or "utf-8")
        except ValueError:
            return Trouble("undecodable", None, content.decode("utf-8", "backslashreplace"), content)
    return None


def _row(line: int, header: list[str], cells: list[str], trouble: Trouble | None) -> Record:
    if trouble is not None:
        return Record(line, None, (trouble,))
    while len(cells) > len(header) and not cells[-1]:
        cells.pop()
    if len(cells) != len(header):
        words = f"{len(cells)} columns, {len(header)} expected: {' | '.join(cells)}"
        return Record(line, None, (Trouble("odd-columns", None, cut(words)),))
    return Record(line, {name: cell for name, cell in zip(header, cells, strict=True) if name or cell})


def workbook_rows(file: BinaryIO) -> Iterator[Record]:
    """Read the first sheet of an Excel workbook, whose first row is the header.

    Raises:
        ConfigurationError: The extra ``excel`` is not installed.
    """
    try:
        import python_calamine as calamine  # noqa: PLC0415  # an extra  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigurationError("Excel files need python-calamine: pip install 'aiofinetune[excel]'") from error
    try:
        workbook = calamine.CalamineWorkbook.from_filelike(file)
        names = workbook.sheet_names
        rows = workbook.get_sheet_by_index(0).to_python(skip_empty_area=False)
    except (calamine.CalamineError, OSError, ValueError, IndexError) as error:
        yield Record(None, None, (Trouble("unreadable-file", None, str(error)),))
        return
    if len(names) > 1:
        yield Record(None, None, (Trouble("more-sheets", None, f"not read: {', '.join(names[1:])}"),))
    header: list[str] | None = None
    for line, values in enumerate(rows, start=1):
        cells = [_cell_text(value) for value in values]
        if not any(cells):
            yield Record(line, None, (Trouble("blank-line", None, ""),))
        elif header is None:
            header = cells
        else:
            yield _row(line, header, cells, None)


def _cell_text(value: object) -> str:
    """Return a cell as the sheet shows it: whole numbers without a fraction, and truth values in capitals."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)
