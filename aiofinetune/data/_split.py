"""Split a data file into training and validation data, and take samples; in bounded memory."""

from __future__ import annotations

import random
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from hashlib import blake2b
from os import PathLike, fspath
from typing import Final

import attrs

from aiofinetune.data._check import PLAIN_COLUMNS
from aiofinetune.data._duplicates import DigestStore
from aiofinetune.data._leaks import prompt_of
from aiofinetune.data._reading import Source, open_source, rows_of
from aiofinetune.data._rows import Columns, rename, text_of
from aiofinetune.data._rules import JOBS
from aiofinetune.data._writing import are_one_file, check_target, created, json_line
from aiofinetune.errors import ConfigurationError, DatasetError

_MAX_CLASSES: Final = 500
_MAX_CLASS_LENGTH: Final = 100
_ROWS_PER_CLASS: Final = 3
_BITS: Final = 12
"""The leading bits by which numbers are divided before some of them are sorted."""


@attrs.frozen
class SplitReport:
    """How many rows went where."""

    training_file: str
    validation_file: str
    training_rows: int
    validation_rows: int
    classes: Mapping[str, tuple[int, int]]
    """The training and validation rows of each completion, if there are few enough for classes."""

    def to_dict(self) -> dict[str, object]:
        """Return the report as JSON values."""
        return attrs.asdict(self)


def split_file(
    path: str | PathLike[str],
    training: str | PathLike[str],
    validation: str | PathLike[str],
    *,
    share: float | None = None,
    count: int | None = None,
    seed: int = 0,
    columns: Columns = PLAIN_COLUMNS,
    encoding: str | None = None,
    fallback: str | None = None,
    overwrite: bool = False,
) -> SplitReport:
    """Write the rows of a file to two, in their order, as JSON Lines. It blocks, as `check_file` does.

    Rows with equal prompts, also where only space or case differ, stay together, so that the model is not tested on
    what it was trained on; the numbers of rows are therefore as near to what was asked as that allows. If there are
    few enough different completions for classes, each class is split in the same proportion.

    Args:
        path: The file; see `check_file`.
        training: The file to write the training rows to.
        validation: The file to write the validation rows to.
        share: The share of the rows that goes into the validation file; 0.2 if `count` is None too.
        count: The number of rows that go into it.
        seed: Decides which rows; the same seed and prompts always give the same split.
        columns: See `check_file`.
        encoding: See `check_file`.
        fallback: See `check_file`.
        overwrite: Whether the two files may replace others.

    Raises:
        ConfigurationError: The share or the count is impossible, or the two files to write are one.
        DatasetError: A row cannot be read, or all rows have one prompt.
        LocalFileError: A file cannot be read or written.
    """
    if share is not None and count is not None:
        raise ConfigurationError("split: give a share or a count, not both")
    if share is None and count is None:
        share = 0.2
    if not (0 < share < 1 if share is not None else (count or 0) > 0):
        raise ConfigurationError("split: a share between 0 and 1, or a count of at least 1 is expected")
    _check_outputs(path, training, validation, overwrite=overwrite)

    def opened(stack: ExitStack) -> Source:
        limit = JOBS.max_line_bytes
        return stack.enter_context(open_source(path, encoding=encoding, fallback=fallback, max_line_bytes=limit))

    with ExitStack() as stack:
        strata = _Strata(seed, columns)
        for _, fields in rows_of(opened(stack)):
            strata.add(fields)
        if count is not None:
            if count >= strata.rows:
                raise ConfigurationError(f"split: the file has {strata.rows:,} rows; fewer than that are expected")
            share = count / strata.rows
        chosen = strata.choose(share or 0.0, path)
        files = [stack.enter_context(created(output, [path], overwrite=overwrite)) for output in (training, validation)]
        totals = [0, 0]
        classes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for (line, fields), is_validation in zip(rows_of(opened(stack)), chosen, strict=True):
            files[is_validation].write(json_line(path, line, fields))
            totals[is_validation] += 1
            if strata.has_classes:
                classes[_class_of(fields, columns)][is_validation] += 1
    return SplitReport(
        training_file=fspath(training),
        validation_file=fspath(validation),
        training_rows=totals[False],
        validation_rows=totals[True],
        classes={name: (counts[False], counts[True]) for name, counts in classes.items()},
    )


def _check_outputs(
    path: str | PathLike[str], training: str | PathLike[str], validation: str | PathLike[str], *, overwrite: bool
) -> None:
    """Check both files before either is written, so that a refusal leaves no half of a split."""
    for output in (training, validation):
        check_target(output, [path], overwrite=overwrite)
    if are_one_file(training, validation):
        names = fspath(training) if fspath(training) == fspath(validation) else f"{training} and {validation}"
        raise ConfigurationError(f"split: the training and the validation file are one file ({names}); give two")


