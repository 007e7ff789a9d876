"""Check rows of chat messages, and recognise preference pairs.

The rules are the jobs API's: the guide to supervised fine-tuning, "Formatting your data".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from aiofinetune.data._duplicates import NO_DIGEST, DigestStore, Repeats, digest
from aiofinetune.data._json_rows import Trouble, dumps
from aiofinetune.data._private import find_private, has_private
from aiofinetune.data._report import SHOWN_PLACES, Place, Task
from aiofinetune.data._rules import MESSAGES, Rules
from aiofinetune.data._tally import Tally
from aiofinetune.data._tokens import Counter as TokenCounter

ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_TOKENS_PER_MESSAGE: Final = 3
_OTHER_CONTENT: Final = ("tool_calls", "function_call", "refusal")
"""What a message of the assistant may have in place of a content."""


class ChatChecker:
    """Checks rows of chat messages or preference pairs, one at a time; the arguments are those of `PairChecker`."""

    def __init__(self, shape: str, rules: Rules, tally: Tally, count_tokens: TokenCounter, store: DigestStore) -> None:
        self._shape = shape
        self._rules = rules
        self._tally = tally
        self._count_tokens = count_tokens
        self._store = store
        self.rows = 0
        self.tokens = 0
        self.repeats: Repeats | None = None

    def look(self, number: int, line: int, fields: Mapping[str, object]) -> None:
        """Check a row.

        Raises:
            UnicodeEncodeError: A text holds half of a surrogate pair; nothing was counted.
        """
        key = digest(dumps(fields) if _is_encodable(fields) else b"")
        self.rows += 1
        if self._shape == MESSAGES:
            self._tally.add_all(line, check_messages(fields.get("messages")))
        tokens = 0
        for field, text in texts_of(fields):
            content = text.encode()
            tokens += self._count_tokens(text, len(content))
            if has_private(text, content):
                self._tally.add_all(line, find_private(field, text))
        messages = fields.get("messages")
        tokens += _TOKENS_PER_MESSAGE * (len(messages) if isinstance(messages, list) else 0)
        self.tokens += tokens
        if tokens > self._rules.max_tokens:
            words = f"{tokens:,} tokens, at most {self._rules.max_tokens:,} are read"
            self._tally.add("too-many-tokens", line, None, words)
        self._store.add(key, NO_DIGEST, number, line)

    @property
    def task(self) -> Task:
        """What the data is for."""
        return Task("chat" if self._shape == MESSAGES else "preference")

    def finish(self) -> None:
        """Check what is only known from all rows."""
        self.repeats = repeats = Repeats(self._store.groups(), SHOWN_PLACES)
        lines = repeats.duplicate_lines
        places = [Place(self._tally.file, line, None, f"equals line {earlier}") for line, earlier in lines]
        self._tally.add_places("duplicate", places, repeats.duplicates.count)


def _is_encodable(fields: Mapping[str, object]) -> bool:
    for _, text in texts_of(fields):
        text.encode()
    return True


def check_messages(messages: object) -> Iterator[Trouble]:
    """Yield what is wrong with the messages of a row."""
    if not isinstance(messages, list) or not messages:
        yield Trouble("bad-message", "messages", "a list of at least one message is expected")
        return
    for position, message in enumerate(messages):
        yield from _check_message(f"messages[{position}]", message)
    last = messages[-1]
    if isinstance(last, dict) and last.get("role") != "assistant":
        yield Trouble("last-not-assistant", f"messages[{len(messages) - 1}].role", str(last.get("role")))
    weights = [message.get("weight", 1) for message in messages if isinstance(message, dict)]
    said = [message.get("role") for message in messages if isinstance(message, dict)]
    if "assistant" in said and not any(w for w, role in zip(weights, said, strict=True) if role == "assistant"):
        yield Trouble("bad-weight", "messages", "no message of the assistant has weight 1")


def _check_message(where: str, message: object) -> Iterator[Trouble]:
    if not isinstance(message, dict):
        yield Trouble("bad-message", where, str(message)[:80])
        return
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        yield Trouble("bad-message", f"{where}.role", "a role is expected")
    elif role not in ROLES:
        yield Trouble("unknown-role", f"{where}.role", role)
    if isinstance(content, list) and content:
        return  # parts of text and pictures, which the service checks
    has_other = role == "assistant" and any(message.get(key) for key in _OTHER_CONTENT)
    if content is None and has_other:
        return
    if content is not None and not isinstance(content, str | list):
        yield Trouble("bad-message", f"{where}.content", f"{str(content)[:60]} is not a text")
    elif not content and not has_other:
        yield Trouble("empty-content", f"{where}.content", str(role))
    weight = message.get("weight")
    if "weight" in message and (type(weight) is not int or weight not in (0, 1) or role != "assistant"):
        yield Trouble("bad-weight", f"{where}.weight", f"{weight} of {role}")


def texts_of(value: object, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text in a value that a model may read, with its path."""
    stack: list[tuple[str, object]] = [(where, value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, str):
            yield path, item
        elif isinstance(item, dict):
            stack += ((f"{path}.{key}" if path else str(key), part) for key, part in item.items() if key != "role")
        elif isinstance(item, list):
            stack += ((f"{path}[{position}]", part) for position, part in enumerate(item))
