r"""Chat messages as training data: how they are read, and the template that joins them to one text.

Each message is a line ``role: content``; the text ends with ``assistant:``, which the model continues with a space and
the words of the assistant, to its end of text. So the example ::

    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 and 2?"},
                  {"role": "assistant", "content": "4"}]}

is the prompt ``"system: Be brief.\nuser: 2 and 2?\nassistant:"`` with the completion ``" 4"``.

Source for the messages: OpenAI's API reference, create fine-tuning job (chat input) and create chat completion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from aiofinetune.data._report import Trouble

ROLES: Final = ("system", "developer", "user", "assistant")
_ALL_ROLES: Final = (*ROLES, "tool", "function")
_OTHER_CONTENT: Final = ("tool_calls", "function_call", "refusal")
"""What a message may have in place of a content, where not only text is taken."""


@attrs.frozen
class Message:
    """One message of a conversation."""

    role: str
    content: str
    weight: int = 1
    """0 if the model should not learn to write this message, 1 if it should."""


def read_messages(value: object) -> tuple[Message, ...]:
    """Read the messages of a conversation, which are only text, from JSON.

    Raises:
        ValueError: The value is not a list of text messages; the message says what was found and what is expected.
    """
    for trouble in _wrong_messages(value, only_text=True):
        raise ValueError(f"{trouble.field}: {trouble.text}")
    # What was not refused has this form.
    return tuple(_message(item) for item in value)  # type: ignore[attr-defined]


def read_row(fields: Mapping[str, object]) -> tuple[Message, ...]:
    """Read a row of training data with a conversation, which is only text, under the key ``messages``.

    Raises:
        ValueError: The conversation cannot be learned; the message says what was found and what is expected.
    """
    for trouble in wrong_row(fields, only_text=True):
        raise ValueError(f"{trouble.field}: {trouble.text}")
    return read_messages(fields["messages"])


def wrong_row(fields: Mapping[str, object], *, only_text: bool) -> Iterator[Trouble]:
    """Yield what is wrong with a row of training data that has a conversation under the key ``messages``.

    Args:
        fields: The row.
        only_text: Whether the service takes only text and nothing beside it, as the embedded server does. OpenAI also
            takes tools and pictures, but no message without a content.
    """
    if only_text:
        for key in _given(fields) - {"messages"}:
            yield Trouble(
                "extra-field", _shown(key)[1:-1], "is not supported beside 'messages'; only text messages are"
            )
    messages = fields.get("messages")
    troubles = list(_wrong_messages(messages, only_text=only_text))
    yield from troubles
    # What was not refused has this form.
    yield from () if troubles else _wrong_turns(messages, only_text=only_text)  # type: ignore[arg-type]


def _wrong_messages(value: object, *, only_text: bool) -> Iterator[Trouble]:
    if not isinstance(value, list) or not value:
        yield Trouble("bad-message", "messages", "a list of at least one message is expected")
        return
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if isinstance(message, dict):
            yield from _wrong_message(message, where, only_text=only_text)
        else:
            yield Trouble("bad-message", where, f"{_shown(message)}; an object with 'role' and 'content' is expected")


def _wrong_message(message: Mapping[str, object], where: str, *, only_text: bool) -> Iterator[Trouble]:
    role, roles = message.get("role"), ROLES if only_text else _ALL_ROLES
    if role not in roles:
        check = "unknown-role" if isinstance(role, str) else "bad-message"
        yield Trouble(check, f"{where}.role", f"{_shown(role)}; one of {', '.join(roles)} is expected")
    if only_text:
        for key in _given(message) - {"role", "content", "weight"}:
            yield Trouble("bad-message", f"{where}.{_shown(key)[1:-1]}", "is not supported; only text messages are")
    yield from _wrong_content(message.get("content"), f"{where}.content", only_text=only_text)
    weight = message.get("weight")
    if weight is not None and (type(weight) is not int or weight not in (0, 1) or role != "assistant"):
        words = f"{_shown(weight)} of {_shown(role)}; 0 or 1 is expected, for the assistant only"
        yield Trouble("bad-weight", f"{where}.weight", words)


def _wrong_content(content: object, where: str, *, only_text: bool) -> Iterator[Trouble]:
    if content is None and not only_text:
        return  # There may be something else in its place.
    if not isinstance(content, str | list):
        yield Trouble("bad-message", where, f"{_shown(content)}; a string or a list of text parts is expected")
        return
    if not only_text:
        return  # The service checks the parts of text and pictures.
    text = _text_of(content)
    if text is None:
        yield Trouble("bad-message", where, f"{_shown(content)}; only parts of text are supported")
    elif not _is_encodable(text):
        yield Trouble("lone-surrogate", where, "half a surrogate pair; valid text is expected")


def _text_of(content: str | list[Any]) -> str | None:  # Any: JSON
    """Return the text of a string or of a list of text parts; None if a part is something else."""
    if isinstance(content, str):
        return content
    is_text = all(
        isinstance(part, dict)
        and _given(part) == {"type", "text"}
        and part["type"] == "text"
        and isinstance(part["text"], str)
        for part in content
    )
    return "".join(part["text"] for part in content) if is_text else None


def _wrong_turns(messages: Sequence[Mapping[str, object]], *, only_text: bool) -> Iterator[Trouble]:
    """Yield what is wrong with messages that are right by themselves."""
    last = messages[-1]["role"]
    if last != "assistant":
        words = f"{last}; the last message is expected to be the assistant's"
        yield Trouble("last-not-assistant", f"messages[{len(messages) - 1}].role", words)
    learned = [message["role"] == "assistant" and message.get("weight") != 0 for message in messages]
    if last == "assistant" and not any(learned):
        yield Trouble("bad-weight", "messages", "no message of the assistant has the weight 1; one is expected")
    for index, message in enumerate(messages):
        if only_text:
            is_empty = learned[index] and not _message(message).content
        else:
            is_empty = not message.get("content") and not any(message.get(key) for key in _OTHER_CONTENT)
        if is_empty:
            words = f"the {message['role']} says nothing; at least one character is expected"
            yield Trouble("empty-content", f"messages[{index}].content", words)


def _message(value: Mapping[str, Any]) -> Message:  # Any: JSON that was checked
    weight = value.get("weight")
    return Message(value["role"], _text_of(value["content"]) or "", 1 if weight is None else weight)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _given(fields: Mapping[str, object]) -> set[str]:
    """Return the keys whose values say something."""
    return {key for key, value in fields.items() if value is not None and value != []}


def _shown(value: object) -> str:
    try:
        return ascii(value)[:60]
    except (ValueError, RecursionError):  # An integer of thousands of digits; brackets nested without end.
        return "a value that is too large"


def join(messages: tuple[Message, ...]) -> str:
    """Return the prompt that asks for the assistant's next message."""
    return "".join(f"{message.role}: {message.content}\n" for message in messages) + "assistant:"


def learned(messages: tuple[Message, ...]) -> Iterator[tuple[Message, ...]]:
    """Yield the messages up to each assistant message that the model should learn."""
    for index, message in enumerate(messages):
        if message.role == "assistant" and message.weight:
            yield messages[: index + 1]


def pair(messages: tuple[Message, ...]) -> tuple[str, str]:
    """Return messages as a prompt and a completion, which is the last one."""
    return join(messages[:-1]), f" {messages[-1].content}"


def pairs(messages: tuple[Message, ...]) -> Iterator[tuple[str, str]]:
    """Yield a prompt and a completion for each assistant message that the model should learn."""
    return map(pair, learned(messages))
