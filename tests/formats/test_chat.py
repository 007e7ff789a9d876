"""Conversations as training data: the template that joins them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiofinetune.data._chat import ROLES, Message, join, pairs, read_messages
from aiofinetune.data._examples import Example, parse_examples, read_examples
from aiofinetune.errors import DatasetError

TURNS: list[dict[str, object]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 and 2?"},
    {"role": "assistant", "content": "4", "weight": 0},
    {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "1?"}], "name": None},
    {"role": "assistant", "content": "5"},
]


def line(*messages: object, **more: object) -> bytes:
    return json.dumps({"messages": messages, **more}).encode()


def test_the_template() -> None:
    """A message is a line with its role; the assistant's words are the completion, after a space."""
    prompt = "system: Be brief.\nuser: 2 and 2?\nassistant: 4\nuser: and 1?\nassistant:"
    assert parse_examples(line(*TURNS)) == (Example(prompt, " 5"),)


def test_each_message_of_the_assistant_is_learned_unless_its_weight_is_0() -> None:
    """A conversation is an example for each message of the assistant whose weight is not 0."""
    turns = [{key: value for key, value in turn.items() if key != "weight"} for turn in TURNS]
    assert parse_examples(line(*turns, tools=[], parallel_tool_calls=None)) == (
        Example("system: Be brief.\nuser: 2 and 2?\nassistant:", " 4"),
        *parse_examples(line(*TURNS)),
    )


@given(st.lists(st.builds(Message, st.sampled_from(ROLES), st.text("aü\n: ", min_size=1))))
def test_what_is_learned_is_what_follows_what_is_asked(messages: list[Message]) -> None:
    """The prompt of an example is exactly what a chat with the messages before it asks a model."""
    turns = (*messages, Message("assistant", "x"))
    learned = [turn for turn in turns if turn.role == "assistant"]
    found = list(pairs(turns))
    assert [completion for _, completion in found] == [f" {turn.content}" for turn in learned]
    assert found[-1][0] == join(tuple(messages))
    assert join(turns) == f"{found[-1][0]}{found[-1][1]}\nassistant:"


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
WRONG: dict[str, tuple[bytes, str]] = {
    "no list": (b'{"messages": {}}', "messages: a list of at least one message is expected"),
    "no message": (line(), "a list of at least one message is expected"),
    "no object": (line("a"), "messages[0]: 'a'; an object with"),
    "unknown role": (
        line({"role": "tool", "content": "a"}, ASSISTANT),
        "messages[0].role: 'tool'; one of system, developer,",
    ),
    "no role": (line({"content": "a"}, ASSISTANT), "messages[0].role: None; one of"),
    "no content": (line({"role": "user"}, ASSISTANT), "messages[0].content: None; a string or"),
    "image": (
        line({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ASSISTANT),
        "only parts of text are supported",
    ),
    "tool call": (line(USER, ASSISTANT | {"tool_calls": [{}]}), "messages[1].tool_calls: is not supported"),
    "name": (line(USER | {"name": "x"}, ASSISTANT), "messages[0].name: is not supported"),
    "weight": (line(USER, ASSISTANT | {"weight": True}), "messages[1].weight: True of 'assistant'; 0 or 1"),
    "half a surrogate pair": (line(USER | {"content": "\ud800"}, ASSISTANT), "half a surrogate pair"),
    "last from the user": (line(USER), "messages[0].role: user; the last message is expected to be the assistant's"),
    "nothing to learn": (line(USER, ASSISTANT | {"weight": 0}), "no message of the assistant has the weight 1"),
    "empty answer": (line(USER, ASSISTANT | {"content": ""}), "messages[1].content: the assistant says nothing"),
    "tools": (line(USER, ASSISTANT, tools=[{}]), "tools: is not supported beside 'messages'"),
    "weight of the user": (line(USER | {"weight": 1}, ASSISTANT), "messages[0].weight: 1 of 'user'"),
    "part with more": (
        line({"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}, ASSISTANT),
        "only parts of text are supported",
    ),
    "no messages": (b'{"prompt": "a", "completion": "b"}', "messages are expected on all lines or on none"),
    "a prompt too": (line(USER, ASSISTANT, prompt="x"), "prompt: is not supported beside 'messages'"),
}


@pytest.mark.parametrize(("wrong", "expected"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_conversation_is_refused_by_its_line(tmp_path: Path, wrong: bytes, expected: str) -> None:
    """What cannot be learned is refused, with its line and what was found."""
    path = tmp_path / "chats.jsonl"
    path.write_bytes(line(*TURNS) + b"\n" + wrong + b"\n")
    with pytest.raises(DatasetError) as caught:
        list(read_examples(path))
    assert caught.value.line == 2
    assert expected in caught.value.problem


def test_messages_of_a_chat_need_no_answer() -> None:
    """A chat that asks a model may end with any message."""
    assert read_messages([USER]) == (Message("user", "a"),)
