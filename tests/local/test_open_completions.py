"""Completions by a process of their own: with a model that needs no library, in the real process."""

from __future__ import annotations

import asyncio
import io
import json
import os
import queue
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiofinetune.local import LocalServer, OpenModel
from aiofinetune.local._completions import CompletionRequest
from aiofinetune.local._engines import lora
from aiofinetune.local._engines.lora import writer
from aiofinetune.local._engines.training_files import TrainingError
from aiofinetune.local._engines.written import Unable, Written
from aiofinetune.local._open_completions import OpenCompleter
from aiofinetune.local._store.models import Origin
from tests.local.plainclient import KEY, Client, connected

PROGRAM = """
import queue, threading
from aiofinetune.local._engines.lora import writer
from aiofinetune.local._engines.written import Unable, Written

class Speller:
    "Writes the words of the prompt one by one; some words do something else."

    def __init__(self, model):
        if model["name"] == "broken":
            raise writer.TrainingError("The model broken cannot be loaded: no tokenizer")

    def write(self, asked, weights):
        texts = asked["prompt"] if asked["messages"] is None else [" ".join(each[1] for each in asked["messages"])]
        for index, text in enumerate(texts):
            words = text.split()
            for number, word in enumerate(words):
                if word == "refuse":
                    raise Unable("messages: the template refuses them", 400, "messages")
                if word == "fail":
                    raise ZeroDivisionError("odd")
                if word == "die":
                    raise SystemExit(3)
                yield None
                while word == "forever":
                    yield None
                yield index, Written(" " + word, (" " + word,), prompt_tokens=0 if number else len(words))
            yield index, Written("", (), finish_reason="stop")

lines = queue.Queue()
threading.Thread(target=writer.read_lines, args=[lines], daemon=True).start()
writer.serve(lines, Speller)
"""


@asynccontextmanager
async def serving(data: Path, name: str = "tiny", idle: float = 60) -> AsyncIterator[Client]:
    """Serve a model whose process spells what it is asked."""
    completer = OpenCompleter((sys.executable, "-P", "-c", PROGRAM), idle)
    async with (
        LocalServer(data, api_key=KEY, models=[OpenModel(name, data)], completer=completer) as server,
        connected(server.base_url) as client,
    ):
        yield client


def processes() -> list[int]:
    """Return the processes that write for this one (by Linux's /proc)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"class Speller" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            pass
    return found


class Counter:
    """Writes the numbers up to the one that the prompt is."""

    closed: list[str]

    def __init__(self, model: Any) -> None:
        self.closed = []
        assert model == {"name": "tiny"}

    def write(self, asked: Any, weights: str | None) -> Iterator[tuple[int, Written] | None]:
        """Write; a prompt that is no number is refused."""
        try:
            if not asked["prompt"].isdigit():
                raise Unable("prompt: expected a number", 400, "prompt")
            for number in range(int(asked["prompt"])):
                yield None
                yield 0, Written(str(number), (str(number),))
        finally:
            self.closed.append(f"{asked['prompt']} {weights}")


def served(monkeypatch: pytest.MonkeyPatch, *messages: object, model: type = Counter) -> tuple[list[Any], Any]:
    """Serve messages in this process, until a line that is none; return what was said, and the model."""
    lines, said, models = queue.Queue[bytes](), io.StringIO(), list[Any]()
    for message in ({"name": "tiny"}, *messages):
        lines.put(json.dumps(message).encode())
    lines.put(b"")
    monkeypatch.setattr(sys, "__stdout__", said)

    def opened(value: Any) -> Any:
        models.append(model(value))
        return models[0]

    with pytest.raises(json.JSONDecodeError):
        writer.serve(lines, opened)
    return [json.loads(line) for line in said.getvalue().splitlines()], models[0] if models else None


def asked(number: int, prompt: str) -> dict[str, object]:
    return {"id": number, "asked": {"prompt": prompt}, "weights": None}


def test_requests_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """New lines are read between the turns, and a request that is cancelled or refused takes no more of them."""
    said, model = served(monkeypatch, asked(1, "0"), asked(2, "x"), asked(3, "9"), {"id": 3, "cancel": True})
    # Reading a line comes first, so nothing is said until all are read; the last one is no JSON, and ends it.
    assert (said, model.closed) == ([], [])
    lines: list[Any] = []
    monkeypatch.setattr(writer, "_say", lambda number, **what: lines.append((number, what)))
    numbers = Counter({"name": "tiny"})
    active: dict[int, Any] = {}
    for message in (asked(1, "1"), asked(2, "x"), asked(3, "9")):
        writer._take(message, active, numbers)
    for _ in range(3):
        for number in list(active):
            writer._turn(number, active)
    writer._take({"id": 3, "cancel": True}, active, numbers)
    writer._take({"id": 3, "cancel": True}, active, numbers)
    assert active == {}
    assert [(number, next(iter(what))) for number, what in lines] == [
        (2, "failed"),
        (1, "piece"),
        (3, "piece"),
        (1, "over"),
    ]
    assert lines[0][1] == {"failed": "prompt: expected a number", "status": 400, "param": "prompt"}
    assert numbers.closed == ["x None", "1 None", "9 None"]


def test_without_a_model_each_request_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the error is; a cancelled request is told nothing."""

    class Broken(Counter):
        def __init__(self, _model: Any) -> None:
            raise LookupError("no weights")

    said, _ = served(monkeypatch, asked(1, "1"), {"id": 1, "cancel": True}, asked(2, "1"), model=Broken)
    failed = {"failed": "The model failed: LookupError: no weights", "status": 500, "param": None}
    assert said == [{"id": 1, **failed}, {"id": 2, **failed}]


