r"""Chat messages as training data, and the template that joins them to one text.

Each message is a line ``role: content``; the text ends with ``assistant:``, which the model continues with a space and
the words of the assistant, to its end of text. So the example ::

    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 and 2?"},
                  {"role": "assistant", "content": "4"}]}

is the prompt ``"system: Be brief.\nuser: 2 and 2?\nassistant:"`` with the completion ``" 4"``.

Source for the messages: OpenAI's API reference, create fine-tuning job (chat input) and create chat completion.
"""

from collections.abc import Iterator
from typing import Final

import attrs

ROLES: Final = ("system", "developer", "user", "assistant")


@attrs.frozen
class Message:
    """One message of a conversation."""

    role: str
    content: str
    weight: int = 1
    """0 if the model should not learn to write this message, 1 if it should."""


def read_messages(value: object) -> tuple[Message, ...]:
    """Read the messages of a conversation from JSON.

    Raises:
        ValueError: The value is not a list of text messages; the message says what was found and what is expected.
    """
    if not isinstance(value, list) or not value:
        raise ValueError("the messages are not a list of at least one message")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _message(value: object, name: str) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object; one with 'role' and 'content' is expected")
    given = {key: item for key, item in value.items() if item is not None}
    role, weight = given.get("role"), given.get("weight", 1)
    if role not in ROLES:
        raise ValueError(f"the role of {name} is {ascii(role)[:80]}; one of {', '.join(ROLES)} is expected")
    if extra := sorted(given.keys() - {"role", "content", "weight"}):
        raise ValueError(f"{name} has {extra[0]!a}, which is not supported; only text messages are")
    if weight not in (0, 1) or isinstance(weight, bool):
        raise ValueError(f"the weight of {name} is {ascii(weight)[:80]}; 0 or 1 is expected")
    return Message(role, _content(given.get("content"), name), int(weight))


def _content(value: object, name: str) -> str:
    """Return the text of a message, which is a string or a list of text parts."""
    parts = [{"type": "text", "text": value}] if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise ValueError(f"the content of {name} is not text; a string or a list of text parts is expected")
    texts = []
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                raise ValueError(f"a part of the content of {name} is not text; only text is supported")
    text = "".join(texts)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the content of {name} contains half a surrogate pair; valid text is expected") from error
    return text


def join(messages: tuple[Message, ...]) -> str:
    """Return the prompt that asks for the assistant's next message."""
    return "".join(f"{message.role}: {message.content}\n" for message in messages) + "assistant:"


def pairs(messages: tuple[Message, ...]) -> Iterator[tuple[str, str]]:
    """Yield a prompt and a completion for each of the assistant's messages that is to be learned.

    Raises:
        ValueError: The last message is not from the assistant, is empty, or none is to be learned.
    """
    if messages[-1].role != "assistant":
        raise ValueError(f"the last message is from the {messages[-1].role}; one from the assistant is expected")
    learned = [index for index, message in enumerate(messages) if message.role == "assistant" and message.weight]
    if not learned:
        raise ValueError("no message of the assistant has the weight 1; at least one is expected")
    for index in learned:
        if not messages[index].content:
            raise ValueError(f"messages[{index}] of the assistant is empty; at least one character is expected")
        yield join(messages[:index]), f" {messages[index].content}"
