"""Mend a data file: change what a service would refuse, or a model would learn badly, and say what was changed.

Mends are applied in one order, whatever order is asked for. The safe ones need one pass. The others depend on all rows
(which text is the separator?), so each has a pass of its own over what the mends before it left, and the whole
sequence is repeated until nothing changes: a second mend finds nothing to do.
"""

from __future__ import annotations

import json
import math
import tempfile
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from os import PathLike, fspath
from typing import IO, Final

import attrs

from aiofinetune.data._catalog import CHECKS
from aiofinetune.data._chat import wrong_row
from aiofinetune.data._check import PLAIN_COLUMNS, FileChecker
from aiofinetune.data._duplicates import NO_DIGEST, DigestStore, Repeats, digest
from aiofinetune.data._formats import Record
from aiofinetune.data._json_rows import Decoder, dumps
from aiofinetune.data._reading import Progress, Source, open_source
from aiofinetune.data._report import cut
from aiofinetune.data._rows import Columns, find_shape, rename, text_of
from aiofinetune.data._rules import FINE_TUNES, JOBS, MESSAGES, PAIRS, Rules
from aiofinetune.data._text_mends import TEXT_MENDS
from aiofinetune.data._writing import created
from aiofinetune.errors import ConfigurationError, DatasetError

SHOWN_CHANGES: Final = 3
_MAX_ROUNDS: Final = 5
_MAX_HELD: Final = 1 << 20
"""The number of bytes of rows between two passes that are held in memory."""

SAFE_MENDS: Final = tuple(check.id for check in CHECKS.values() if check.kind == "safe")
"""What is mended by default."""
_CAN_BE_LEFT: Final = frozenset({"duplicate", "empty-completion"})
OPTIONAL_MENDS: Final = tuple(check.id for check in CHECKS.values() if check.kind == "optional")
"""What is mended when it is asked for."""
_NAME_COLUMNS: Final = "If the columns only have other names, name them: --prompt COLUMN --completion COLUMN"


@attrs.frozen
class Change:
    """One row before and after a mend."""

    line: int | None
    before: str
    """The row as JSON, or the text of a line that cannot be read."""
    after: str | None
    """None if the row was dropped."""


@attrs.define
class Mended:
    """What one mend did."""

    mend: str
    """The id of the check whose problems were mended."""
    count: int = 0
    """The number of rows that were changed or dropped."""
    changes: list[Change] = attrs.field(factory=list)
    """The first few of them."""
    dropped_lines: array[int] = attrs.field(factory=lambda: array("Q"))
    """The line of every row that was dropped."""

    def add(self, line: int | None, before: object, after: object) -> None:
        """Count a row, which is an object or the text of a line."""
        self.count += 1
        if len(self.changes) < SHOWN_CHANGES:
            self.changes.append(Change(line, _shown(before), None if after is None else _shown(after)))
        if after is None and line is not None:
            self.dropped_lines.append(line)


@attrs.frozen
class MendReport:
    """What `mend_file` did; `rows_in` is `rows_out` and the number of all dropped lines together."""

    file: str
    output: str | None
    """None for a dry run."""
    rows_in: int
    rows_out: int
    mended: tuple[Mended, ...]
    """In the order in which they were applied."""

    @property
    def dropped(self) -> int:
        """The number of rows that were dropped."""
        return sum(len(mended.dropped_lines) for mended in self.mended)

    def nothing_left(self) -> DatasetError:
        """Return the error of a mend that would leave no row."""
        most = max(self.mended, key=lambda mended: len(mended.dropped_lines), default=None)
        why = "" if most is None else f"; '{most.mend}' drops {len(most.dropped_lines):,} of them"
        advice = ""
        if most is not None and most.mend == "missing-field":
            advice = f". {_NAME_COLUMNS}"
        return DatasetError(
            self.file, None, f"of {self.rows_in:,} rows none would be left, so none is written{why}{advice}"
        )

    def to_dict(self) -> dict[str, object]:
        """Return the report as JSON values."""
        mended = [{**attrs.asdict(each), "dropped_lines": list(each.dropped_lines)} for each in self.mended]
        return {**attrs.asdict(self), "mended": mended, "dropped": self.dropped}


