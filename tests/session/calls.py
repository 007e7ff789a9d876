"""Calls that the tests make, what the service answers them, and what is in an error that comes of it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from aiofinetune import FineTuneRequest, FineTuneSession, Retry
from tests.servers.rawserver import KEY, STREAM_HEAD, chunk, reply

Call: TypeAlias = Callable[[FineTuneSession], Awaitable[object]]

REQUEST = FineTuneRequest(training_file="file-1", model="ada", n_epochs=2)
ONCE = Retry(attempts=1, grace=0.01)
FILE = {"id": "file-1", "object": "file", "bytes": 5, "filename": "train.jsonl", "purpose": "fine-tune"}
MODELS = {"object": "list", "data": [{"id": "ada", "object": "model"}]}


def list_models(session: FineTuneSession) -> Awaitable[object]:
    return session.list_models()


def create(session: FineTuneSession) -> Awaitable[object]:
    return session.create_fine_tune(REQUEST)


CUT = [
    b"",
    b"HTTP/1.1 200 OK\r\nContent-Le",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    STREAM_HEAD + chunk(b'{"data":'),
    STREAM_HEAD + b"5\r\n{",
]
"""Replies that break off."""


def all_in_chain(error: BaseException) -> list[BaseException]:
    """An error and what led to it, as far as tracebacks show it."""
    chain = [error]
    for each in chain:
        inner = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        before = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
        chain += [more for more in (before, *inner) if more and more not in chain]
    return chain


ECHO = [
    reply(401, {"error": {"message": f"wrong key: {KEY}", "type": KEY, "param": KEY, "code": KEY}}),
    reply(500, f"<html>{KEY}".encode()),
    reply(404, b"", X_Request_ID=KEY),
    reply(302, b"", Location=f"https://evil.test/?key={KEY}"),
    reply(307, b"", Location=f"/v1/loop?key={KEY}"),
    reply(200, f"Bearer {KEY}".encode()),
    reply(200, {"data": KEY}),
    reply(200, {"data": [{"id": {"key": KEY}}]}),
    reply(200, b"x", Content_Encoding=KEY),
    f"HTTP/1.1 {KEY}\r\n\r\n".encode(),
    f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode(),
    f"{KEY}\r\n\r\n".encode(),
    f"HTTP/1.1 200 OK\r\nContent-Length: {KEY}\r\n\r\n".encode(),
    STREAM_HEAD + f"{KEY}\r\n".encode(),
    b"",
]
"""Replies that show the key wherever a reply may."""

DATA = random.Random(7).randbytes(1_000_000)  # noqa: S311  # no secret
"""What is uploaded and downloaded."""
