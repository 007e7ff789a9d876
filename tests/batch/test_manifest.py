"""Manifests: what they say, and what they are told when they are wrong."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiofinetune import FineTuneRequest
from aiofinetune.batch._manifest import Entry, ManifestInvalid, Problem, check_manifest, is_local, read_manifest
from aiofinetune.cli._batch import _check_labels
from aiofinetune.errors import LocalFileError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests are called by their bare names, as a user in their folder calls them."""
    monkeypatch.chdir(tmp_path)


def read(name: str, text: str) -> list[Entry]:
    Path(name).write_text(text)
    return list(read_manifest(name))


def complaints(name: str, text: str | bytes) -> str:
    """What a check of a manifest says of it."""
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestInvalid) as caught:
        check_manifest(name)
    return str(caught.value)


JSONL = """
{"defaults": {"model": "ada", "n_epochs": 2}}
{"label": "spam", "training_file": "file-1"}

{"defaults": {"n_epochs": 3}}
{"training_file": "file-2", "validation_file": "file-3", "n_epochs": 4}
{"training_file": "file-4"}
"""

TOML = """
[defaults]
model = "ada"
n_epochs = 2

[[requests]]
label = "spam"
training_file = "file-1"

[[requests]]
training_file = "file-2"
validation_file = "file-3"
n_epochs = 4
"""

SPAM = Entry("spam", FineTuneRequest(training_file="file-1", model="ada", n_epochs=2))


def test_json_lines() -> None:
    """Each line is a request; defaults hold for what follows, until the next ones; a request goes before them."""
    assert read("jobs.jsonl", JSONL) == [
        SPAM,
        Entry("jobs-2", FineTuneRequest(training_file="file-2", validation_file="file-3", n_epochs=4)),
        Entry("jobs-3", FineTuneRequest(training_file="file-4", n_epochs=3)),
    ]
    assert check_manifest("jobs.jsonl") == 3


def test_toml() -> None:
    """Each ``[[requests]]`` is a request, and the defaults hold for all, wherever they stand."""
    expected = [
        SPAM,
        Entry("jobs-2", FineTuneRequest(training_file="file-2", validation_file="file-3", model="ada", n_epochs=4)),
    ]
    assert read("jobs.toml", TOML) == expected
    defaults, first, second = TOML.split("\n\n")
    assert read("jobs.toml", f"{first}\n\n{second}\n\n{defaults}") == expected
    assert check_manifest("jobs.toml") == 2


def test_a_byte_order_mark_is_passed_over() -> None:
    """What some editors put in front of UTF-8 is no part of a line."""
    assert read("jobs.jsonl", '\ufeff{"label": "spam", "training_file": "file-1", "model": "ada", "n_epochs": 2}') == [
        SPAM
    ]


SWEEPS = {
    "jsonl": '{"label": "a", "training_file": "f", "sweep": {"n_epochs": [1, 2], "model": ["ada"]}}',
    "dotted.toml": """
        [[requests]]
        label = "a"
        training_file = "f"
        sweep.n_epochs = [1, 2]
        sweep.model = ["ada"]""",
    "table.toml": """
        [[requests]]
        label = "a"
        training_file = "f"
        [requests.sweep]
        n_epochs = [1, 2]
        model = ["ada"]""",
    "default.toml": """
        [defaults]
        sweep = {n_epochs = [1, 2], model = ["ada"]}
        [[requests]]
        label = "a"
        training_file = "f"
        """,
}


@pytest.mark.parametrize("kind", SWEEPS)
def test_a_sweep_stands_for_a_job_for_each_combination(kind: str) -> None:
    """A request with a sweep is one job for each combination, labelled with its values."""
    name = f"jobs.{kind}"
    assert read(name, SWEEPS[kind]) == [
        Entry("a/n_epochs=1,model=ada", FineTuneRequest(training_file="f", model="ada", n_epochs=1)),
        Entry("a/n_epochs=2,model=ada", FineTuneRequest(training_file="f", model="ada", n_epochs=2)),
    ]
    assert check_manifest(name) == 2


def test_a_sweep_over_files_and_defaults() -> None:
    """Anything can be swept, files among it, and what is swept goes before what is given."""
    text = '{"label": "a", "n_epochs": 9, "sweep": {"training_file": ["file-1", "file-2"], "n_epochs": [1]}}'
    assert [(entry.request.training_file, entry.request.n_epochs) for entry in read("jobs.jsonl", text)] == [
        ("file-1", 1),
        ("file-2", 1),
    ]


