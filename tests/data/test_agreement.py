"""A check says what the embedded server's trainer does: neither more nor less is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings

from aiofinetune.data import EMBEDDED, FINE_TUNES, JOBS, Rules, check_file
from aiofinetune.local._engines.training_files import COMPLETION_BYTES, TrainingError, read_file
from aiofinetune.local._store.files import MAX_FILE_BYTES
from tests.data.files import CHAT_FILES, ODD_FILES

PAIR = b'{"prompt": "a", "completion": "b"}\n'
USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
TOOL_CALL: dict[str, object] = {"role": "assistant", "content": None, "tool_calls": [{}]}
TOOL = {"role": "tool", "content": "5", "tool_call_id": "c"}


def chat(*messages: object, **beside: object) -> bytes:
    """A line with a conversation."""
    return json.dumps({"messages": messages, **beside}).encode() + b"\n"


@example(b'{"prompt": "a", "completion": "b", "completion": "c"}')
@example(b'{"prompt": "a", "completion": NaN}')
@example(b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}')
@example(b'{"prompt": "a", "completion": "b"}\n\n\x0c\n')
@example(b'{"prompt": "\\ud83d", "completion": "b"}')
@example(b'{"prompt": "a", "completion": "%b"}' % (b"b" * 4096))
@example(b'{"prompt": "a", "completion": "%b"}' % (b"b" * 4095))
@example(b'{"prompt": "a%b", "completion": "b"}' % (b" " * (1 << 20)))
@example(b'{"prompt": %b, "completion": "b"}' % (b"[" * 200 + b"]" * 200))
@example(b'{"prompt": 1%b, "completion": "b"}' % (b"0" * 5000))
@example(b"prompt,completion\na,b\n")
@example('{"prompt": "a", "completion": "b"}'.encode("utf-16"))
@example(b'[\n{"prompt": "a", "completion": "b"}\n]')
@example(chat(USER, ASSISTANT))
@example(chat(USER, ASSISTANT | {"content": "b" * 4094}))
@example(chat(USER, ASSISTANT | {"content": "b" * 4095}))
@example(chat(USER, ASSISTANT | {"content": ""}, ASSISTANT))
@example(chat(USER | {"content": ""}, ASSISTANT | {"content": "", "weight": 0}, ASSISTANT))
@example(chat(ASSISTANT | {"weight": 0}))
@example(chat(ASSISTANT | {"weight": 1.0}))
@example(chat(USER | {"weight": 1}, ASSISTANT))
@example(chat(USER, ASSISTANT | {"content": [{"type": "text", "text": "\ud800"}]}))
@example(chat(USER, ASSISTANT, prompt=None, completion=None))
@example(chat(USER, ASSISTANT, prompt="a", completion="b"))
@example(chat(USER, ASSISTANT) + b"\n" + b'{"prompt": "a", "completion": "b"}')
@example(b'{"prompt": "a", "completion": "b"}\n' + chat(USER, ASSISTANT))
@example(b'{"messages": [{"role": "assistant", "content": "a", "weight": 0, "weight": 1}]}')
@example(b'{"messages": [{"role": "assistant", "content": "a"}], "tools": NaN}')
@example(b'{"messages": %b}' % (b"[" * 200 + b"]" * 200))
@settings(max_examples=100)
@given(ODD_FILES | CHAT_FILES)
def test_an_error_is_what_the_trainer_refuses(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """For any bytes at all, a file has an error exactly if the trainer does not take it."""
    path = _file(tmp_path_factory, content)
    try:
        list(read_file(str(path), "training"))
    except TrainingError as error:
        refusal = str(error)
    else:
        refusal = ""
    report = check_file(path, rules=EMBEDDED)
    assert report.is_accepted == (not refusal), (refusal, report.findings)


def test_the_limits_are_the_embedded_servers() -> None:
    """The rules state the server's own sizes."""
    assert EMBEDDED.max_completion_bytes == COMPLETION_BYTES
    assert EMBEDDED.max_file_bytes == MAX_FILE_BYTES


@pytest.mark.parametrize(
    ("rules", "content", "is_accepted"),
    [
        (FINE_TUNES, PAIR * 9, True),
        (FINE_TUNES, b'{"prompt": "a", "completion": "%b"}\n' % (b"b" * 5000), True),
        (FINE_TUNES, chat(USER, ASSISTANT), False),
        (JOBS, chat(USER, ASSISTANT) * 10, True),
        (JOBS, chat(USER, ASSISTANT) * 9, False),
        (JOBS, chat(USER, TOOL_CALL, TOOL, ASSISTANT, tools=[{}]) * 10, True),
        (JOBS, chat(USER | {"content": ""}, ASSISTANT) * 10, False),
        (JOBS, PAIR * 10, False),
    ],
)
def test_what_the_services_take(tmp_path: Path, rules: Rules, content: bytes, *, is_accepted: bool) -> None:
    """The reference takes pairs, and OpenAI's jobs at least ten conversations, with tools too."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    report = check_file(path, rules=rules)
    assert report.is_accepted == is_accepted, report.findings


def _file(factory: pytest.TempPathFactory, content: bytes) -> Path:
    path = factory.getbasetemp() / "agreement.jsonl"
    path.write_bytes(content)
    return path
