"""Each check by an example of what it finds, and by one of what it lets pass."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofinetune.data import CHECKS, EMBEDDED, FINE_TUNES, JOBS, Rules, Severity, _catalog_examples, check_file
from aiofinetune.errors import DatasetError
from tests.data.files import counts, pairs, write

GOOD = b'{"prompt": "a ->", "completion": " b"}\n'


def chat(*messages: object) -> bytes:
    return json.dumps({"messages": messages}).encode() + b"\n"


def lines(*texts: tuple[str, str]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in pairs(*texts))


USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SENTENCES = [(f"question {n}", f" {n} words {n}") for n in range(20)]
CLASSES = [(f"text {n} ->", " yes" if n % 2 else " no") for n in range(20)]

EXAMPLES = [
    # check, file, what it finds, the line of the first place and its field
    ("unreadable-file", "a.jsonl.gz", gzip.compress(GOOD * 9)[:-9], None, None),
    ("format", "a.csv", b"prompt,completion\na,b\n", None, None),
    ("compressed", "a.jsonl.gz", gzip.compress(GOOD), None, None),
    ("encoding", "a.jsonl", GOOD.decode().encode("utf-16"), None, None),
    ("byte-order-mark", "a.jsonl", b"\xef\xbb\xbf" + GOOD, None, None),
    ("no-rows", "a.jsonl", b"\n", None, None),
    ("shape", "a.jsonl", chat(USER, ASSISTANT), None, None),
    ("blank-line", "a.jsonl", GOOD + b" \n" + GOOD, 2, None),
    ("line-too-long", "a.jsonl", GOOD + b" " * (1 << 20) + GOOD, 2, None),
    ("undecodable", "a.jsonl", GOOD + b'{"prompt": "caf\xe9", "completion": "b"}', 2, None),
    ("not-json", "a.jsonl", GOOD + b"{'prompt': 'a'}\n", 2, None),
    ("not-object", "a.jsonl", GOOD + b'["a", "b"]\n', 2, None),
    ("not-csv", "a.csv", b'prompt,completion\n"a\nb",c\n"d"e,f\n', 4, None),
    ("odd-columns", "a.csv", b"prompt,completion\na,b\nc, d, e\n", 3, None),
    ("duplicate-key", "a.jsonl", b'{"prompt": "a", "completion": "b", "prompt": "c"}', 1, "prompt"),
    ("mixed-shapes", "a.jsonl", GOOD + chat(USER, ASSISTANT), 2, None),
    ("missing-field", "a.jsonl", GOOD + b'{"prompt": "a"}', 2, "completion"),
    ("field-name", "a.jsonl", b'{"Prompt": "a", "completion": "b"}', 1, "Prompt"),
    ("extra-field", "a.jsonl", b'{"prompt": "a", "completion": "b", "id": 1}', 1, None),
    ("not-a-number", "a.jsonl", b'{"prompt": "a", "completion": NaN}', 1, None),
    ("null-value", "a.jsonl", b'{"prompt": null, "completion": "b"}', 1, "prompt"),
    ("not-text", "a.jsonl", b'{"prompt": "a", "completion": 5}', 1, "completion"),
    ("nested-value", "a.jsonl", b'{"prompt": ["a"], "completion": "b"}', 1, "prompt"),
    ("lone-surrogate", "a.jsonl", b'{"prompt": "\\ud83d", "completion": "b"}', 1, None),
    ("empty-completion", "a.jsonl", GOOD + lines(("a", "")), 2, "completion"),
    ("blank-completion", "a.jsonl", GOOD + lines(("a", " \n")), 2, "completion"),
    ("empty-prompt", "a.jsonl", GOOD + lines(("", "b")), 2, "prompt"),
    ("completion-too-long", "a.jsonl", GOOD + lines(("a", "b" * 4096)), 2, "completion"),
    ("too-many-tokens", "a.jsonl", GOOD + lines(("a" * 9000, "b")), 2, None),
    ("duplicate", "a.jsonl", GOOD + lines(("c", "d")) + GOOD, 3, None),
    ("conflicting-completions", "a.jsonl", lines(*CLASSES, ("text 3 ->", " no")), 21, None),
    ("secret", "a.jsonl", lines(("my key is sk-abcdefghij0123456789abcd", "b")), 1, "prompt"),
    ("card-number", "a.jsonl", lines(("a", "pay with 4111 1111 1111 1111")), 1, "completion"),
    ("email-address", "a.jsonl", lines(("ask jo.doe@mail.org", "b")), 1, "prompt"),
    ("upper-case", "a.jsonl", lines(*((f"SHOUTING TEXT {n}", f" b{n}") for n in range(3))), None, "prompt"),
    ("prompt-prefix", "a.jsonl", lines(*((f"Tell me the answer: {n}", f"{n}") for n in range(3))), None, "prompt"),
    ("completion-prefix", "a.jsonl", lines(*((f"{n}", f"Answer: {n}") for n in range(3))), None, "completion"),
    ("no-separator", "a.jsonl", lines(*SENTENCES), None, "prompt"),
    ("separator-inside", "a.jsonl", lines(*CLASSES, ("a -> b ->", " yes")), 21, "prompt"),
    ("no-leading-space", "a.jsonl", GOOD + lines(("a", "b")), 2, "completion"),
    ("no-stop", "a.jsonl", lines(*SENTENCES), None, "completion"),
    (
        "stop-inside",
        "a.jsonl",
        lines(*((f"a{n}", f" b{n} END") for n in range(9)), ("a", " b END c END")),
        10,
        "completion",
    ),
    ("few-examples", "a.jsonl", GOOD, None, None),
    ("few-in-class", "a.jsonl", lines(*CLASSES), None, "completion"),
    ("imbalance", "a.jsonl", lines(*((f"a{n}", " yes" if n else " no") for n in range(11))), None, "completion"),
    ("one-completion", "a.jsonl", lines(("a", " b"), ("c", " b")), None, "completion"),
    ("class-prefix", "a.jsonl", lines(*((f"a{n}", " b" if n % 2 else " bc") for n in range(9))), None, "completion"),
    ("bad-message", "a.jsonl", chat(USER, "Hello"), 1, "messages[1]"),
    ("unknown-role", "a.jsonl", chat({"role": "bot", "content": "x"}, ASSISTANT), 1, "messages[0].role"),
    ("empty-content", "a.jsonl", chat({"role": "user", "content": ""}, ASSISTANT), 1, "messages[0].content"),
    ("last-not-assistant", "a.jsonl", chat(ASSISTANT, USER), 1, "messages[1].role"),
    ("bad-weight", "a.jsonl", chat(USER, {**ASSISTANT, "weight": 2}), 1, "messages[1].weight"),
    ("too-few-examples", "a.jsonl", chat(USER, ASSISTANT) * 9, None, None),
]
ELSEWHERE = {"file-too-large", "shared-rows", "more-sheets"}


@pytest.mark.parametrize(("check", "name", "content", "line", "field"), EXAMPLES, ids=[row[0] for row in EXAMPLES])
def test_a_check_finds_its_example(
    tmp_path: Path, check: str, name: str, content: bytes, line: int | None, field: str | None
) -> None:
    """A check finds its example, and names the line and the field."""
    path = tmp_path / name
    path.write_bytes(content)
    is_chat = check in ("bad-message", "unknown-role", "empty-content", "last-not-assistant", "bad-weight")
    rules = JOBS if is_chat or check == "too-few-examples" else FINE_TUNES
    report = check_file(path, rules=EMBEDDED if check == "completion-too-long" else rules)
    (finding,) = [finding for finding in report.findings if finding.check == check]
    assert (finding.severity, finding.says) == (CHECKS[check].severity, CHECKS[check].says)
    place = finding.places[0]
    assert (place.file, place.line, place.field) == (str(path), line, field)


def test_each_check_has_an_example() -> None:
    """No check is without a test."""
    assert {row[0] for row in EXAMPLES} | ELSEWHERE == set(CHECKS)


def test_good_rows_have_no_problem(tmp_path: Path) -> None:
    """Two balanced classes with separators, and free text with stop sequences, have nothing to complain about."""
    classes = [(f"text number {n} of many ->", " yes" if n % 2 else " no") for n in range(300)]
    report = check_file(write(tmp_path, pairs(*classes)), rules=FINE_TUNES)
    assert report.findings == ()
    assert report.task is not None
    assert (report.task.kind, report.task.classes) == ("classification", {" no": 150, " yes": 150})
    texts = [(f"{n} is the number ->", f" {n} in words\n") for n in range(300)]
    report = check_file(write(tmp_path, pairs(*texts)), rules=FINE_TUNES)
    assert report.findings == ()
    assert (report.separator, report.stop) == (" ->", "\n")
    messages = [{"messages": [USER | {"content": f"Hi {n}"}, ASSISTANT]} for n in range(300)]
    assert check_file(write(tmp_path, messages)).findings == ()


def test_a_report_counts_all_rows_and_keeps_three_places(tmp_path: Path) -> None:
    """Each row is counted, and only the first three are kept; their texts are cut."""
    rows = pairs(*((f"{n}" + "x" * 200, "") for n in range(50)))
    report = check_file(write(tmp_path, rows))
    (finding,) = [finding for finding in report.findings if finding.check == "empty-completion"]
    assert (finding.count, [place.line for place in finding.places]) == (50, [1, 2, 3])
    assert all(len(place.text) <= 80 for place in finding.places)
    with pytest.raises(DatasetError, match=r"line 1: The completion is empty.*50 rows") as caught:
        report.raise_for_errors()
    assert caught.value.line == 1


def test_the_worst_comes_first(tmp_path: Path) -> None:
    """Findings are in the order of their severity, and then of their rows."""
    report = check_file(write(tmp_path, pairs(("a", ""), ("b", "c"), ("b", "c"), ("", ""))))
    order = [list(Severity).index(finding.severity) for finding in report.findings]
    assert order == sorted(order)
    assert report.findings[0].check == "empty-completion"


def test_severities_depend_on_the_rules(tmp_path: Path) -> None:
    """What one service refuses, another takes."""
    path = write(tmp_path, [{"prompt": "a ->", "completion": " b", "id": 1}])
    assert not check_file(path, rules=FINE_TUNES).is_accepted
    lenient = attrs.evolve(FINE_TUNES, severities={"extra-field": Severity.NOTE, "few-examples": None, "no-stop": None})
    report = check_file(path, rules=lenient)
    assert report.is_accepted
    assert counts(report) == {"extra-field": 1}


def test_the_rules_follow_the_shape_if_none_are_given(tmp_path: Path) -> None:
    """Messages and preference pairs are checked by the rules of the API that takes them."""
    messages = write(tmp_path, [{"messages": [USER, ASSISTANT]}] * 9)
    assert counts(check_file(messages)) == {"too-few-examples": 9 // 9, "duplicate": 8}
    row = {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT], "non_preferred_output": [USER]}
    report = check_file(write(tmp_path, [row | {"id": n} for n in range(100)]))
    assert (report.shape, report.findings) == ("preferences", ())


def test_a_file_over_the_limit_is_an_error(tmp_path: Path) -> None:
    """A file larger than the service allows is found by its size."""
    rules: Rules = attrs.evolve(FINE_TUNES, max_file_bytes=10)
    assert "file-too-large" in counts(check_file(write(tmp_path, pairs(("a", "b"))), rules=rules))


def test_rows_shared_with_the_validation_file_are_found(tmp_path: Path) -> None:
    """A prompt of both files is found, also where only space or case differ."""
    training = write(tmp_path, pairs(("Is it  red ->", " yes"), ("blue ->", " no")))
    validation = write(tmp_path, pairs(("green ->", " no"), (" is it RED ->", " no")), "validation.jsonl")
    report = check_file(training, validation=validation)
    (finding,) = [finding for finding in report.findings if finding.check == "shared-rows"]
    assert (finding.count, finding.places[0].file, finding.places[0].line) == (1, str(validation), 2)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("order 4111 1111 1111 1112", False),  # a wrong check digit
        ("5555555555554444", True),
        ("3782-822463-10005", True),
        ("0000 0000 0000 0000", False),
        ("timestamp 1609459200000", False),
        ("isbn 978-3-16-148410-0", False),
        ("0.4111111111111111", False),
        ("4111111111111111.5", False),
        ("0x4073391526327eb0", False),  # a float in hexadecimal
        ("0x4111111111111111", False),
        ("card 4111111111111111, please", True),
    ],
)
def test_only_valid_card_numbers_are_found(tmp_path: Path, text: str, found: object) -> None:
    """Digits are a card's number if the issuer, the length and the check digit are right."""
    assert ("card-number" in counts(check_file(write(tmp_path, pairs(("a", text)))))) == found


