"""Completions from the embedded server's models."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from aiofinetune.local import LocalServer
from tests.local.plainclient import Client, Connect
from tests.local.wire import address, request_bytes


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "someone", "stream": False, "n": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0.0},
        {"echo": False, "best_of": 1, "suffix": None, "stop": None, "seed": None, "logprobs": None, "max_tokens": None},
        {"stop": ["\n", "."], "temperature": 0.5, "seed": 7, "max_tokens": 3},
        {"stop": "\n", "temperature": 2, "max_tokens": 0},
        {"logit_bias": {}, "stream_options": None, "n": 2, "best_of": 2},
    ],
)
async def test_what_clients_always_send_with_a_completion_is_taken(client: Client, harmless: dict[str, object]) -> None:
    """Parameters at their defaults, and explicit nulls, do no harm."""
    reply = await client.call("POST", "/completions", json={"model": "ada", "prompt": "The", **harmless})
    assert reply["object"] == "text_completion"
    assert reply["choices"][0]["finish_reason"] in ("stop", "length")


async def test_the_same_seed_gives_the_same_completion_while_a_job_trains(client: Client, examples: bytes) -> None:
    """Completions are answered during a training, and a seed decides them."""
    job = await client.create(examples, n_epochs=100_000)
    asked = {"model": "ada", "prompt": "The", "seed": 3, "max_tokens": 8}
    first, second = [(await client.call("POST", "/completions", json=asked))["choices"] for _ in range(2)]
    assert first == second
    await client.call("POST", f"/fine-tunes/{job['id']}/cancel")


LONG: dict[str, object] = {"model": "ada", "prompt": "The", "max_tokens": 2048, "n": 128, "logprobs": 5, "stream": True}
"""A completion that takes minutes."""


async def stream_completion(client: Client, asked: Mapping[str, object]) -> list[Any]:
    """Read a streamed completion to its end; return what its events hold."""
    async with client.http.post(f"{client.base_url}/completions", json={**asked, "stream": True}) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        *events, done, rest = (await response.read()).split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


@pytest.mark.uvloop
@pytest.mark.parametrize("more", [{}, {"stop": [" of", "\n"]}, {"logprobs": 2}, {"echo": True, "n": 2, "logprobs": 0}])
async def test_a_streamed_completion_is_the_same_in_pieces(client: Client, more: dict[str, object]) -> None:
    """The texts and log probabilities of a stream's events add up to what is answered in one piece."""
    asked = {"model": "ada", "prompt": ["Return the naïve", "A"], "seed": 5, "max_tokens": 16, **more}
    whole = await client.call("POST", "/completions", json=asked)
    *events, last = await stream_completion(client, asked | {"stream_options": {"include_usage": True}})
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert {(event["id"], event["model"], event["object"]) for event in events} == {
        (last["id"], "ada", "text_completion")
    }
    for expected in whole["choices"]:
        pieces = [choice for event in events for choice in event["choices"] if choice["index"] == expected["index"]]
        assert "".join(piece["text"] for piece in pieces) == expected["text"]
        assert [piece["finish_reason"] for piece in pieces][-1] == expected["finish_reason"]
        assert not any(piece["finish_reason"] for piece in pieces[:-1])
        if expected["logprobs"] is not None:
            for key, values in expected["logprobs"].items():
                assert [value for piece in pieces for value in piece["logprobs"][key]] == values


async def test_n_completions_of_each_prompt_are_made(client: Client) -> None:
    """`n` gives so many different choices a prompt, in order; the first is what one alone would be."""
    asked = {"model": "ada", "prompt": ["The", "A"], "seed": 5, "max_tokens": 5}
    single, several = [await client.call("POST", "/completions", json=asked | {"n": n}) for n in (1, 3)]
    texts = [choice["text"] for choice in several["choices"]]
    assert [choice["index"] for choice in several["choices"]] == list(range(6))
    assert [texts[0], texts[3]] == [choice["text"] for choice in single["choices"]]
    assert len(set(texts)) == 6


async def test_echo_puts_the_prompt_first(client: Client) -> None:
    """The text then begins with the prompt, whose tokens have log probabilities too, all but the first."""
    prompt = "Return the " * 500
    asked = {"model": "ada", "prompt": prompt, "seed": 5, "max_tokens": 2}
    plain = await client.call("POST", "/completions", json=asked)
    echoed = await client.call("POST", "/completions", json=asked | {"echo": True, "max_tokens": 2})
    assert echoed["choices"][0]["text"] == prompt + plain["choices"][0]["text"]
    assert echoed["usage"] == plain["usage"]
    scored = await client.call(
        "POST",
        "/completions",
        json={"model": "ada", "prompt": "Return it", "echo": True, "max_tokens": 0, "logprobs": 1},
    )
    logprobs = scored["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["Return", " it"]
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1] < 0
    assert len(logprobs["top_logprobs"][1]) == 1


async def test_top_p_leaves_the_unlikely_out(client: Client) -> None:
    """At a `top_p` of 0 only the likeliest is left to draw."""
    asked = {"model": "ada", "prompt": "Return the", "max_tokens": 8}
    nucleus = await client.call("POST", "/completions", json=asked | {"top_p": 0, "temperature": 2})
    greedy = await client.call("POST", "/completions", json=asked | {"temperature": 0})
    assert nucleus["choices"] == greedy["choices"]


async def test_a_short_completion_does_not_wait_for_long_ones(client: Client) -> None:
    """A completion of one token is answered while ones that take minutes are written."""
    async with contextlib.AsyncExitStack() as stack:
        long = [
            await stack.enter_async_context(client.http.post(f"{client.base_url}/completions", json=LONG))
            for _ in range(20)
        ]
        async with asyncio.timeout(20):
            await client.call("POST", "/completions", json={"model": "curie", "prompt": "The", "max_tokens": 1})
        assert not any(response.content.at_eof() for response in long)


async def test_a_completion_whose_client_goes_away_ends(server: LocalServer, client: Client) -> None:
    """When nobody waits for a completion any more, it is not written on."""
    await client.call("GET", "/models")
    before = asyncio.all_tasks()
    for is_streamed in (False, True):
        _, writer = await asyncio.open_connection(*address(server))
        writer.write(request_bytes("POST", "/v1/completions", json.dumps(LONG | {"stream": is_streamed}).encode()))
        while not asyncio.all_tasks() - before:
            await asyncio.sleep(0)
        await client.call("POST", "/completions", json={"model": "ada", "max_tokens": 1})
        writer.transport.abort()
        async with asyncio.timeout(20):
            while asyncio.all_tasks() - before:
                await asyncio.sleep(0)


@pytest.mark.uvloop
async def test_the_server_does_not_wait_for_completions_when_it_ends(connect: Connect) -> None:
    """Completions that take minutes end with the server, streamed or not, and are not taken for whole."""
    async with connect("", "key") as client, LocalServer(api_key="key") as server:
        url = f"{server.base_url}/completions"
        plain = [asyncio.create_task(client.http.post(url, json=LONG | {"stream": False})) for _ in range(3)]
        streamed = await client.http.post(url, json=LONG)
        await streamed.content.readline()
        async with asyncio.timeout(20):
            await server.__aexit__(None, None, None)
        with pytest.raises(aiohttp.ClientPayloadError):
            await streamed.read()
        for task in plain:
            with pytest.raises(aiohttp.ClientError):
                await task
        await server.__aenter__()