def test_without_the_extra_the_process_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the trainer does."""
    monkeypatch.setitem(sys.modules, "torch", None)
    for variable in (*lora._ENVIRONMENT, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, "")
    with pytest.raises(TrainingError, match=r"pip install 'aiofinetune\[transformers\]'"):
        writer.open_sampler({})


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_true():
            await asyncio.sleep(0.01)


async def write(client: Client, prompt: object, status: int = 200, **parameters: object) -> Any:
    asked = {"model": "tiny", "prompt": prompt, **parameters}
    return await client.call("POST", "/completions", status=status, json=asked)


async def test_a_process_is_started_on_demand_and_shared(data: Path) -> None:
    """Nothing runs until the first request; then all requests have the same process, which ends with the server."""
    async with serving(data) as client:
        assert processes() == []
        answers = await asyncio.gather(*(write(client, ["one two", f"three {number}"]) for number in range(5)))
        assert [[choice["text"] for choice in answer["choices"]] for answer in answers] == [
            [" one two", f" three {number}"] for number in range(5)
        ]
        assert answers[0]["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}
        assert len(processes()) == 1
    assert processes() == []


async def test_a_stream_gives_each_piece_when_it_is_written(data: Path) -> None:
    """The first piece comes while the model still writes; if the client leaves, the model stops."""
    async with serving(data) as client:
        asked = {"model": "tiny", "prompt": "one forever", "stream": True}
        async with client.http.post(f"{client.base_url}/completions", json=asked) as response:
            first = await response.content.readuntil(b"\n\n")
        assert json.loads(first.removeprefix(b"data: "))["choices"][0]["text"] == " one"
        assert (await write(client, "two"))["choices"][0]["text"] == " two"


async def test_a_chat_reaches_the_model_as_messages(data: Path) -> None:
    """The template is the model's own."""
    async with serving(data) as client:
        messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "brief"}]
        answer = await client.call("POST", "/chat/completions", json={"model": "tiny", "messages": messages})
        assert answer["choices"][0]["message"]["content"] == "be brief"


async def test_a_request_that_cannot_be_answered_harms_no_other(data: Path) -> None:
    """What the model refuses is a 400 with the parameter, and what fails is a 500; others go on."""
    async with serving(data) as client:
        slow = asyncio.create_task(write(client, "one forever"))
        refused = await write(client, "refuse", status=400)
        assert (refused["message"], refused["param"]) == ("messages: the template refuses them", "messages")
        failed = await write(client, "fail", status=500)
        assert failed["message"] == "The model failed: ZeroDivisionError: odd"
        assert not slow.done()
        slow.cancel()


async def test_a_model_that_cannot_be_loaded_says_why(data: Path) -> None:
    """Each request gets the reason, and the server goes on."""
    async with serving(data, "broken") as client:
        for _ in range(2):
            asked = {"model": "broken", "prompt": "x"}
            failed = await client.call("POST", "/completions", status=500, json=asked)
            assert failed["message"] == "The model broken cannot be loaded: no tokenizer"


async def test_a_process_that_is_killed_is_started_again(data: Path) -> None:
    """Whoever waits for it gets a 503 that says so, and the next request a new process."""
    async with serving(data) as client:
        waiting = asyncio.create_task(write(client, "one forever", status=503))
        await until(lambda: len(processes()) == 1)
        await write(client, "two")
        (killed,) = processes()
        os.kill(killed, signal.SIGKILL)
        assert "ended by SIGKILL, perhaps because the machine ran out of memory" in (await waiting)["message"]
        assert "ended with exit status 3" in (await write(client, "die", status=503))["message"]
        assert (await write(client, "two"))["choices"][0]["text"] == " two"


async def test_an_idle_process_is_ended(data: Path) -> None:
    """Its memory is free then; while a request runs, it is not idle."""
    async with serving(data, idle=0.01) as client:
        slow = asyncio.create_task(write(client, "one forever"))
        await until(lambda: len(processes()) == 1)
        await write(client, "two")
        (pid,) = processes()
        await write(client, "three")
        assert processes() == [pid]
        slow.cancel()
        await until(lambda: processes() == [])
        assert (await write(client, "four"))["choices"][0]["text"] == " four"


async def test_a_process_ends_with_a_killed_server(data: Path) -> None:
    """When its standard input ends, it is gone at once, also while it writes."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", PROGRAM),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    asked = {"id": 1, "asked": {"prompt": ["one forever"], "messages": None}, "weights": None}
    process.stdin.write(b'{"name": "tiny"}\n' + json.dumps(asked).encode() + b"\n")
    assert json.loads(await process.stdout.readline())["piece"][1]["text"] == " one"
    process.stdin.close()
    async with asyncio.timeout(30):
        assert await process.wait() == 3


@pytest.mark.uvloop
async def test_a_request_cancelled_while_its_process_starts_leaves_none(data: Path) -> None:
    """Whenever it is cancelled, no process is left when the completer is closed."""
    data.mkdir()
    origin = Origin("tiny", None, OpenModel("tiny", data))
    for steps in range(6):
        completer = OpenCompleter((sys.executable, "-P", "-c", PROGRAM))
        pieces = completer.write(CompletionRequest(model="tiny", prompt=("one forever",)), origin)
        first = asyncio.ensure_future(anext(pieces))
        for _ in range(steps):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        await completer.close()
        assert processes() == []


@pytest.mark.uvloop
async def test_a_server_that_closes_ends_what_is_being_written(data: Path) -> None:
    """A client that waits is cut off, and no process is left."""
    async with serving(data) as client:
        slow = asyncio.create_task(write(client, "one forever"))
        await until(lambda: len(processes()) == 1)
        await write(client, "two")
    with pytest.raises(Exception):  # noqa: B017, PT011  # However the connection ends.
        await slow
    assert processes() == []
