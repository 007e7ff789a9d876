"""Find equal rows among any number of rows, in bounded memory.

Each row is kept as a digest of its prompt, a digest of its completion and its number. The digests are BLAKE2b's of 128
bits, so that equal digests are equal texts: by the birthday bound, two different ones among 10 million rows have the
same with a chance of about 10^-25. Rows are divided by their digests into parts that fit into memory;
what exceeds a few megabytes goes to a temporary file.
"""

from __future__ import annotations

import struct
import tempfile
from bisect import insort
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import IO, Final, NamedTuple

_PARTS: Final = 256
_MAX_HELD: Final = 4 << 20
"""The number of bytes that are held in memory."""
_ENTRY: Final = struct.Struct("<16s16sII")
_DIGEST: Final = 16
_EMPTY: Final = blake2b(digest_size=_DIGEST)

NO_DIGEST: Final = bytes(_DIGEST)


def digest(content: bytes) -> bytes:
    """Return 16 bytes that are the same only for the same content."""
    hashed = _EMPTY.copy()  # faster than a new one
    hashed.update(content)
    return hashed.digest()


class DigestStore:
    """The digests of rows, on disk where there are many."""

    def __init__(self) -> None:
        self._parts = [bytearray() for _ in range(_PARTS)]
        self._held = 0
        self._file: IO[bytes] | None = None
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(_PARTS)]
        """Where the file has the pieces of each part: offset and length."""

    def add(self, prompt: bytes, completion: bytes, number: int, line: int) -> None:
        """Add a row by the digests of its prompt and completion, its number and its line."""
        self._parts[prompt[0]] += _ENTRY.pack(prompt, completion, number, line)
        self._held += _ENTRY.size
        if self._held > _MAX_HELD:
            self._spill()

    def close(self) -> None:
        """Remove the temporary file."""
        if self._file is not None:
            self._file.close()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        for part, pieces in zip(self._parts, self._pieces, strict=True):
            pieces.append((self._file.tell(), len(part)))
            self._file.write(part)
            part.clear()
        self._held = 0

    def groups(self) -> Iterator[list[Entry]]:
        """Yield the rows of each prompt that several rows have, in order."""
        for position in range(_PARTS):
            entries = self._read(position)
            first: dict[bytes, int] = {}
            more: dict[bytes, list[int]] = {}
            for offset in range(0, len(entries), _ENTRY.size):
                prompt = entries[offset : offset + _DIGEST]
                if (earlier := first.setdefault(prompt, offset)) != offset:
                    more.setdefault(prompt, [earlier]).append(offset)
            for offsets in more.values():
                yield [Entry(*_ENTRY.unpack_from(entries, offset)[1:]) for offset in offsets]

    def _read(self, position: int) -> bytes:
        content = bytearray()
        if self._file is not None:
            for offset, length in self._pieces[position]:
                self._file.seek(offset)
                content += self._file.read(length)
            self._file.seek(0, 2)
        return bytes(content + self._parts[position])


class Entry(NamedTuple):
    """A row in a group of rows with one prompt."""

    completion: bytes
    """The digest of its completion."""
    number: int
    line: int


class RowSet:
    """A set of the numbers of rows, one bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self.count = 0

    def add(self, number: int) -> None:
        """Add a number that is not in the set."""
        if number >> 3 >= len(self._bits):
            self._bits.extend(bytes((number >> 3) + 1 - len(self._bits)))
        self._bits[number >> 3] |= 1 << (number & 7)
        self.count += 1

    def __contains__(self, number: int) -> bool:
        return number >> 3 < len(self._bits) and bool(self._bits[number >> 3] & 1 << (number & 7))


class Repeats:
    """The rows that repeat the prompt of an earlier one, with the same completion or another.

    Args:
        groups: What `DigestStore.groups` yields.
        shown: The number of places to keep of each kind.
    """

    def __init__(self, groups: Iterable[list[Entry]], shown: int) -> None:
        self.duplicates = RowSet()
        self.conflicts = RowSet()
        self.duplicate_lines: list[tuple[int, int]] = []
        """The first lines that equal an earlier one, each with that one."""
        self.conflict_lines: list[tuple[int, int]] = []
        """The first lines whose prompt an earlier one answers otherwise, each with that one."""
        for rows in groups:
            earlier = {rows[0].completion: rows[0].line}
            for row in rows[1:]:
                if row.completion in earlier:
                    self.duplicates.add(row.number)
                    _keep(self.duplicate_lines, (row.line, earlier[row.completion]), shown)
                else:
                    self.conflicts.add(row.number)
                    _keep(self.conflict_lines, (row.line, rows[0].line), shown)
                    earlier[row.completion] = row.line


def _keep(smallest: list[tuple[int, int]], item: tuple[int, int], count: int) -> None:
    """Insert an item into a list of the `count` smallest."""
    if len(smallest) < count or item < smallest[-1]:
        insort(smallest, item)
        del smallest[count:]
