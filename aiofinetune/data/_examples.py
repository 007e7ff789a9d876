"""Read training files, which are JSON Lines with an object `{"prompt": ..., "completion": ...}` on each line.

Instead, every line may be a conversation, `{"messages": [...]}`, which `aiofinetune.data._chat` turns into such
examples.

Source: the reference's guide to fine-tuning, "Prepare training data".
"""

import json
from collections.abc import Iterable, Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Final

import attrs

from aiofinetune.data import _chat
from aiofinetune.errors import DatasetError

# The longest line that is read, in bytes. It is many times longer than any model allows, and keeps a file without line
# breaks from being read into memory.
MAX_LINE_BYTES: Final = 1024 * 1024

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@attrs.frozen
class Example:
    """One line of a training file: a prompt, and the completion that the model should learn."""

    prompt: str
    completion: str
    messages: tuple[_chat.Message, ...] = attrs.field(default=(), eq=False, repr=False)
    """The messages that these are made of, if the line is a conversation; the last one is the completion."""


def read_examples(path: str | PathLike[str], max_completion_bytes: int | None = None) -> Iterator[Example]:
    """Read a training file one example at a time, in constant memory.

    Blank lines and a byte order mark at the start are skipped.

    Args:
        path: The file.
        max_completion_bytes: The length of the longest completion in UTF-8; None for no limit.

    Raises:
        DatasetError: A line is not an example, or the file holds none; a line is named by its number, starting at 1.
        OSError: The file cannot be read.
    """
    name, is_chat = fspath(path), None
    for number, line in _lines(name):
        try:
            record = _parse_json(line)
            examples = _examples(record, is_chat)
            _check_lengths(examples, max_completion_bytes)
        except ValueError as error:
            raise DatasetError(name, number, str(error)) from error
        is_chat = _is_conversation(record)
        yield from examples
    if is_chat is None:
        raise DatasetError(name, None, "no example was found; at least one line is expected")


def parse_examples(line: bytes) -> tuple[Example, ...]:
    """Read one line of a training file: an example, or a conversation, which may contain several.

    Raises:
        ValueError: The line is neither; the message says what was found and what is expected.
    """
    return _examples(_parse_json(line))


def parse_example(line: bytes) -> Example:
    """Read one line of a training file that has a prompt and a completion.

    Raises:
        ValueError: The line is not an example; the message says what was found and what is expected.
    """
    return _example(_parse_json(line))


def _is_conversation(record: object) -> bool:
    return isinstance(record, dict) and "messages" in record


def _examples(record: object, is_chat: bool | None = None) -> tuple[Example, ...]:  # noqa: FBT001  # of a single use
    if is_chat not in (None, _is_conversation(record)):
        raise ValueError("messages are expected on all lines or on none, and the lines before it are different")
    if not isinstance(record, dict) or not _is_conversation(record):
        return (_example(record),)
    return tuple(Example(*_chat.pair(turns), turns) for turns in _chat.learned(_chat.read_row(record)))


def _check_lengths(examples: Iterable[Example], most: int | None) -> None:
    for example in examples:
        length = len(example.completion.encode())
        if most is not None and length > most:
            raise ValueError(f"the completion has {length:,} bytes; at most {most:,} are expected")


def _example(record: object) -> Example:
    if not isinstance(record, dict):
        raise ValueError(f"{_kind(record)} was found; an object with the keys 'prompt' and 'completion' is expected")
    for key in ("prompt", "completion"):
        if key not in record:
            raise ValueError(f"the key {key!r} is missing; exactly 'prompt' and 'completion' are expected")
    if extra := sorted(record.keys() - {"prompt", "completion"}):
        keys = f"key{'s' * (len(extra) > 1)} {', '.join(map(ascii, extra))}"
        raise ValueError(f"unknown {keys}; exactly 'prompt' and 'completion' are expected")
    example = Example(_text(record, "prompt"), _text(record, "completion"))
    if not example.completion:
        raise ValueError("the completion is empty; at least one character is expected")
    return example


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    with Path(path).open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if len(line) > MAX_LINE_BYTES:
                raise DatasetError(path, number, f"the line is too long; at most {MAX_LINE_BYTES:,} bytes are allowed")
            if line.strip():
                yield number, line


def _parse_json(line: bytes) -> object:
    try:
        # Without the line break, because a string that is not closed would run into it, and the error would be about a
        # control character.
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} of the line is not UTF-8; text in UTF-8 is expected") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # Some of the decoder's messages already end in "at" or "starting at", which is added below.
        reason = error.msg.removesuffix(" at").removesuffix(" starting")
        reason = reason[:1].lower() + reason[1:]
        raise ValueError(
            f"the line is not JSON: {reason} at character {error.pos + 1}; one object on each line is expected"
        ) from error
    except (ValueError, RecursionError) as error:  # A number of thousands of digits; brackets nested without end.
        raise ValueError("a value is too large or nested too deeply; two strings are expected") from error


def _text(record: dict[str, object], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"the {key} is {_kind(value)}; a string is expected")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        place = error.start + 1
        raise ValueError(f"character {place} of the {key} is half a surrogate pair; valid text is expected") from error
    return value


def _kind(value: object) -> str:
    """Return the name of the JSON type of `value`."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"
