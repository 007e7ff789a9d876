"""Manifests: files that list the jobs of a batch, read lazily and checked as a whole.

A manifest is JSON Lines or TOML. Each of its requests holds the parameters of a `FineTuneRequest`, and besides:

- ``label``: the caller's name for it, different from all others. By default the file's name and the request's number.
- ``sweep``: a table of lists; the request stands for one job for each combination of their values, labelled
  ``label/n_epochs=4,model=ada``.

A training or validation file is an id at the service or a path on this machine; `is_local` has the rule. Paths are
relative to the manifest. Defaults apply to all requests, in JSON Lines to those that follow::

    {"defaults": {"model": "ada"}}
    {"label": "spam", "training_file": "spam.jsonl", "sweep": {"n_epochs": [1, 2, 4]}}

    [defaults]
    model = "ada"
    [[requests]]
    label = "spam"
    training_file = "spam.jsonl"
    sweep.n_epochs = [1, 2, 4]
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from aiofinetune import structuring
from aiofinetune.errors import FineTuneError, LocalFileError, RequestInvalid
from aiofinetune.models import FineTuneRequest

_MAX_LINE_BYTES: Final = 1 << 20
_MAX_SWEEP: Final = 10_000
"""Jobs that one request may stand for; a grid of more is a slip."""
_OWN_FIELDS: Final = ("label", "sweep")
_FILE_FIELDS: Final = ("training_file", "validation_file")
_DATA_SUFFIXES: Final = (
    *(".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".txt", ".parquet"),
    *(".gz", ".bz2", ".xz", ".zst", ".zip"),
)


@attrs.frozen
class Entry:
    """One job of a batch: what to ask for, under the caller's name for it.

    Args:
        label: The caller's name, unlike all others of the batch.
        request: What to ask for; its files may be local paths, see `is_local`.
    """

    label: str
    request: FineTuneRequest


@attrs.frozen
class Problem:
    """One thing that is wrong with a manifest.

    Args:
        line: The line, from 1; in TOML that of the request's field where it can be found, else of the request.
        field: The parameter.
        words: What is wrong with it.
    """

    line: int
    field: str
    words: str


def is_local(file: str, folder: str | os.PathLike[str] = "") -> bool:
    """Whether a request's file is a path on this machine rather than an id at the service.

    It is a path if it holds a slash, if it ends like a data file (``.jsonl``, ``.json``, ``.ndjson``, ``.csv``,
    ``.tsv``, ``.txt`` or ``.parquet``, or one that is compressed, in upper or lower case), or if there is a file of
    that name in the folder. Anything else, such as ``file-abc123``, is an id.

    Args:
        file: The name.
        folder: Where relative paths start: in a manifest at its own folder, in code at the current one.
    """
    return _looks_local(file) or _is_in(folder, file)


def _looks_local(file: str) -> bool:
    return "/" in file or os.sep in file or file.lower().endswith(_DATA_SUFFIXES)


def _is_in(folder: str | os.PathLike[str], file: str) -> bool:
    """Whether there is such a file; a folder may have the name of an id, for it is never training data."""
    path = os.path.join(folder, file)  # noqa: PTH118  # a Path raises for a name too long, here and below
    return os.path.lexists(path) and not os.path.isdir(path)  # noqa: PTH112


def read_manifest(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """Read the entries of a manifest one by one; JSON Lines in constant memory.

    Raises:
        ManifestInvalid: At the first entry that is wrong. `check_manifest` finds all that are.
        LocalFileError: The manifest cannot be read.
    """
    for _table, item in _entries(Path(path)):
        if isinstance(item, Problem):
            raise ManifestInvalid(os.fspath(path), (item,))
        yield item


def check_manifest(path: str | os.PathLike[str]) -> int:
    """Check a whole manifest, and that its local files are there; give the number of its jobs.

    Raises:
        ManifestInvalid: It is wrong; the error holds every problem.
        LocalFileError: The manifest cannot be read.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise LocalFileError(f"{path}: is not a regular file; a manifest is read more than once")
    problems = []
    labels: set[int] = set()
    count = 0
    for table, item in _entries(Path(path)):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        count += 1
        if hash(item.label) in labels:
            problems.append(
                Problem(table.line_of("label"), "label", f"{item.label!r} is used twice; each job needs its own label")
            )
        labels.add(hash(item.label))
        for field in _FILE_FIELDS:
            file = getattr(item.request, field)
            if file is not None and _looks_local(file) and not os.path.isfile(file):  # noqa: PTH113
                words = f"{file!r} is not a regular file" if os.path.exists(file) else f"there is no file {file!r}"  # noqa: PTH110
                problems.append(Problem(table.line_of(field), field, words))
    if not count and not problems:
        problems.append(Problem(1, "requests", "expected at least one"))
    if problems:
        # A file that is missing is missing for each job of a sweep.
        raise ManifestInvalid(os.fspath(path), tuple(dict.fromkeys(problems)))
    return count


