"""Read manifests, which are files that list the requests of a batch. They are read lazily and checked as a whole.

A manifest is JSON Lines or TOML. Each request holds the parameters of a `FineTuneRequest`, and optionally:

- ``label``: a unique name for the request. By default it is the name of the manifest and the number of the request.
- ``sweep``: a table of lists. The request stands for one job for each combination of their values, with a label such
  as ``label/n_epochs=4,model=ada``.

A training or validation file is an id at the service or a path on this machine; see `is_local`. Paths are relative to
the manifest. Defaults apply to all requests; in JSON Lines, to all requests that follow::

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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from aiofinetune import structuring
from aiofinetune.dialects._dialect import Dialect
from aiofinetune.dialects._fine_tunes import FINE_TUNES
from aiofinetune.errors import FineTuneError, LocalFileError, RequestInvalid
from aiofinetune.models import FineTuneRequest

_MAX_LINE_BYTES: Final = 1 << 20
"""The longest line of JSON Lines, so that a file without line breaks is not read into memory."""
_MAX_SWEEP: Final = 10_000
"""The number of jobs that one request may stand for. A larger sweep is probably a mistake."""
_OWN_FIELDS: Final = ("label", "sweep")
_NO_MANIFEST: Final = "expected JSON Lines, an object on each line; a manifest in TOML has a name that ends in .toml"
_FILE_FIELDS: Final = ("training_file", "validation_file")
_DATA_SUFFIXES: Final = (
    *(".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".txt", ".parquet"),
    *(".gz", ".bz2", ".xz", ".zst", ".zip"),
)


@attrs.frozen
class Entry:
    """One request of a batch under its label.

    Args:
        label: A name that is unique in the batch.
        request: The parameters of the job. Its files may be local paths; see `is_local`.
    """

    label: str
    request: FineTuneRequest


@attrs.frozen
class Problem:
    """One thing that is wrong with a manifest.

    Args:
        line: The line number, starting at 1. In TOML it is the line of the field if that can be found, or else of the
            request.
        field: The parameter.
        words: What is wrong with the parameter.
    """

    line: int
    field: str
    words: str


def is_local(file: str, folder: str | os.PathLike[str] = "") -> bool:
    """Return whether a request's file is a path on this machine and not an id at the service.

    It is a path if it contains a slash, if it has the suffix of a data file (``.jsonl``, ``.json``, ``.ndjson``,
    ``.csv``, ``.tsv``, ``.txt`` or ``.parquet``, or of a compressed file, in upper or lower case), or if a file of that
    name exists in the folder. Anything else, such as ``file-abc123``, is an id.

    Args:
        file: The file.
        folder: The folder that relative paths start from: for a manifest its own folder, in code the current folder.
    """
    return _looks_local(file) or _is_in(folder, file)


def _looks_local(file: str) -> bool:
    return "/" in file or os.sep in file or file.lower().endswith(_DATA_SUFFIXES)


def _is_in(folder: str | os.PathLike[str], file: str) -> bool:
    """Return whether a file exists. A folder does not count: it is no training data, and may have the name of an id."""
    path = os.path.join(folder, file)  # noqa: PTH118  # Path raises for names that are too long, here and below
    return os.path.lexists(path) and not os.path.isdir(path)  # noqa: PTH112


def read_manifest(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """Yield the entries of a manifest; JSON Lines are read in constant memory.

    Raises:
        ManifestInvalid: An entry is invalid; only the first problem is reported. `check_manifest` finds all of them.
        LocalFileError: The manifest cannot be read.
    """
    for _table, item in _entries(Path(path)):
        if isinstance(item, Problem):
            raise ManifestInvalid(os.fspath(path), (item,))
        yield item


def check_manifest(
    path: str | os.PathLike[str], dialect: Dialect = FINE_TUNES, look: Callable[[str], Iterable[str]] | None = None
) -> int:
    """Check a whole manifest, and that its local files exist; return the number of its jobs.

    Args:
        path: The manifest.
        dialect: What the service says. A parameter that it does not have is a problem.
        look: Returns what is wrong with the data in a local file; called once for each file. None to leave that out.

    Raises:
        ManifestInvalid: The manifest is invalid; the error holds every problem.
        LocalFileError: The manifest cannot be read.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise LocalFileError(f"{path}: is not a regular file; a manifest is read more than once")
    problems = []
    # Hashes take less memory than labels, and a manifest may be very long.
    labels: set[int] = set()
    seen: set[str] = set()
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
        try:
            dialect.check(item.request)
        except RequestInvalid as error:
            problems.append(Problem(table.line_of(error.field), error.field, error.problem))
        problems += _wrong_files(table, item.request, look, seen)
    if not count and not problems:
        problems.append(Problem(1, "requests", "expected at least one request"))
    if problems:
        # All jobs of a sweep report the same missing file.
        raise ManifestInvalid(os.fspath(path), tuple(dict.fromkeys(problems)))
    return count


