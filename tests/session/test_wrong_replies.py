"""Errors, replies that make no sense, and replies that are cut."""

from __future__ import annotations

import contextlib
import gzip
import re
from asyncio import StreamWriter

import pytest

from aiofinetune import (
    APIError,
    AuthenticationFailed,
    BadRequest,
    Conflict,
    ConnectionLost,
    CreateUncertain,
    Deleted,
    FineTuneError,
    NotFound,
    PermissionDenied,
    ProtocolViolation,
    RateLimited,
    Retry,
    ServerError,
)
from tests.servers.rawserver import Received, answering, reply, talking_to, targets
from tests.session.calls import CUT, ONCE, REQUEST, Call, all_in_chain, create, list_models

pytestmark = pytest.mark.fastforward


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (401, AuthenticationFailed),
        (403, PermissionDenied),
        (404, NotFound),
        (409, Conflict),
        (418, APIError),
        (422, BadRequest),
        (429, RateLimited),
        (500, ServerError),
        (502, ServerError),
        (503, ServerError),
    ],
)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {"error": {"message": "said so", "type": "t", "param": None, "code": None}},
            r"said so \(type t, request id r-7\)",
        ),
        (b"<html>Bad gateway</html>", "<html>Bad gateway</html>"),
        (b"", "the body is empty"),
    ],
    ids=["envelope", "page", "nothing"],
)
async def test_errors(status: int, kind: type[APIError], body: object, words: str) -> None:
    """An error is of the class of its status, with the service's words or the start of what came in their place."""
    seen: list[Received] = []
    async with talking_to(answering(reply(status, body, X_Request_ID="r-7"), seen=seen), retry=ONCE) as session:
        with pytest.raises(kind, match=f"^{status}: .*{words}") as caught:
            await session.list_models()
        assert type(caught.value) is kind
        assert caught.value.request_id == "r-7"
    assert len(seen) == 1


@pytest.mark.parametrize(
    "raw",
    [
        reply(body=b""),
        reply(body=b"<html>sign in</html>"),
        reply(body=b"\xff\xfe"),
        reply(body=b'{"data": [{"id": 7}]}'),
        reply(body=b"[]"),
        reply(204),
        b"HTTP/1.1 OK\r\n\r\n",
        b"\x16\x03\x01\x02\x00garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 99999 OK\r\n\r\n",
    ],
    ids=range(13),
)
async def test_no_reply_of_this_api(raw: bytes) -> None:
    """What is neither this API nor HTTP is a violation, and is not asked for again."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        writer.write(raw)
        writer.close()

    async with talking_to(handler) as session:
        with pytest.raises(ProtocolViolation):
            await session.list_models()
    assert len(seen) == 1


@pytest.mark.parametrize("raw", CUT)
async def test_cut_reply(raw: bytes) -> None:
    """A reply that is cut off is a lost connection: asked for again by a GET, never by what creates something."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        writer.write(raw)
        writer.close()

    async with talking_to(handler, retry=Retry(attempts=3, base=0.001, cap=0.001, grace=0.01)) as session:
        with pytest.raises(ConnectionLost):
            await session.list_models()
        assert len(seen) == 3
        with pytest.raises(CreateUncertain):
            await session.create_fine_tune(REQUEST)
        assert targets(seen).count("POST /v1/fine-tunes") == 1


async def test_cut_compressed_reply() -> None:
    """A compressed reply whose end is missing is a lost connection, though its own length is right."""
    packed = gzip.compress(b'{"data": []}' + b" " * 1000)[:-9]
    async with talking_to(answering(reply(body=packed, Content_Encoding="gzip")), retry=ONCE) as session:
        with pytest.raises(ConnectionLost):
            await session.list_models()


async def test_endless_error() -> None:
    """An error whose page never ends is an error all the same."""

    async def handler(_request: Received, writer: StreamWriter) -> None:
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"<p>no</p>" * 1000)
                await writer.drain()

    async with talking_to(handler) as session:
        with pytest.raises(PermissionDenied, match="<p>no</p>"):
            await session.list_models()


