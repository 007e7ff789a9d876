"""A check says what the embedded server's trainer does: neither more nor less is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings

from aiofinetune.data import FINE_TUNES, check_file
from aiofinetune.local._engines.model import COMPLETION_BYTES
from aiofinetune.local._engines.training import TrainingError, read_texts
from aiofinetune.local._store.files import MAX_FILE_BYTES
from tests.data.files import ODD_FILES


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
@settings(max_examples=60)
@given(ODD_FILES)
def test_an_error_is_what_the_trainer_refuses(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """For any bytes at all, a file has an error exactly if the trainer does not take it."""
    path = _file(tmp_path_factory, content)
    try:
        read_texts(str(path), "training")
    except TrainingError as error:
        refusal = str(error)
    else:
        refusal = ""
    report = check_file(path, rules=FINE_TUNES)
    assert report.is_accepted == (not refusal), (refusal, report.findings)


def test_the_limits_are_the_embedded_servers() -> None:
    """The rules state the server's own sizes."""
    assert FINE_TUNES.max_completion_bytes == COMPLETION_BYTES
    assert FINE_TUNES.max_file_bytes == MAX_FILE_BYTES


def _file(factory: pytest.TempPathFactory, content: bytes) -> Path:
    path = factory.getbasetemp() / "agreement.jsonl"
    path.write_bytes(content)
    return path