class _Strata:
    """The rows of a file by class, and each with a number that its prompt and the seed decide."""

    def __init__(self, seed: int, columns: Columns) -> None:
        self._key = b"%d" % seed
        self._columns = columns
        self._classes: dict[str, int] = {}
        self.has_classes = True
        self.rows = 0
        self._draws = array("Q")
        self._strata = array("H")

    def add(self, fields: dict[str, object]) -> None:
        """Add a row."""
        prompt = prompt_of(fields, self._columns).encode("utf-8", "surrogatepass")
        self.rows += 1
        self._draws.append(int.from_bytes(blake2b(prompt, digest_size=8, key=self._key).digest(), "big"))
        if self.has_classes:
            name = _class_of(fields, self._columns)
            self.has_classes = len(self._classes) < _MAX_CLASSES and 0 < len(name) <= _MAX_CLASS_LENGTH
            self._strata.append(self._classes.setdefault(name, len(self._classes)))

    def choose(self, share: float, path: str | PathLike[str]) -> Iterator[bool]:
        """Return for each row whether it goes into the validation file.

        The prompts of each class are put into the order of their numbers, and the first go into the validation file
        until it has its share. A prompt with completions of several classes counts for the first of them.
        """
        if not self.has_classes or self.rows < _ROWS_PER_CLASS * len(self._classes):
            self.has_classes = False
        if not self.has_classes:
            self._strata = array("H", bytes(2 * self.rows))
        stratum_of = self._shared_prompts() if self.has_classes else {}
        draws_of = [array("Q") for _ in range(max(self._strata) + 1)]
        for draw, stratum in zip(self._draws, self._strata, strict=True):
            draws_of[stratum_of.get(draw, stratum)].append(draw)
        bounds = [_bound(draws, share) for draws in draws_of]
        if not any(bounds):
            if not self.has_classes:
                raise DatasetError(fspath(path), None, "all rows have the same prompt, so they cannot be split")
            # Each class has a single prompt.
            self.has_classes = False
            return self.choose(share, path)
        pairs = zip(self._draws, self._strata, strict=True)
        return (draw < bounds[stratum_of.get(draw, stratum)] for draw, stratum in pairs)

    def _shared_prompts(self) -> dict[int, int]:
        """Return the stratum of each prompt that has rows in several: that of its first row."""
        store = DigestStore()
        try:
            for number, (draw, stratum) in enumerate(zip(self._draws, self._strata, strict=True)):
                store.add(draw.to_bytes(16, "little"), stratum.to_bytes(16, "little"), number, 0)
            return {
                self._draws[rows[0].number]: self._strata[rows[0].number]
                for rows in store.groups()
                if len({row.completion for row in rows}) > 1
            }
        finally:
            store.close()


def _bound(draws: array[int], share: float) -> int:
    """Return the number below which prompts go into the validation file; 0 if there is only one prompt."""
    if not draws or min(draws) == max(draws):
        return 0
    target = min(max(1, round(share * len(draws))), len(draws) - 1)
    value = _at(draws, target)
    # The rows of one prompt are around the target: with them or without them, whichever is nearer.
    below = sum(draw < value for draw in draws)
    above = below + draws.count(value)
    is_nearer = below == 0 or (above < len(draws) and above - target < target - below)
    return min(draw for draw in draws if draw > value) if is_nearer else value


def _at(draws: array[int], position: int) -> int:
    """Return the number at a position of the sorted numbers, of which only a few are sorted."""
    counts = array("Q", bytes(8 << _BITS))
    shift = 64 - _BITS
    for draw in draws:
        counts[draw >> shift] += 1
    wanted = 0
    while position >= counts[wanted]:
        position -= counts[wanted]
        wanted += 1
    return sorted(draw for draw in draws if draw >> shift == wanted)[position]


def _class_of(fields: dict[str, object], columns: Columns) -> str:
    pair, _ = rename(fields, columns)
    return text_of(pair.get("completion")) or ""


def sample_file(
    path: str | PathLike[str],
    output: str | PathLike[str],
    count: int,
    *,
    seed: int = 0,
    encoding: str | None = None,
    fallback: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write `count` rows of a file, chosen by chance, in their order, as JSON Lines; all rows if there are fewer.

    Returns:
        The number of rows that were written.

    Raises:
        ConfigurationError: The count is below 1.
        DatasetError: A row cannot be read.
        LocalFileError: A file cannot be read or written.
    """
    if count < 1:
        raise ConfigurationError("sample: a count of at least 1 is expected")
    limit = JOBS.max_line_bytes
    with open_source(path, encoding=encoding, fallback=fallback, max_line_bytes=limit) as source:
        left = sum(1 for _ in rows_of(source))
    chooser, wanted = random.Random(seed), min(count, left)  # noqa: S311  # not a secret
    written = 0
    with (
        open_source(path, encoding=encoding, fallback=fallback, max_line_bytes=limit) as source,
        created(output, [path], overwrite=overwrite) as file,
    ):
        for line, fields in rows_of(source):
            # Selection sampling (Knuth, The Art of Computer Programming, 3.4.2, algorithm S).
            if chooser.random() * left < wanted - written:
                file.write(json_line(path, line, fields))
                written += 1
            left -= 1
    return written
