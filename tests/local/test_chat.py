"""Chat completions of the embedded server: the messages joined as in training, plain and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiofinetune.errors import RequestInvalid
from aiofinetune.local._chat_completions import read_chat_request
from tests.local.plainclient import Client

SYSTEM = {"role": "system", "content": "Odd or even?"}
CHATS = b"".join(
    json.dumps(
        {
            "messages": [
                SYSTEM,
                {"role": "user", "content": str(number)},
                {"role": "assistant", "content": "odd" if number % 2 else "even"},
            ]
        }
    ).encode()
    + b"\n"
    for number in range(20)
)


async def streamed(client: Client, asked: dict[str, object]) -> list[Any]:
    async with client.http.post(f"{client.base_url}/chat/completions", json={**asked, "stream": True}) as response:
        assert response.status == 200
        lines = (await response.read()).split(b"\n\n")
    assert lines[-2:] == [b"data: [DONE]", b""]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-2]]


async def test_a_model_that_learned_conversations_answers_in_them(client: Client) -> None:
    """A chat continues the template of the training data, and gives the same text as a completion of it."""
    file_id = (await client.upload(CHATS))["id"]
    created = {"model": "ada", "training_file": file_id, "hyperparameters": {"n_epochs": 20}}
    job = await client.call("POST", "/fine_tuning/jobs", json=created)
    model = (await client.finish(job["id"]))["fine_tuned_model"]
    asked: dict[str, object] = {
        "model": model,
        "messages": [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "3"}]}],
        "temperature": 0,
        "user": "me",
        "tools": None,
    }
    answer = await client.call("POST", "/chat/completions", json=asked)
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", model)
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "odd", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    prompt = "system: Odd or even?\nuser: 3\nassistant:"
    completion = await client.call("POST", "/completions", json={"model": model, "prompt": prompt, "temperature": 0})
    assert completion["choices"][0]["text"] == " odd"
    assert answer["usage"] == completion["usage"]

    parts = await streamed(client, asked | {"stream_options": {"include_usage": True}})
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert len({part["id"] for part in parts}) == 1
    *parts, last = parts
    assert (last["choices"], last["usage"]) == ([], answer["usage"])
    assert [part["choices"][0]["delta"].get("role") for part in parts] == ["assistant"] + [None] * (len(parts) - 1)
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]


async def test_a_stream_is_the_whole_answer_in_parts(client: Client) -> None:
    """For each of several choices, the parts of a stream add up to the text of the plain answer."""
    asked: dict[str, object] = {
        "model": "ada",
        "messages": [{"role": "user", "content": "Return the"}],
        "n": 3,
        "seed": 5,
        "max_completion_tokens": 12,
    }
    whole = await client.call("POST", "/chat/completions", json=asked)
    texts = ["", "", ""]
    for part in await streamed(client, asked):
        (choice,) = part["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert len(set(texts)) == 3
    assert whole["usage"]["completion_tokens"] <= 36


ASKED: dict[str, object] = {"model": "ada", "messages": [{"role": "user", "content": "x"}]}
WRONG: list[tuple[dict[str, object], str]] = [
    ({"model": "ada"}, "messages"),
    (ASKED | {"messages": [{"role": "tool", "content": "x"}]}, "messages"),
    ({"messages": ASKED["messages"]}, "model"),
    (ASKED | {"tools": [{"type": "function"}]}, "tools"),
    (ASKED | {"response_format": {"type": "json_object"}}, "response_format"),
    (ASKED | {"logprobs": True}, "logprobs"),
    (ASKED | {"prompt": "x"}, "prompt"),
    (ASKED | {"echo": True}, "echo"),
    (ASKED | {"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
    (ASKED | {"max_tokens": -1}, "max_tokens"),
    (ASKED | {"frequency_penalty": 1}, "frequency_penalty"),
]


@pytest.mark.parametrize(("value", "field"), WRONG)
def test_what_a_chat_cannot_do_is_refused_by_its_field(value: dict[str, object], field: str) -> None:
    """A parameter that is unknown or wrong, or that this server does not support, is refused by its name."""
    with pytest.raises(RequestInvalid) as caught:
        read_chat_request(value)
    assert caught.value.field == field