@attrs.frozen
class _Table:
    """A request, or defaults for requests, as it stands in the manifest.

    Args:
        line: Where it begins.
        values: What it says.
        source: Its lines after the first, where its fields stand on lines of their own.
    """

    line: int
    values: Mapping[str, object]
    source: Sequence[str] = ()

    def line_of(self, field: str) -> int:
        """The line of a field, or that of the request if it cannot be found."""
        name = re.escape(field.partition("[")[0])
        for number, line in enumerate(self.source, self.line + 1):
            if re.match(rf"\s*(sweep\s*\.\s*)?{name}\b", line):
                return number
        return self.line


def _entries(path: Path) -> Iterator[tuple[_Table, Entry | Problem]]:
    """Each entry of a manifest with its table, or what is wrong in its place."""
    defaults: dict[str, object] = {}
    number = 0
    for item in _toml_tables(path) if path.suffix == ".toml" else _json_tables(path):
        if isinstance(item, Problem):
            yield _Table(item.line, {}), item
        elif set(item.values) == {"defaults"} and isinstance(item.values["defaults"], dict):
            defaults = dict(item.values["defaults"])
            for problem in _problems_of(item, defaults):
                # Said once, where it stands, and not again for each request.
                defaults.pop(problem.field.partition("[")[0], None)
                yield item, problem
        else:
            number += 1
            for entry in _expand(item, defaults, f"{path.stem}-{number}", path.parent):
                yield item, entry


def _problems_of(table: _Table, values: Mapping[str, object]) -> list[Problem]:
    """What is wrong with parameters, each by itself."""
    parameters = {name: value for name, value in values.items() if name not in _OWN_FIELDS}
    wrong = structuring.wrong_parameters(parameters)
    return [Problem(table.line_of(field), field or "request", words) for field, words in wrong]


def _json_tables(path: Path) -> Iterator[_Table | Problem]:
    for number, line in enumerate(_lines(path), start=1):
        if len(line) > _MAX_LINE_BYTES:
            yield Problem(number, "request", f"is longer than {_MAX_LINE_BYTES} bytes")
            return
        if not line.strip():
            continue
        try:
            values = structuring.loads(line.removeprefix(b"\xef\xbb\xbf"))
        except ValueError as error:
            yield Problem(number, "request", f"is not JSON: {_reason(line, error)}")
            continue
        if isinstance(values, dict):
            yield _Table(number, values)
        else:
            yield Problem(number, "request", 'expected an object such as {"training_file": "spam.jsonl"}')


def _reason(line: bytes, error: ValueError) -> str:
    """Say why a line is not JSON, and where in it: the decoder takes each line for the first of a file."""
    try:
        line.decode()
    except UnicodeDecodeError as undecodable:
        return f"byte {undecodable.start + 1} of the line is not UTF-8"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    # Some of the decoder's messages end in the "at" that a place is to follow.
    return f"{error.msg.removesuffix(' at').removesuffix(' starting')} at character {error.colno}"


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(_MAX_LINE_BYTES + 1):
                yield line
    except OSError as error:
        raise LocalFileError(f"{path}: {error.strerror}") from error


