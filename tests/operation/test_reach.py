"""Where ``aiofinetune serve`` can be reached: beyond loopback only by https or on request, at a URL that works."""

from __future__ import annotations

import asyncio
import signal

import pytest

from aiofinetune import FineTuneSession
from aiofinetune.cli._serve import notes, shown_url
from tests.local.test_command_line import exported, running

EVERYWHERE = ("serve", "--host", "0.0.0.0", "--port", "0", "--api-key", "kk")


async def stopped(process: asyncio.subprocess.Process) -> str:
    """What a server wrote to stderr until its end, which an interrupt brings."""
    process.send_signal(signal.SIGINT)
    _, stderr = await process.communicate()
    return stderr.decode()


@pytest.mark.parametrize("more", [(), ("--public-url", "http://127.0.0.1:8000")], ids=["alone", "a proxy without"])
async def test_other_machines_are_not_served_in_plain_text_unasked(more: tuple[str, ...]) -> None:
    """Beyond loopback, a server without https does not start, and says in one line what it needs."""
    async with running(*EVERYWHERE, *more) as process:
        stdout, stderr = await process.communicate()
    assert (process.returncode, stdout, stderr.count(b"\n")) == (2, b"", 1)
    assert stderr.startswith(b"aiofinetune: --host: ")
    for way in (b"--tls-cert", b"--public-url", b"--allow-plain-http"):
        assert way in stderr


async def test_plain_text_that_was_asked_for_is_served_and_told() -> None:
    """A session made from what a server on every address prints works, and the note says what others can read."""
    async with running(*EVERYWHERE, "--allow-plain-http") as process:
        variables = await exported(process)
        async with FineTuneSession(variables["OPENAI_API_KEY"], base_url=variables["OPENAI_BASE_URL"]) as session:
            assert await session.list_models()
        told = await stopped(process)
    assert "others on the network can read the key" in told
    assert "http://HOST:" in told
    assert "0.0.0.0" not in told


async def test_a_server_behind_a_proxy_prints_the_proxys_url() -> None:
    """With ``--public-url``, that is where clients are sent, Together's too, and plain http is not warned of."""
    async with running(*EVERYWHERE, "--public-url", "https://tuning.example.com/") as process:
        variables = await exported(process)
        told = await stopped(process)
    assert variables["OPENAI_BASE_URL"] == "https://tuning.example.com/v1"
    assert "https://tuning.example.com/together/v1" in told
    assert "can read the key" not in told


@pytest.mark.parametrize(
    ("listens_at", "shown"),
    [
        ("http://127.0.0.1:80/v1", "http://127.0.0.1:80/v1"),
        ("https://0.0.0.0:8443/v1", "https://127.0.0.1:8443/v1"),
        ("http://[::]:8000/v1", "http://[::1]:8000/v1"),
        ("http://192.0.2.1:8000/v1", "http://192.0.2.1:8000/v1"),
    ],
)
def test_a_client_is_given_an_address_that_it_can_send_to(listens_at: str, shown: str) -> None:
    """In place of "every address" stands loopback; any other address is shown as it is."""
    assert shown_url(listens_at) == shown


def test_https_is_not_warned_of() -> None:
    """The warning that others can read what is sent is printed only for plain http beyond loopback."""
    assert "can read" not in " ".join(notes("https://127.0.0.1:1/v1", "https://0.0.0.0:1/v1"))
    assert "can read" in " ".join(notes("http://192.0.2.1:1/v1", "http://192.0.2.1:1/v1"))
    assert "can read" not in " ".join(notes("http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1"))
