"""A real server for each test, and a plain HTTP client for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from aiofinetune.local import LocalServer
from tests.local.plainclient import KEY, Client, Connect, Launch, connected, find_trainers, jsonl, launched


@pytest.fixture
def connect() -> Connect:
    """`connected`, for tests that start servers of their own."""
    return connected


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The server's data folder."""
    return tmp_path / "data"


@pytest.fixture
async def server(data: Path) -> AsyncIterator[LocalServer]:
    """A running server."""
    async with LocalServer(data, api_key=KEY) as server:
        yield server


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[Client]:
    """A client of the running server."""
    async with connected(server.base_url) as client:
        yield client


@pytest.fixture
def examples() -> bytes:
    """A training file that takes a moment to learn."""
    return jsonl((f"{number} is", " odd" if number % 2 else " even") for number in range(20))


@pytest.fixture
def trainers() -> Callable[[Path], list[int]]:
    """`find_trainers`, for tests that look for processes left behind."""
    return find_trainers


@pytest.fixture
def launch() -> Launch:
    """`launched`, for tests that kill servers."""
    return launched