PATHS = [
    "a.jsonl",
    "data/a",
    "./a",
    "a.csv",
    "a.JSONL",
    "train.json",
    "a.jsonl.gz",
    "A.TSV",
    "a.txt",
    "a.ndjson",
    "a.zst",
]
IDS = ["file-abc123", "file-1", "jsonl", "a.b", "csv-1", "file.jsonl-1", "\ud800", "\x00", "x" * 5000]


@pytest.mark.parametrize("name", PATHS)
def test_what_looks_like_a_data_file_is_a_path(name: str) -> None:
    """A name with a slash, or with the ending of a data file, is a path: a check says so where there is no file."""
    assert is_local(name)
    expected = f"jobs.jsonl, line 1, training_file: the file {str(Path(name))!r} does not exist"
    if name == "./a":
        expected = "jobs.jsonl, line 1, training_file: the file './a' does not exist"
    assert complaints("jobs.jsonl", json.dumps({"training_file": name})) == expected


@pytest.mark.parametrize("name", IDS)
def test_what_is_an_id(name: str) -> None:
    """Any other name is an id, of whatever length and letters."""
    assert not is_local(name)


@pytest.mark.parametrize("name", ["train", "file-abc123", "train.prompts", ".train", "train.PARQUET"])
def test_what_is_beside_the_manifest_is_a_path(tmp_path: Path, name: str) -> None:
    """The name of a file beside the manifest is a path; the same name is an id where there is no such file."""
    Path("sweeps").mkdir()
    (tmp_path / "sweeps" / name).write_text("{}")
    Path("sweeps/jobs.jsonl").write_text(json.dumps({"training_file": name, "validation_file": "file-1"}))
    assert check_manifest("sweeps/jobs.jsonl") == 1
    (entry,) = read_manifest("sweeps/jobs.jsonl")
    assert (entry.request.training_file, entry.request.validation_file) == (f"sweeps/{name}", "file-1")
    (entry,) = read("jobs.jsonl", json.dumps({"training_file": "train-1"}))
    assert entry.request.training_file == "train-1"


def test_a_folder_may_have_the_name_of_an_id() -> None:
    """A folder beside the manifest is no data, so that its name is still an id."""
    Path("file-1").mkdir()
    assert [entry.request.training_file for entry in read("jobs.jsonl", '{"training_file": "file-1"}')] == ["file-1"]


def test_a_broken_link_is_a_missing_file() -> None:
    """A link to a file that is gone is a path, and not an id."""
    Path("train").symlink_to("gone")
    assert complaints("jobs.jsonl", '{"training_file": "train"}').endswith("the file './train' does not exist")


def test_an_id_with_the_name_of_a_file_elsewhere_is_refused() -> None:
    """A name that is not beside the manifest, but in the current folder, may mean either, and is refused."""
    Path("sweeps").mkdir()
    Path("sweeps/jobs.toml").write_text('[[requests]]\nlabel = "a"\ntraining_file = "train"')
    Path("train").write_text("{}")
    with pytest.raises(ManifestInvalid) as caught:
        check_manifest("sweeps/jobs.toml")
    words = "'train' is a file in the current folder, but not beside the manifest; give its path"
    assert str(caught.value) == f"sweeps/jobs.toml, line 3, training_file: {words}"


@pytest.mark.parametrize("named", ["relative", "absolute"])
def test_paths_are_relative_to_the_manifest(tmp_path: Path, named: str) -> None:
    """A relative path starts at the manifest's folder, wherever the program was started; an absolute one is itself."""
    folder = tmp_path / "sweeps"
    folder.mkdir()
    (folder / "train.jsonl").write_text("{}")
    (tmp_path / "valid.jsonl").write_text("{}")
    files = {"training_file": "train.jsonl", "validation_file": str(tmp_path / "valid.jsonl")}
    (folder / "jobs.jsonl").write_text(json.dumps(files))
    manifest = Path("sweeps/jobs.jsonl") if named == "relative" else folder / "jobs.jsonl"
    assert check_manifest(manifest) == 1
    (entry,) = read_manifest(manifest)
    assert Path(entry.request.training_file).resolve() == folder / "train.jsonl"
    assert entry.request.validation_file == str(tmp_path / "valid.jsonl")