def _wrong_files(
    table: _Table, request: FineTuneRequest, look: Callable[[str], Iterable[str]] | None, seen: set[str]
) -> Iterator[Problem]:
    """Yield what is wrong with the local files of a request; what is in them, only for those that were not `seen`."""
    for field in _FILE_FIELDS:
        file = getattr(request, field)
        if file is None or not _looks_local(file):
            continue
        found: Iterable[str] = ()
        if not os.path.isfile(file):  # noqa: PTH113
            exists = os.path.exists(file)  # noqa: PTH110
            found = [f"{file!r} is not a regular file" if exists else f"the file {file!r} does not exist"]
        elif look is not None and file not in seen:
            seen.add(file)
            found = look(file)
        for words in found:
            yield Problem(table.line_of(field), field, words)


@attrs.frozen
class _Table:
    """A request, or the defaults for requests, as written in the manifest.

    Args:
        line: The line number of its beginning.
        values: Its fields.
        source: Its lines after the first, if its fields are on lines of their own, as in TOML.
    """

    line: int
    values: Mapping[str, object]
    source: Sequence[str] = ()

    def line_of(self, *fields: str) -> int:
        """Return the line number of the first field that is found, or of the request if none is."""
        for field in fields:
            *table, name = map(re.escape, field.partition("[")[0].rsplit(".", 1))
            # A parameter may be swept.
            before = rf"{table[0]}\s*\.\s*" if table else r"(sweep\s*\.\s*)?"
            for number, line in enumerate(self.source, self.line + 1):
                if re.match(rf"\s*{before}{name}\b", line):
                    return number
        return self.line


def _entries(path: Path) -> Iterator[tuple[_Table, Entry | Problem]]:
    """Yield each entry of a manifest, or a problem in place of one, with its table."""
    defaults: dict[str, object] = {}
    number = 0
    is_toml = path.suffix.lower() == ".toml"
    # A text, as joining a Path to each file takes longer than looking for the file.
    stem, folder = path.stem, str(path.parent)
    for item in _toml_tables(path) if is_toml else _json_tables(path):
        if isinstance(item, Problem):
            yield _Table(item.line, {}), item
        elif set(item.values) == {"defaults"} and isinstance(item.values["defaults"], dict):
            defaults = dict(item.values["defaults"])
            for problem in _problems_of(item, defaults):
                # Reported once, at the defaults, and not again for each request.
                defaults.pop(problem.field.partition("[")[0], None)
                yield item, problem
        else:
            number += 1
            for entry in _expand(item, defaults, f"{stem}-{number}", folder, is_toml=is_toml):
                yield item, entry


def _problems_of(table: _Table, values: Mapping[str, object]) -> list[Problem]:
    """Return the problems of parameters, each checked by itself."""
    parameters = {name: value for name, value in values.items() if name not in _OWN_FIELDS}
    wrong = structuring.wrong_parameters(parameters)
    return [Problem(table.line_of(field), field or "request", words) for field, words in wrong]


def _json_tables(path: Path) -> Iterator[_Table | Problem]:
    is_first = True
    for number, line in enumerate(_lines(path), start=1):
        if len(line) > _MAX_LINE_BYTES:
            # The rest of the line would be read as a line of its own.
            yield Problem(number, "request", f"is longer than {_MAX_LINE_BYTES} bytes")
            return
        text = line.removeprefix(b"\xef\xbb\xbf")
        if not text.strip():
            continue
        if is_first and not text.lstrip().startswith(b"{"):
            # It is something else altogether, of which each line would be a problem.
            yield Problem(number, "manifest", _NO_MANIFEST)
            return
        is_first = False
        try:
            values = structuring.loads(text)
        except ValueError as error:
            yield Problem(number, "request", f"is not JSON: {_reason(line, error)}")
            continue
        if (name := _twice(text)) is not None:
            yield Problem(number, name, "is given twice; keep one")
        elif isinstance(values, dict):
            yield _Table(number, values)
        else:
            yield Problem(number, "request", 'expected an object such as {"training_file": "spam.jsonl"}')