def _toml_tables(path: Path) -> Iterator[_Table | Problem]:
    try:
        text = b"".join(_lines(path)).decode("utf-8-sig")
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        line = re.search(r"at line (\d+)", str(error))
        yield Problem(int(line[1]) if line else 1, "manifest", f"is not TOML: {error}")
        return
    for name in document:
        if name not in {"defaults", "requests"}:
            line_of = _line_of(text, rf"\[*\s*{re.escape(name)}\b")
            yield Problem(line_of, name, "expected only [defaults] and [[requests]]")
    lines = text.split("\n")
    start = _line_of(text, r"\[\s*defaults\s*\]")
    yield _Table(start, {"defaults": document.get("defaults", {})}, lines[start:])
    requests = document.get("requests", [])
    if not isinstance(requests, list):
        yield Problem(_line_of(text, r"\[requests\]"), "requests", "expected [[requests]], with two brackets")
        return
    headers = [number for number, line in enumerate(lines, 1) if re.match(r"[ \t]*\[\[\s*requests\s*\]\]", line)]
    for index, values in enumerate(requests):
        start, end = (*headers, len(lines) + 1)[index : index + 2] if index < len(headers) else (1, 1)
        if isinstance(values, dict):
            yield _Table(start, values, lines[start : end - 1])
        else:
            yield Problem(start, "requests", "expected a table of parameters")


def _line_of(text: str, pattern: str) -> int:
    found = re.search(rf"(?m)^[ \t]*{pattern}", text)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def _expand(table: _Table, defaults: Mapping[str, object], label: str, folder: Path) -> Iterator[Entry | Problem]:
    """The entries that one request stands for, or what is wrong with it."""
    values = {**defaults, **table.values}
    given_label, sweep = values.pop("label", label), values.pop("sweep", {})
    if not isinstance(given_label, str) or not given_label.strip() or not given_label.isprintable():
        yield Problem(table.line_of("label"), "label", "expected a single line of text")
        return
    if not isinstance(sweep, dict) or not all(isinstance(choices, list) and choices for choices in sweep.values()):
        expected = 'expected a table of lists, such as {"n_epochs": [1, 2, 4]}'
        yield Problem(table.line_of("sweep"), "sweep", expected)
        return
    size = math.prod(len(choices) for choices in sweep.values())
    if size > _MAX_SWEEP:
        yield Problem(table.line_of("sweep"), "sweep", f"stands for {size} jobs; at most {_MAX_SWEEP} are allowed")
        return
    told: set[Problem] = set()
    for combination in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, combination, strict=True))
        name = given_label + "/" * bool(sweep) + ",".join(f"{key}={value}" for key, value in chosen.items())
        for item in _entry(table, name, {**values, **chosen}, folder):
            # What is wrong in every combination is said once.
            if not isinstance(item, Problem) or item not in told:
                yield item
            if isinstance(item, Problem):
                told.add(item)


def _entry(table: _Table, label: str, values: Mapping[str, object], folder: Path) -> Iterator[Entry | Problem]:
    wrong = _problems_of(table, values)
    if values.get("training_file") is None:
        wrong.append(Problem(table.line, "training_file", "is missing"))
    if wrong:
        yield from wrong
        return
    try:
        request = structuring.read_request(values, FineTuneRequest)
    except RequestInvalid as error:
        yield Problem(table.line_of(error.field), error.field, error.problem)
        return
    if not label.isprintable():
        yield Problem(
            table.line_of("sweep"), "sweep", f"its values make a label that is not a single line of text: {label!r}"
        )
        return
    for field in _FILE_FIELDS:
        file = getattr(request, field)
        if file is not None and is_local(file) and not is_local(file, folder):
            # A batch would take the id for this file.
            words = f"{file!r} is a file in the current folder, but not beside the manifest; give its path"
            yield Problem(table.line_of(field), field, words)
            return
    yield Entry(label, _with_paths_from(folder, request))


def _with_paths_from(folder: Path, request: FineTuneRequest) -> FineTuneRequest:
    training, validation = request.training_file, request.validation_file
    if is_local(training, folder):
        request = attrs.evolve(request, training_file=_path_from(folder, training))
    if validation is not None and is_local(validation, folder):
        request = attrs.evolve(request, validation_file=_path_from(folder, validation))
    return request


def _path_from(folder: Path, file: str) -> str:
    path = str(folder / file)
    # A path drops the "./" by which it is known.
    return path if _looks_local(path) else os.path.join(os.curdir, path)  # noqa: PTH118


class ManifestInvalid(FineTuneError, ValueError):
    """A batch's manifest that is wrong; it holds every problem, and nothing of it was sent.

    Args:
        path: The manifest.
        problems: What is wrong, in the manifest's order.
    """

    def __init__(self, path: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(path, problems)
        self.path = path
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(f"{self.path}, line {it.line}, {it.field}: {it.words}" for it in self.problems)