def test_json_lines_are_read_as_they_are_needed() -> None:
    """The first entries come without the rest being read, so that it need not even be written yet."""
    reader, writer = os.pipe()
    os.write(writer, b'{"training_file": "file-1"}\n{"training_file": "file-2"}\n')
    entries = read_manifest(f"/dev/fd/{reader}")
    assert [entry.request.training_file for entry in itertools.islice(entries, 2)] == ["file-1", "file-2"]
    os.write(writer, b'{"training_file": "file-3"}\n')
    os.close(writer)
    assert [entry.request.training_file for entry in entries] == ["file-3"]
    os.close(reader)


def test_what_comes_before_a_wrong_line_is_given() -> None:
    """Reading stops at the first line that is wrong, and says which it is."""
    Path("jobs.jsonl").write_text('{"training_file": "file-1"}\n{"training_file": 5}\n{"training_file": "file-3"}\n')
    entries = read_manifest("jobs.jsonl")
    assert next(entries).request.training_file == "file-1"
    with pytest.raises(ManifestInvalid, match=r"^jobs\.jsonl, line 2, training_file: expected a string, got 5$"):
        next(entries)


def test_a_manifest_that_cannot_be_read() -> None:
    """A manifest that is not there is an error that names it."""
    for call in (check_manifest, lambda path: list(read_manifest(path))):
        with pytest.raises(LocalFileError, match=r"^gone\.jsonl: No such file or directory$"):
            call("gone.jsonl")


NO_MANIFEST = "expected JSON Lines, an object on each line; a manifest in TOML has a name that ends in .toml"
LONG = "x" * (1 << 20)
RANGE = ", ".join(map(str, range(1, 102)))

