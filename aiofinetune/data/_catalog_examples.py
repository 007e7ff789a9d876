"""A small file for each check, that has its problem. A test checks each of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from typing import Final

import attrs


@attrs.frozen
class Example:
    """A file that has a problem.

    Args:
        content: What is in the file.
        name: What the file is called.
    """

    content: bytes
    name: str = "train.jsonl"

    def shown(self) -> list[str]:
        """Return the file as lines of text, the last of which has the problem; long lines are cut."""
        if self.name.endswith(".gz"):
            return [self.name]
        text = self.content.decode(errors="backslashreplace")
        lines = [_cut(line.encode("unicode_escape").decode().replace("\\\\", "\\")) for line in text.splitlines()]
        before = len(lines) - _MAX_LINES
        return lines if before <= 0 else [f"… {before} lines", *lines[-_MAX_LINES:]]


_MAX_LINES: Final = 4
_MAX_WIDTH: Final = 110


def _cut(line: str) -> str:
    return line if len(line) <= _MAX_WIDTH else f"{line[: _MAX_WIDTH - 20]} … {line[-17:]}"


def _pairs(*texts: tuple[object, object]) -> bytes:
    rows = ({"prompt": prompt, "completion": completion} for prompt, completion in texts)
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _chat(*messages: Mapping[str, object]) -> bytes:
    return json.dumps({"messages": messages}).encode() + b"\n"


_GOOD: Final = _pairs(("Is the sky blue? ->", " yes"))
_USER: Final = {"role": "user", "content": "Is the sky blue?"}
_ASSISTANT: Final = {"role": "assistant", "content": "Yes."}
_QUESTIONS: Final = [(f"Question {number}", f" {number} is the answer to {number}") for number in range(1, 21)]
_REVIEWS: Final = [(f"review {number} ->", " good" if number % 2 else " bad") for number in range(1, 21)]

EXAMPLES: Final = {
    # The file
    "unreadable-file": Example(gzip.compress(_GOOD * 9, mtime=0)[:-9], "train.jsonl.gz"),
    "format": Example(b"prompt,completion\nIs the sky blue? ->, yes\n", "train.csv"),
    "compressed": Example(gzip.compress(_GOOD, mtime=0), "train.jsonl.gz"),
    "encoding": Example(_GOOD.decode().encode("utf-16")),
    "byte-order-mark": Example(b"\xef\xbb\xbf" + _GOOD),
    "no-rows": Example(b"\n"),
    "shape": Example(_chat(_USER, _ASSISTANT)),
    # Lines
    "blank-line": Example(_GOOD + b" \n"),
    "line-too-long": Example(_pairs(("long " * (1 << 18), " yes"))),
    "undecodable": Example(b'{"prompt": "caf\xe9 ->", "completion": " yes"}\n'),
    "not-json": Example(b"{'prompt': 'Is the sky blue? ->', 'completion': ' yes'}\n"),
    "not-object": Example(b'["Is the sky blue? ->", " yes"]\n'),
    "not-csv": Example(b'prompt,completion\n"blue" sky?,"yes"\n"blue"sky,yes\n', "train.csv"),
    "odd-columns": Example(b"prompt,completion\nIs the sky blue, or grey?, yes\n", "train.csv"),
    "duplicate-key": Example(b'{"prompt": "Is it blue? ->", "completion": " yes", "completion": " no"}\n'),
    "mixed-shapes": Example(_GOOD + _chat(_USER, _ASSISTANT)),
    # Fields
    "missing-field": Example(b'{"prompt": "Is the sky blue? ->"}\n'),
    "field-name": Example(b'{"Prompt": "Is the sky blue? ->", "completion": " yes"}\n'),
    "extra-field": Example(b'{"prompt": "Is the sky blue? ->", "completion": " yes", "id": 17}\n'),
    "not-a-number": Example(b'{"prompt": "How many? ->", "completion": NaN}\n'),
    "null-value": Example(_pairs(("Is the sky blue? ->", None))),
    "not-text": Example(_pairs(("How many? ->", 5))),
    "nested-value": Example(_pairs((["Is the sky blue?"], " yes"))),
    "lone-surrogate": Example(_pairs(("Is it \ud83d? ->", " yes"))),
    # Texts
    "empty-completion": Example(_pairs(("Is the sky blue? ->", ""))),
    "blank-completion": Example(_pairs(("Is the sky blue? ->", " "))),
    "empty-prompt": Example(_GOOD + _pairs(("", " yes"))),
    "completion-too-long": Example(_pairs(("Tell a story ->", " once" * 1024))),
    "too-many-tokens": Example(_pairs(("word " * 9000 + "->", " yes"))),
    "duplicate": Example(_GOOD + _GOOD),
    "conflicting-completions": Example(_pairs(*_REVIEWS, ("review 20 ->", " good"))),
    "secret": Example(_pairs(("My key is sk-abcdefghij0123456789abcd ->", " thanks"))),
    "card-number": Example(_pairs(("Pay with 4111 1111 1111 1111 ->", " paid"))),
    "email-address": Example(_pairs(("Ask jo.doe@mail.org ->", " asked"))),
    "upper-case": Example(_pairs(("IS THE SKY BLUE? ->", " YES"), ("IS THE SNOW WHITE? ->", " YES"))),
    "prompt-prefix": Example(_pairs(("Is this true: snow is white ->", " yes"), ("Is this true: 1 > 2 ->", " no"))),
    "completion-prefix": Example(_pairs(("Is the sky blue? ->", "Answer: yes"), ("Is it green? ->", "Answer: no"))),
    "no-separator": Example(_pairs(*_QUESTIONS)),
    "separator-inside": Example(_pairs(*_REVIEWS, ("review 21 -> stars ->", " good"))),
    "no-leading-space": Example(_pairs(("Is the sky blue? ->", "yes"))),
    "no-stop": Example(_pairs(*_QUESTIONS)),
    "stop-inside": Example(
        _pairs(*((f"a {n} ->", f" it is {n} END") for n in range(9)), ("b ->", " an END of it END"))
    ),
    # All rows together
    "few-examples": Example(_GOOD),
    "too-few-examples": Example(_chat(_USER, _ASSISTANT)),
    "few-in-class": Example(_pairs(*_REVIEWS)),
    "imbalance": Example(_pairs(*((f"review {n} ->", " good" if n < 10 else " bad") for n in range(11)))),
    "one-completion": Example(_pairs(("Is the sky blue? ->", " yes"), ("Is snow white? ->", " yes"))),
    "class-prefix": Example(_pairs(*((f"word {n} ->", " noun" if n % 2 else " nouns") for n in range(9)))),
    # Chat
    "bad-message": Example(b'{"messages": ["Is the sky blue?", "Yes."]}\n'),
    "unknown-role": Example(_chat({"role": "human", "content": "Is the sky blue?"}, _ASSISTANT)),
    "empty-content": Example(_chat({"role": "user", "content": ""}, _ASSISTANT)),
    "last-not-assistant": Example(_chat(_ASSISTANT, _USER)),
    "bad-weight": Example(_chat(_USER, {**_ASSISTANT, "weight": 2})),
}
"""An example of each check by its id, but for those that one small file cannot show."""