def mend_file(
    path: str | PathLike[str],
    output: str | PathLike[str] | None,
    *,
    mends: Iterable[str] = (),
    without: Iterable[str] = (),
    rules: Rules | None = None,
    columns: Columns = PLAIN_COLUMNS,
    encoding: str | None = None,
    fallback: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MendReport:
    """Write a mended copy of a data file as JSON Lines in UTF-8. It blocks, as `check_file` does.

    Args:
        path: The file; see `check_file`.
        output: The file to write; None for a dry run. It must not be `path`.
        mends: The ids of further checks whose problems to mend (`OPTIONAL_MENDS`).
        without: The ids of safe mends that are not wanted: ``"duplicate"`` or ``"empty-completion"``.
        rules: What the service takes; by default those of the API that takes the shape of the rows.
        columns: See `check_file`.
        encoding: See `check_file`.
        fallback: See `check_file`.
        overwrite: Whether `output` may replace another file.
        progress: See `check_file`.

    Raises:
        ConfigurationError: A mend is unknown, or an encoding or extra is missing.
        DatasetError: A row can neither be mended nor written; the error names its line and the mend that drops it. Or
            no row would be left to write.
        LocalFileError: A file cannot be read or written.
    """
    wanted = _check_mends(mends, without)
    with ExitStack() as stack:
        file = None
        if output is not None:
            file = stack.enter_context(created(output, [path], overwrite=overwrite))
        limit = (rules or JOBS).max_line_bytes
        source = stack.enter_context(
            open_source(path, encoding=encoding, fallback=fallback, max_line_bytes=limit, progress=progress)
        )
        mending = _Mending(source, wanted, rules, columns, stack)
        rows_out = mending.run(file)
        report = MendReport(
            file=source.path,
            output=None if output is None else fspath(output),
            rows_in=mending.rows_in,
            rows_out=rows_out,
            mended=tuple(each for each in mending.mended.values() if each.count),
        )
        if file is not None and report.rows_in and not rows_out:
            raise report.nothing_left()  # In the block, so that no empty file appears.
        return report


def _check_mends(mends: Iterable[str], without: Iterable[str]) -> frozenset[str]:
    mends, without = frozenset(mends), frozenset(without)
    for id in sorted(mends | without):
        if id not in CHECKS:
            raise ConfigurationError(f"mend: no check is called {id!r}")
        if CHECKS[id].kind is None:
            raise ConfigurationError(f"mend: {id} cannot be mended by a program")
    if always := sorted(without & set(SAFE_MENDS) - _CAN_BE_LEFT):
        raise ConfigurationError(f"mend: {always[0]} is mended by writing the row, and cannot be left out")
    return (frozenset(SAFE_MENDS) | mends) - without


class _Mending:
    """The mending of one file."""

    def __init__(
        self, source: Source, wanted: Collection[str], rules: Rules | None, columns: Columns, stack: ExitStack
    ) -> None:
        self._source = source
        self._wanted = wanted
        self._given_rules = rules
        self._columns = columns
        self._stack = stack
        self.rows_in = 0
        self._shape: str | None = None
        self._rules = rules or FINE_TUNES
        self.mended = {id: Mended(id) for id in CHECKS if id in wanted}

    def run(self, output: IO[bytes] | None) -> int:
        """Mend, write to `output` if it is given, and return the number of rows that are left."""
        rows = self._stored(self._read(), None)
        self._count_file_mends()
        if self._shape == PAIRS:
            for _ in range(_MAX_ROUNDS):
                before = sum(each.count for each in self.mended.values())
                for id in TEXT_MENDS:
                    if id in self._wanted:
                        rows = self._stored(self._apply(id, rows), rows)
                if sum(each.count for each in self.mended.values()) == before:
                    break
                if "duplicate" in self._wanted:
                    rows = self._stored(self._without_duplicates(rows), rows)
        if "duplicate" in self._wanted:
            rows = self._stored(self._without_duplicates(rows), rows)
        count = 0
        for _, fields in rows:
            count += 1
            if output is not None:
                output.write(dumps(fields) + b"\n")
        return count

    # Rows between two passes are in a temporary file.

    def _stored(self, rows: Iterable[tuple[int, dict[str, object]]], earlier: _Rows | None) -> _Rows:
        stored = _Rows()
        self._stack.callback(stored.close)
        for line, fields in rows:
            stored.add(line, fields)
        if earlier is not None:
            earlier.close()
        return stored

    # The safe mends

    def _read(self) -> Iterator[tuple[int, dict[str, object]]]:
        for line, fields, troubles in self._source.records():
            if line is None:
                self._refuse_damage(troubles[0].check, troubles[0].text)
                continue
            if fields is None:
                self.rows_in += troubles[0].check != "blank-line"
                self._drop(troubles[0].check, line, troubles[0].text)
                continue
            self.rows_in += 1
            for trouble in troubles:
                if trouble.check == "duplicate-key":
                    self._note("duplicate-key", line, trouble.text, fields)
            mended = self._mend_row(line, fields)
            if mended is not None:
                yield line, mended

    def _refuse_damage(self, check: str, text: str) -> None:
        if check == "unreadable-file":
            raise DatasetError(self._source.path, None, f"{CHECKS[check].says} ({text})")

    def _note(self, id: str, line: int | None, before: object, after: object) -> None:
        if id in self.mended:
            self.mended[id].add(line, before, after)

    def _drop(self, id: str, line: int, row: object) -> None:
        if id == "blank-line":
            if id in self.mended:
                self.mended[id].count += 1
        elif id in self._wanted:
            self.mended[id].add(line, row, None)
        else:
            raise DatasetError(
                self._source.path,
                line,
                f"{CHECKS[id].says} ({cut(_shown(row))}) It cannot be written; correct it by hand, or drop"
                f" such rows with the mend '{id}'" + (f". {_NAME_COLUMNS}" if id == "missing-field" else ""),
            )

    def _mend_row(self, line: int, fields: dict[str, object]) -> dict[str, object] | None:
        shape = find_shape(fields, self._columns)
        if self._shape is None:
            self._shape = shape or PAIRS
            if self._given_rules is None and self._shape not in self._rules.shapes:
                self._rules = JOBS
        if shape is not None and shape != self._shape:
            self._drop("mixed-shapes", line, fields)
            return None
        fields = self._without_surrogates(line, fields)
        return self._mend_pair(line, fields) if self._shape == PAIRS else self._mend_other(line, fields)

    def _without_surrogates(self, line: int, fields: dict[str, object]) -> dict[str, object]:
        try:
            dumps(fields)
        except ValueError:
            if "lone-surrogate" not in self._wanted:
                self._drop("lone-surrogate", line, fields)
            whole = _replaced(fields, is_nan=False)
            self._note("lone-surrogate", line, fields, whole)
            return whole
        return fields

    def _mend_other(self, line: int, fields: dict[str, object]) -> dict[str, object] | None:
        if (plain := _replaced(fields, is_nan=True)) != fields:
            self._note("not-a-number", line, fields, plain)
            fields = plain
        if self._shape == MESSAGES:
            for trouble in wrong_row(fields, only_text=self._rules.only_text):
                if trouble.check in self._wanted:
                    self._drop(trouble.check, line, fields)
                    return None
        return fields

    def _mend_pair(self, line: int, fields: dict[str, object]) -> dict[str, object] | None:
        pair, troubles = rename(fields, self._columns)
        found = {trouble.check for trouble in troubles}
        if "missing-field" in found:
            self._drop("missing-field", line, fields)
            return None
        for id in sorted(found):
            self._note(id, line, fields, pair)
        texts: dict[str, object] = {}
        for key in ("prompt", "completion"):
            value = pair[key]
            if isinstance(value, dict | list):
                self._drop("nested-value", line, fields)
                return None
            text = text_of(value)
            texts[key] = text or ""
            if not isinstance(value, str):
                id = (
                    "not-a-number"
                    if text is None and value is not None
                    else "null-value"
                    if text is None
                    else "not-text"
                )
                # A missing completion makes no example; a missing prompt is one for open-ended generation.
                after = None if key == "completion" and not text else {**pair, **texts}
                self._note(id, line, fields, after)
                if after is None:
                    return None
        if not texts["completion"] and "empty-completion" in self._wanted:
            self._note("empty-completion", line, fields, None)
            return None
        return texts

    def _count_file_mends(self) -> None:
        source = self._source
        for id, applies, shown in (
            ("format", source.format != "jsonl", source.format),
            ("compressed", source.is_compressed, "gzip"),
            ("encoding", source.encoding != "utf-8" and source.format != "xlsx", source.encoding),
            ("byte-order-mark", source.has_mark, "a byte order mark"),
        ):
            if applies:
                self._note(id, None, shown, "JSON Lines in UTF-8")

    # The mends of texts, which depend on all rows

    def _apply(self, id: str, rows: _Rows) -> Iterator[tuple[int, dict[str, object]]]:
        transform = TEXT_MENDS[id](self._facts(rows))
        for line, fields in rows:
            pair = (str(fields["prompt"]), str(fields["completion"]))
            changed = transform(*pair)
            if changed is None:
                self._note(id, line, fields, None)
            elif changed == pair:
                yield line, fields
            else:
                after: dict[str, object] = {"prompt": changed[0], "completion": changed[1]}
                self._note(id, line, fields, after)
                yield line, after

    def _facts(self, rows: _Rows) -> FileChecker:
        checker = FileChecker(self._source, self._rules, PLAIN_COLUMNS)
        self._stack.callback(checker.close)
        for line, fields in rows:
            checker.look(Record(line, fields))
        if checker.pairs is not None:
            checker.pairs.finish()
        return checker

    def _without_duplicates(self, rows: _Rows) -> Iterator[tuple[int, dict[str, object]]]:
        store = DigestStore()
        try:
            for number, (line, fields) in enumerate(rows):
                store.add(digest(dumps(fields)), NO_DIGEST, number, line)
            repeats = Repeats(store.groups(), 1)
            for number, (line, fields) in enumerate(rows):
                if number in repeats.duplicates:
                    self._note("duplicate", line, fields, None)
                else:
                    yield line, fields
        finally:
            store.close()


class _Rows:
    """Rows in a temporary file, which can be read any number of times."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_MAX_HELD)  # noqa: SIM115  # `close` closes it

    def add(self, line: int, fields: dict[str, object]) -> None:
        """Add a row and its line in the source."""
        self._file.write(b"%d %b\n" % (line, dumps(fields)))

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def __iter__(self) -> Iterator[tuple[int, dict[str, object]]]:
        self._file.seek(0)
        decoder = Decoder()
        for entry in self._file:
            line, _, content = entry.partition(b" ")
            fields, _ = decoder.parse(content)
            assert isinstance(fields, dict)  # noqa: S101  # as `add` wrote it
            yield int(line), fields


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _replaced(fields: Mapping[str, object], *, is_nan: bool) -> dict[str, object]:
    """Return a row in which NaN is null, or lone surrogates are U+FFFD."""

    def replaced(value: object) -> object:
        if isinstance(value, dict):
            return {str(replaced(key)): replaced(item) for key, item in value.items()}
        if isinstance(value, list):
            return [replaced(item) for item in value]
        if isinstance(value, str):
            return value if is_nan else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return None if is_nan and isinstance(value, float) and not math.isfinite(value) else value

    return {str(replaced(key)): replaced(item) for key, item in fields.items()}