@pytest.mark.parametrize(
    "text",
    [
        "risk-averse-and-other-long-words-2024",
        "a@b",
        "password: forgotten",
        "password = self._decode_base64(arg)",
        "password = options_2024[0]",
        "jo@example.com",
        "sd_IN@devanagari.UTF-8",
    ],
)
def test_ordinary_words_are_not_private(tmp_path: Path, text: str) -> None:
    """Words that look a little like secrets are none."""
    found = counts(check_file(write(tmp_path, pairs(("a", text)))))
    assert not {"secret", "email-address", "card-number"} & set(found)


def test_private_texts_are_hidden_in_the_report(tmp_path: Path) -> None:
    """A report, which may be in a log, does not show what it found."""
    key = "sk-abcdefghij0123456789abcd"
    report = check_file(write(tmp_path, pairs((f"{key} 4111111111111111 jo.doe@mail.org ->", " b"))))
    shown = str([finding for finding in report.findings if finding.check in ("secret", "card-number", "email-address")])
    assert len(report.findings) > 2
    assert not [text for text in (key, "4111111111111111", "jo.doe") if text in shown]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), max_size=30))
def test_duplicates_and_conflicts_are_counted_exactly(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]]
) -> None:
    """A duplicate is a row that equals an earlier one, whatever is between them."""
    path = write(tmp_path_factory.getbasetemp(), pairs(*texts), "repeats.jsonl")
    assert counts(check_file(path)).get("duplicate", 0) == len(texts) - len(set(texts))


@pytest.mark.parametrize("check", [check for check in CHECKS if check not in ELSEWHERE])
def test_an_example_that_users_see_has_its_problem(tmp_path: Path, check: str) -> None:
    """What `data checks` shows as the example of a check is found by that check."""
    example = _catalog_examples.EXAMPLES[check]
    path = tmp_path / example.name
    path.write_bytes(example.content)
    rules = {"completion-too-long": EMBEDDED, "shape": FINE_TUNES, "line-too-long": FINE_TUNES}.get(check)
    assert check in counts(check_file(path, rules=rules))