WRONG = {
    "a number out of range": (
        "jobs.jsonl",
        '{"training_file": "file-1", "n_epochs": 0}',
        ["line 1, n_epochs: expected an integer of at least 1, got 0"],
    ),
    "a wrong type and a slip of the pen": (
        "jobs.jsonl",
        '{"training_file": "file-1", "n_epochs": "4", "epochs": 4}',
        [
            'line 1, n_epochs: expected a whole number, got "4"',
            "line 1, epochs: is not a parameter of this request",
        ],
    ),
    "a file forgotten": ("jobs.jsonl", '\n{"model": "ada"}', ["line 2, training_file: is missing"]),
    "no objects": (
        "jobs.jsonl",
        '{"training_file": "file-1"}\n[1]\n"x"',
        [
            'line 2, request: expected an object such as {"training_file": "spam.jsonl"}',
            'line 3, request: expected an object such as {"training_file": "spam.jsonl"}',
        ],
    ),
    **{
        f"no manifest ({name})": (
            name,
            text,
            [f"line {line}, manifest: {NO_MANIFEST}"],
        )
        for name, text, line in [
            ("jobs.txt", '\n[[requests]]\ntraining_file = "file-1"', 2),
            ("jobs.yaml", "requests:\n- training_file: file-1", 1),
            ("jobs.json", '[{"training_file": "file-1"},\n {"training_file": "file-2"}]', 1),
            ("jobs.bin", "\x7fELF\x02\n\x00\n\x00", 1),
        ]
    },
    "TOML under a name in capitals": (
        "JOBS.TOML",
        '[[requests]]\ntraining_file = "file-1"\nepochs = 1',
        ["line 3, epochs: is not a parameter of this request"],
    ),
    "a label twice": (
        "jobs.jsonl",
        '{"label": "a", "training_file": "file-1"}\n\n{"label": "a", "training_file": "file-2"}',
        ["line 3, label: 'a' is used twice; each job needs its own label"],
    ),
    "a value twice in a sweep": (
        "jobs.jsonl",
        '{"training_file": "file-1", "sweep": {"n_epochs": [4, 4]}}',
        ["line 1, sweep.n_epochs: has the value 4 twice"],
    ),
    "files that are not there": (
        "jobs.jsonl",
        '{"training_file": "missing.jsonl"}\n{"training_file": "file-1", "validation_file": "gone/v.jsonl"}',
        [
            "line 1, training_file: the file 'missing.jsonl' does not exist",
            "line 2, validation_file: the file 'gone/v.jsonl' does not exist",
        ],
    ),
    "a file that is not there, in a sweep": (
        "jobs.jsonl",
        '{"training_file": "missing.jsonl", "sweep": {"n_epochs": [1, 2]}}',
        ["line 1, training_file: the file 'missing.jsonl' does not exist"],
    ),
    "a sweep that is none": (
        "jobs.jsonl",
        '{"training_file": "file-1", "sweep": {"n_epochs": 4}}\n{"training_file": "file-1", "sweep": {"n_epochs": []}}',
        [
            'line 1, sweep: expected lists of values, such as {"n_epochs": [1, 2, 4]}',
            'line 2, sweep: expected lists of values, such as {"n_epochs": [1, 2, 4]}',
        ],
    ),
    "a sweep with wrong values": (
        "jobs.jsonl",
        '{"training_file": "file-1", "sweep": {"n_epochs": [1, 0, -1], "model": ["ada", "curie"]}}',
        [
            "line 1, n_epochs: expected an integer of at least 1, got 0",
            "line 1, n_epochs: expected an integer of at least 1, got -1",
        ],
    ),
    "a name twice": (
        "jobs.jsonl",
        '{"training_file": "file-1", "n_epochs": 1, "n_epochs": 50}\n{"defaults": {"model": "a", "model": "b"}}',
        ["line 1, n_epochs: is given twice; keep one", "line 2, model: is given twice; keep one"],
    ),
    "a name twice in a sweep": (
        "jobs.jsonl",
        '{"training_file": "file-1", "sweep": {"n_epochs": [1], "n_epochs": [2]}}',
        ["line 1, n_epochs: is given twice; keep one"],
    ),
    "a sweep of labels": (
        "jobs.toml",
        '[[requests]]\nlabel = "a"\ntraining_file = "file-1"\nsweep.label = ["b", "c"]',
        ["line 4, sweep.label: is not a parameter; the jobs of a sweep have the request's label and their values"],
    ),
    "a sweep too large": (
        "jobs.jsonl",
        f'{{"training_file": "file-1", "sweep": {{"n_epochs": [{RANGE}], "batch_size": [{RANGE}]}}}}',
        ["line 1, sweep: expands to 10201 jobs; at most 10000 are allowed"],
    ),
    "labels that are no line": (
        "jobs.jsonl",
        '{"label": "", "training_file": "file-1"}\n{"label": "a\\nb", "training_file": "file-1"}',
        ["line 1, label: expected a single line of text", "line 2, label: expected a single line of text"],
    ),
    "a line too long": (
        "jobs.jsonl",
        f'{{"training_file": "{LONG}"}}\n{{"training_file": 1}}',
        ["line 1, request: is longer than 1048576 bytes"],
    ),
    "nothing": ("jobs.jsonl", "", ["line 1, requests: expected at least one request"]),
    "rules that join parameters": (
        "jobs.jsonl",
        '{"training_file": "file-1", "compute_classification_metrics": true}',
        ["line 1, validation_file: is required when compute_classification_metrics is True"],
    ),
    "a field and a request of a table": (
        "jobs.toml",
        '[[requests]]\ntraining_file = "file-1"\nbatch_size = 4\n\n\nn_epochs = 1.5\n\n[[requests]]\nlabel = "x"',
        [
            "line 6, n_epochs: expected a whole number, got 1.5",
            "line 8, training_file: is missing",
        ],
    ),
    "one bracket": (
        "jobs.toml",
        '\n[requests]\ntraining_file = "file-1"',
        ["line 2, requests: expected [[requests]], with two brackets"],
    ),
    "no TOML": (
        "jobs.toml",
        "[[requests]]\ntraining_file = file-1",
        ["line 2, manifest: is not TOML: Invalid value (at line 2, column 17)"],
    ),
    "a stray table": (
        "jobs.toml",
        '[[requests]]\ntraining_file = "file-1"\n[other]',
        ["line 3, other: expected only [defaults] and [[requests]]"],
    ),
    "a sweep in dotted keys": (
        "jobs.toml",
        '[[requests]]\ntraining_file = "file-1"\nsweep.n_epochs = [1, 2]\nsweep.model = "ada"',
        ["line 3, sweep: expected lists of values, such as sweep.n_epochs = [1, 2, 4]"],
    ),
    "a value twice in a sweep of dotted keys": (
        "jobs.toml",
        '[[requests]]\ntraining_file = "file-1"\nsweep.model = ["ada"]\nsweep.n_epochs = [1, 1]',
        ["line 4, sweep.n_epochs: has the value 1 twice"],
    ),
    "a wrong name in a sweep": (
        "jobs.toml",
        '[[requests]]\ntraining_file = "file-1"\nsweep.epochs = [1, 2]',
        ["line 3, epochs: is not a parameter of this request"],
    ),
    "requests that are no tables": (
        "jobs.toml",
        'requests = [1, {training_file = "file-1"}]',
        ["line 1, requests: expected a table of parameters"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_line_and_field(case: str) -> None:
    """A wrong manifest is told everything at once: in each line of the message a file, a line, a field and why."""
    name, text, expected = WRONG[case]
    assert complaints(name, text).splitlines() == [f"{name}, {words}" for words in expected]


def test_broken_json_is_told_in_its_own_line() -> None:
    """A line that is not JSON does not hide what is wrong with the next."""
    first, second = complaints("jobs.jsonl", '{"training_file": "file-1"\n{"training_file": 1}').splitlines()
    assert first.startswith("jobs.jsonl, line 1, request: is not JSON: ")
    assert second == "jobs.jsonl, line 2, training_file: expected a string, got 1"


@pytest.mark.parametrize(
    "line",
    [
        b'{"training_file": "a\tb"}',
        b'{"training_file": "a',
        b'{"training_file" 1}',
        b"{} {}",
        b'{"training_file": NaN}',
    ],
)
def test_broken_json_is_said_in_a_sentence(line: bytes) -> None:
    """Whichever library reads it, the message says what is wrong with a line and at which character of it."""
    (said,) = complaints("jobs.jsonl", line).splitlines()
    assert re.fullmatch(r"jobs\.jsonl, line 1, request: is not JSON: .+( at character \d+|NaN is not JSON)", said)
    assert " at at " not in said
    (said,) = complaints("jobs.jsonl", b'{"training_file": "a\xff"}').splitlines()
    assert said == "jobs.jsonl, line 1, request: is not JSON: byte 21 of the line is not UTF-8"


def test_all_that_is_wrong_with_one_request_is_told_at_once() -> None:
    """A value of a wrong type hides no value out of range, and one value out of range hides no other."""
    text = '{"training_file": "file-1", "n_epochs": 0, "batch_size": 0, "suffix": 5, "model": ""}'
    told = {line.split(": ")[0] for line in complaints("jobs.jsonl", text).splitlines()}
    assert told == {f"jobs.jsonl, line 1, {field}" for field in ("n_epochs", "batch_size", "suffix", "model")}


def test_wrong_defaults_are_told_once_where_they_stand() -> None:
    """What is wrong in the defaults is told with their own line, and not again for each request that takes them."""
    text = '{"defaults": {"n_epochs": "x"}}\n{"training_file": "f"}\n{"training_file": "g"}'
    assert complaints("jobs.jsonl", text) == 'jobs.jsonl, line 1, n_epochs: expected a whole number, got "x"'
    text = '[defaults]\nn_epochs = "x"\n[[requests]]\ntraining_file = "f"\n[[requests]]\ntraining_file = "g"'
    assert complaints("jobs.toml", text) == 'jobs.toml, line 2, n_epochs: expected a whole number, got "x"'


def test_problems_come_in_the_order_of_the_manifest() -> None:
    """Strays at the top of a TOML manifest are told from its first line to its last."""
    names = ["e", "d", "c", "b", "a", "f", "g", "h"]
    text = "".join(f"{name} = 1\n" for name in names) + '[[requests]]\ntraining_file = "file-1"'
    assert [line.split(", ")[2].split(":")[0] for line in complaints("jobs.toml", text).splitlines()] == names


def test_a_missing_file_is_told_at_the_line_of_its_field() -> None:
    """In TOML, a file that is not there is told where it is named, as any other wrong value is."""
    text = '[[requests]]\nlabel = "a"\ntraining_file = "gone.jsonl"'
    assert complaints("jobs.toml", text) == "jobs.toml, line 3, training_file: the file 'gone.jsonl' does not exist"


def test_a_path_stays_one_whatever_folder_it_is_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that only its "./" tells from an id is a path still, of a manifest in the current folder too."""
    monkeypatch.chdir(tmp_path)
    Path("data").write_text("{}")
    Path("jobs.jsonl").write_text('{"training_file": "./data"}')
    (entry,) = read_manifest("jobs.jsonl")
    assert is_local(entry.request.training_file)
    assert Path(entry.request.training_file).read_text() == "{}"


def test_a_folder_is_no_training_file() -> None:
    """A path of something else than a regular file is not said to be missing."""
    assert complaints("jobs.jsonl", '{"training_file": "./"}') == (
        "jobs.jsonl, line 1, training_file: './.' is not a regular file"
    )


def test_a_swept_label_is_a_line_of_text_too() -> None:
    """A value that would break a label into two lines is refused as such a label is."""
    text = '{"training_file": "file-1", "sweep": {"suffix": ["a\\nb"]}}'
    assert complaints("jobs.jsonl", text).startswith("jobs.jsonl, line 1, ")


def test_a_file_name_too_long_for_any_file() -> None:
    """A path that the system does not even look for is a file that is not there."""
    text = json.dumps({"training_file": f"{'a' * 300}.jsonl"})
    assert "line 1, training_file: the file " in complaints("jobs.jsonl", text)


def test_nesting_without_end_is_a_complaint() -> None:
    """A file of brackets alone is not TOML, and no RecursionError."""
    assert complaints("jobs.toml", "x = " + "[" * 20_000).startswith("jobs.toml, line 1, manifest: is not TOML")


def test_labels_are_looked_for_only_if_some_are_named(tmp_path: Path) -> None:
    """A manifest, which may be very long, is not read once more for labels that nobody named."""
    _check_labels(tmp_path / "there is none.jsonl", ())


def check_only_complains(path: Path) -> None:
    """Read and check whatever this is: entries come of it, or `ManifestInvalid`."""
    problems: tuple[Problem, ...] = ()
    count = 0
    try:
        count = check_manifest(path)
    except ManifestInvalid as error:
        problems = error.problems
    assert bool(count) != bool(problems)
    assert all(problem.line >= 1 and problem.field and problem.words for problem in problems)
    assert problems or len(list(read_manifest(path))) == count


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("a.jsonl")
NAMES_INSIDE = st.sampled_from(["n_epochs", "model"]) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES_INSIDE, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["training_file", "label", "sweep", "defaults", "n_epochs", "suffix"]) | st.text(max_size=5)
TABLES = st.dictionaries(NAMES, VALUES, max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manifests")


@pytest.mark.parametrize("suffix", ["jsonl", "toml"])
@given(content=st.binary(max_size=200))
@example(b"")
@example(b"\xff\xfe")
@example(b"\n\n\xef\xbb\xbf")
@example(b'requests = "x"')
@example(b"requests = [[[]]]")
@example(b"[[requests]]\nsweep = {n_epochs = [99999999999999999999]}\ntraining_file = 1979-05-27")
def test_any_bytes(folder: Path, suffix: str, content: bytes) -> None:
    """Whatever a file holds, a check of it ends in a number of entries, or in complaints."""
    path = folder / f"bytes.{suffix}"
    path.write_bytes(content)
    check_only_complains(path)


@given(tables=st.lists(TABLES | VALUES, max_size=4))
def test_any_json(folder: Path, tables: list[object]) -> None:
    """Whatever JSON a manifest holds, a check of it ends in a number of entries, or in complaints."""
    path = folder / "any.jsonl"
    path.write_text("\n".join(map(json.dumps, tables)), errors="replace")
    check_only_complains(path)


def toml(value: object) -> str:
    """A value as TOML writes it; None, which it does not know, as a date."""
    match value:
        case None:
            return "1979-05-27T07:32:00Z"
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return f"{{{', '.join(f'{json.dumps(key)} = {toml(item)}' for key, item in value.items())}}}"
        case float():
            return repr(value)
    return json.dumps(value)


@given(defaults=VALUES, requests=st.lists(TABLES, max_size=3) | VALUES)
def test_any_toml(folder: Path, defaults: object, requests: object) -> None:
    """Whatever TOML a manifest holds, a check of it ends in a number of entries, or in complaints."""
    path = folder / "any.toml"
    path.write_text(f"defaults = {toml(defaults)}\nrequests = {toml(requests)}\n", errors="replace")
    check_only_complains(path)
