"""Redirects within the service, and those that are not followed."""

from __future__ import annotations

import contextlib
from asyncio import StreamWriter

import pytest

from aiofinetune import APIError, FineTuneError, ProtocolViolation
from tests.servers.rawserver import JOB, KEY, Received, answering, reply, serve, talking_to, targets
from tests.session.calls import MODELS, ONCE, REQUEST, Call, create, list_models

pytestmark = pytest.mark.fastforward


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_within_the_service(status: int) -> None:
    """A GET follows its service to another path."""
    seen: list[Received] = []
    answers = answering(reply(status, b"moved", Location="/v2/models?a=b"), reply(body=MODELS), seen=seen)
    async with talking_to(answers) as session:
        assert await session.list_models()
    assert targets(seen) == ["GET /v1/models", "GET /v2/models?a=b"]
    assert seen[1].headers == seen[0].headers


@pytest.mark.parametrize("status", [301, 307, 308])
async def test_redirected_create(status: int) -> None:
    """A create is followed where it stays a create with its body, and is else an error: it never becomes a GET."""
    seen: list[Received] = []
    async with talking_to(answering(reply(status, Location="/v2"), reply(body=JOB), seen=seen)) as session:
        if status in (307, 308):
            assert await session.create_fine_tune(REQUEST)
            assert targets(seen) == ["POST /v1/fine-tunes", "POST /v2"]
            assert seen[0].body == seen[1].body != b""
        else:
            with pytest.raises(APIError, match=f"^{status}: the redirect to '/v2'"):
                await session.create_fine_tune(REQUEST)
            assert len(seen) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("call", [list_models, create, lambda session: session.upload_file(b"x")])
async def test_redirect_elsewhere(status: int, call: Call) -> None:
    """Another origin, be it another port of the same machine, never gets so much as a connection."""
    elsewhere: list[Received] = []
    async with serve(answering(reply(body=MODELS), seen=elsewhere)) as other:  # noqa: SIM117  # the second needs it
        async with talking_to(answering(reply(status, Location=f"{other}/models"))) as session:
            with pytest.raises(FineTuneError) as caught:
                await call(session)
            # What a 302 or 303 answers may have been done, and only the list can tell what a create made.
            error = caught.value.__cause__ if call is create and status in (302, 303) else caught.value
            assert isinstance(error, APIError)
            assert error.status == status
            assert "another origin" in error.message
    assert elsewhere == []


async def test_redirect_with_the_key() -> None:
    """The error of a redirect that echoes the key shows no part of it, however long the target is."""
    for size in range(150, 210):
        target = f"http://127.0.0.2:9/{'x' * size}{KEY}"
        async with talking_to(answering(reply(302, Location=target))) as session:
            with pytest.raises(APIError, match="another origin") as caught:
                await session.list_models()
        assert KEY[:6] not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    ["http://user:word@{}/v1/models", "/\xff", "", "http://[", "//", "http://{}:1/", "\x01", "/\\x", "%", "/%zz"],
)
async def test_odd_redirect(location: str) -> None:
    """A redirect to what is hardly a URL is followed, or is an error of ours."""
    seen: list[Received] = []

    async def handler(request: Received, writer: StreamWriter) -> None:
        seen.append(request)
        target = location.format(request.headers["host"])
        writer.write(reply(302, Location=target) if len(seen) == 1 else reply(body=MODELS))

    async with talking_to(handler, retry=ONCE) as session:
        with contextlib.suppress(FineTuneError):
            await session.list_models()
    assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in seen)


async def test_redirect_without_a_target() -> None:
    """A redirect that does not say where to is said to be one, not taken for one to another origin."""
    async with talking_to(answering(reply(302))) as session:
        with pytest.raises(APIError, match=r"^302: the redirect does not say where to \(it has no Location\)"):
            await session.list_models()


async def test_redirects_in_a_circle() -> None:
    """A service that redirects for ever is given up."""
    seen: list[Received] = []
    async with talking_to(answering(reply(302, Location="/v1/models"), seen=seen)) as session:
        with pytest.raises(ProtocolViolation, match="redirects"):
            await session.list_models()
    assert 1 < len(seen) < 25