def _twice(text: bytes) -> str | None:
    """Return the first name that an object in a line of JSON has more than once; None if there is none.

    JSON leaves it open which of the values counts. TOML refuses such a name itself.
    """
    found: list[str] = []

    def note(pairs: list[tuple[str, object]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            found.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)

    try:
        # Numbers are not looked at, whatever their length.
        json.loads(text, object_pairs_hook=note, parse_int=str, parse_float=str)
    except RecursionError:
        # It is refused as what it holds, as no parameter is nested so deeply.
        return None
    return found[0] if found else None


def _reason(line: bytes, error: ValueError) -> str:
    """Return why a line is not JSON, and where in the line. The decoder's own line number is always 1."""
    try:
        line.decode()
    except UnicodeDecodeError as undecodable:
        return f"byte {undecodable.start + 1} of the line is not UTF-8"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    # Some of the decoder's messages already end in "at" or "starting at", which is added here.
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


def _expand(
    table: _Table, defaults: Mapping[str, object], label: str, folder: str, *, is_toml: bool
) -> Iterator[Entry | Problem]:
    """Yield the entries that one request stands for, or its problems."""
    values = {**defaults, **table.values}
    given_label, sweep = values.pop("label", label), values.pop("sweep", {})
    if not isinstance(given_label, str) or not given_label.strip() or not given_label.isprintable():
        yield Problem(table.line_of("label"), "label", "expected a single line of text")
        return
    if not isinstance(sweep, dict) or not all(isinstance(choices, list) and choices for choices in sweep.values()):
        example = "sweep.n_epochs = [1, 2, 4]" if is_toml else '{"n_epochs": [1, 2, 4]}'
        yield Problem(table.line_of("sweep"), "sweep", f"expected lists of values, such as {example}")
        return
    if problem := _wrong_sweep(table, sweep):
        yield problem
        return
    told: set[Problem] = set()
    for combination in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, combination, strict=True))
        name = given_label + "/" * bool(sweep) + ",".join(f"{key}={value}" for key, value in chosen.items())
        for item in _entry(table, name, {**values, **chosen}, folder):
            # A problem that every combination has is reported once.
            if not isinstance(item, Problem) or item not in told:
                yield item
            if isinstance(item, Problem):
                told.add(item)


def _wrong_sweep(table: _Table, sweep: Mapping[str, Sequence[object]]) -> Problem | None:
    for name, choices in sweep.items():
        line = table.line_of(f"sweep.{name}", "sweep")
        if name in _OWN_FIELDS:
            words = "is not a parameter; the jobs of a sweep have the request's label and their values"
            return Problem(line, f"sweep.{name}", words)
        counts = Counter(map(str, choices))
        for value in [value for value, count in counts.items() if count > 1]:
            # Both jobs would have one label.
            return Problem(line, f"sweep.{name}", f"has the value {value} twice")
    size = math.prod(len(choices) for choices in sweep.values())
    if size > _MAX_SWEEP:
        words = f"expands to {size} jobs; at most {_MAX_SWEEP} are allowed"
        return Problem(table.line_of("sweep"), "sweep", words)
    return None


def _entry(table: _Table, label: str, values: Mapping[str, object], folder: str) -> Iterator[Entry | Problem]:
    try:
        request = structuring.read_request(values, FineTuneRequest)
    except RequestInvalid as error:
        # Each value is checked by itself only now, as most requests are valid.
        wrong = _problems_of(table, values)
        if values.get("training_file") is None:
            wrong.append(Problem(table.line, "training_file", "is missing"))
        yield from wrong or [Problem(table.line_of(error.field), error.field, error.problem)]
        return
    if not label.isprintable():
        yield Problem(
            table.line_of("sweep"),
            "sweep",
            f"its values result in a label that is not a single line of text: {label!r}",
        )
        return
    for field in _FILE_FIELDS:
        file = getattr(request, field)
        if file is not None and is_local(file) and not is_local(file, folder):
            # The manifest treats this as an id, but `Batch` looks in the current folder and would treat it as a path.
            words = f"{file!r} is a file in the current folder, but not beside the manifest; give its path"
            yield Problem(table.line_of(field), field, words)
            return
    yield Entry(label, _with_paths_from(folder, request))


def _with_paths_from(folder: str, request: FineTuneRequest) -> FineTuneRequest:
    training, validation = request.training_file, request.validation_file
    if is_local(training, folder):
        request = attrs.evolve(request, training_file=_path_from(folder, training))
    if validation is not None and is_local(validation, folder):
        request = attrs.evolve(request, validation_file=_path_from(folder, validation))
    return request


def _path_from(folder: str, file: str) -> str:
    path = str(Path(folder) / file)
    # Path drops a leading "./", without which this might be taken for an id.
    return path if _looks_local(path) else os.path.join(os.curdir, path)  # noqa: PTH118


class ManifestInvalid(FineTuneError, ValueError):
    """A batch's manifest is invalid; the error holds every problem that was found.

    Args:
        path: The manifest.
        problems: The problems, in the order of the manifest.
    """

    def __init__(self, path: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(path, problems)
        self.path = path
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(f"{self.path}, line {it.line}, {it.field}: {it.words}" for it in self.problems)