async def test_long_reply() -> None:
    """A reply that is decoded in a thread is decoded like any other, and its failures are as well."""
    long = {"data": [{"id": "x" * 200_000}]}
    wrong = {"data": [{"id": "x" * 200_000}, {}]}
    async with talking_to(answering(reply(body=long), reply(body=wrong))) as session:
        assert len((await session.list_models())[0].id) == 200_000
        with pytest.raises(ProtocolViolation, match=r"\$\.data\[1\]\.id is missing"):
            await session.list_models()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"detail": {"error": {"message": "no such thing"}}}, "no such thing"),
        ({"detail": [{"loc": ["path", "id"], "msg": "no such thing", "type": "x"}]}, "path.id: no such thing"),
        ({"error": None, "detail": "no such thing"}, "no such thing"),
        ({"code": 7, "msg": "no such thing"}, "no such thing"),
        ({"error": {"message": "no such thing" + "." * 1900}}, "no such thing[.]{1900}"),
    ],
)
@pytest.mark.parametrize("status", [400, 404, 422, 500])
async def test_words_of_other_services(status: int, body: object, words: str) -> None:
    """The words of an error are shown in whatever shape a service sends them."""
    async with talking_to(answering(reply(status, body)), retry=ONCE) as session:
        for call in (
            list_models(session),
            create(session),
            session.upload_file(b"{}"),
            session.download_file("file-1"),
        ):
            with pytest.raises(FineTuneError) as caught:
                await call
            assert re.search(
                f"{status}: {words}", str(all_in_chain(caught.value)[-1] if status == 500 else caught.value)
            )


CALLS_WITHOUT_CREATE: dict[str, Call] = {
    "list fine-tunes": lambda session: session.list_fine_tunes(),
    "list files": lambda session: session.list_files(),
    "list events": lambda session: session.list_fine_tune_events("ft-1"),
    "list models": list_models,
    "retrieve": lambda session: session.retrieve_fine_tune("ft-1"),
    "cancel": lambda session: session.cancel_fine_tune("ft-1"),
    "upload": lambda session: session.upload_file(b"{}"),
    "retrieve file": lambda session: session.retrieve_file("file-1"),
    "download": lambda session: session.download_file("file-1"),
    "complete": lambda session: session.create_completion("ada", "a"),
    "wait": lambda session: session.wait("ft-1"),
}


@pytest.mark.parametrize("call", CALLS_WITHOUT_CREATE.values(), ids=CALLS_WITHOUT_CREATE)
@pytest.mark.parametrize("data", [{}, {"data": []}], ids=["alone", "beside data"])
async def test_error_under_success(call: Call, data: dict[str, object]) -> None:
    """An error object that comes with status 200 is a violation that shows its words, at a list too."""
    body = {"error": {"message": "no such thing", "type": "t"}, **data}
    async with talking_to(answering(reply(body=body))) as session:
        with pytest.raises(ProtocolViolation, match="answered 200, but with an error: no such thing"):
            await call(session)


DELETES: list[Call] = [lambda session: session.delete_file("file-1"), lambda session: session.delete_model("file-1")]
deletes = pytest.mark.parametrize("call", DELETES, ids=["file", "model"])


@deletes
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (204, b"", ""),
        (200, b"", ""),
        (202, b"", ""),
        (200, {}, ""),
        (200, b"null", ""),
        (200, b"true", ""),
        (200, b'"OK"', ""),
        (200, b"OK", ""),
        (200, b"\xff\xfe", ""),
        (200, {"status": "deleted"}, ""),
        (200, {"id": None, "deleted": None}, ""),
        (200, {"id": 7, "object": ["file"], "deleted": "true"}, ""),
        (200, {"id": "file-1", "object": "file"}, "file"),
        (200, {"id": "file-1", "object": "file", "deleted": True, "error": None}, "file"),
    ],
)
async def test_deleted(call: Call, status: int, body: object, kind: str) -> None:
    """A DELETE that is answered with success has deleted, whatever the body is."""
    async with talking_to(answering(reply(status, body))) as session:
        assert await call(session) == Deleted("file-1", deleted=True, object=kind)


@deletes
@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"id": "file-1", "object": "file", "deleted": False}, APIError, "200: the service did not delete file-1"),
        ({"deleted": False, "error": {"message": "in use", "code": "busy"}}, APIError, "200: in use"),
        ({"error": {"message": "in use", "code": "busy"}}, ProtocolViolation, "with an error: in use"),
        ({"error": "in use"}, ProtocolViolation, "with an error: in use"),
        ({"object": "error", "message": "in use"}, ProtocolViolation, "with an error: in use"),
        (b"<html>sign in</html>", ProtocolViolation, "sign in"),
    ],
)
async def test_not_deleted(call: Call, body: object, kind: type[FineTuneError], words: str) -> None:
    """A success that says in its body that nothing was deleted, or that a proxy answered, is a failure."""
    seen: list[Received] = []
    async with talking_to(answering(reply(body=body), seen=seen)) as session:
        with pytest.raises(kind, match=words):
            await call(session)
    assert len(seen) == 1
