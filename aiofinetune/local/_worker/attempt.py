"""Run one attempt: fetch its inputs, train, pass on the trainer's lines, and upload what it made."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import re
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import aiohttp
import attrs

from aiofinetune import structuring
from aiofinetune._secret import Secret
from aiofinetune._threads import in_thread
from aiofinetune.errors import ProtocolViolation
from aiofinetune.local._trainers import Ended
from aiofinetune.local._trainers.trainer import ended, read_stderr, started
from aiofinetune.local._worker.calls import AttemptOver, Calls, Refusal
from aiofinetune.local._worker.folder import ATTEMPT, temporary_folder
from aiofinetune.local._worker.kept import KeptModels
from aiofinetune.local._worker.transfers import fetch, upload

_MAX_BATCH: Final = 256 << 10
"""The number of bytes of lines that are sent at once."""

_FAREWELL: Final = 2.0
"""Seconds within which a worker that is stopped says so to the server."""

_UPLOADS: Final = 3
"""How often an output is uploaded whose bytes arrive changed."""

_VERSION: Final = re.compile("[0-9a-f]{64}")

_log = logging.getLogger(__name__)


@attrs.frozen
class Work:
    """What a worker is to do."""

    job_id: str
    job: dict[str, Any]  # Any: the trainer's input, as the server wrote it
    inputs: dict[str, int]
    """The size of each file to fetch, by name."""
    outputs: tuple[str, ...]
    model_version: str
    """Tells the files of the open model from those of every other, and from other ones with the same names."""


async def run_attempt(http: aiohttp.ClientSession, url: str, token: str, models: KeptModels) -> bool:
    """Run an attempt to its end, or until the server says that it is over.

    Args:
        http: The session for the requests.
        url: The URL of the attempt.
        token: The token of the attempt.
        models: The open models of this worker.

    Returns:
        Whether this machine can run another one at once; False if it has run out of something.

    Raises:
        ConnectFailed: The server cannot be reached.
        Refusal: The server refuses what this worker sends.
    """
    calls = Calls(http, url, Secret(token), secrets.token_hex(16))
    lines = _Lines(calls)
    try:
        work = read_work(await calls.json("GET", "", params={"where": socket.gethostname()}))
        _log.info("fine-tune %s started", work.job_id)
        async with _folder() as folder, asyncio.TaskGroup() as group:
            watching = group.create_task(_watch(calls))
            await _work(calls, lines, work, folder, models)
            watching.cancel()
    except BaseException as error:  # noqa: BLE001  # It is raised below, or means that there is nothing to do.
        over, _ = BaseExceptionGroup("", [error]).split(AttemptOver)
        if over is None:
            await _leave(calls, "was stopped" if isinstance(error, asyncio.CancelledError) else "failed")
            raise _first(error) from error.__cause__
    _log.info("the attempt is over")  # The server says that to the watch and to the report of the end at once.
    return not lines.tell_of_shortage()


def _first(error: BaseException) -> BaseException:
    """Return the first error of a group, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _leave(calls: Calls, how: str) -> None:
    """Tell the server that this worker gives the attempt up, so that it need not wait for it."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_FAREWELL):
            await calls.json("DELETE", "", params={"how": how})


async def _watch(calls: Calls) -> None:
    """Ask again and again whether the attempt is over; the server answers when it is.

    Raises:
        AttemptOver: It is.
    """
    while True:
        await calls.json("GET", "/watch")


async def _work(calls: Calls, lines: _Lines, work: Work, folder: Path, models: KeptModels) -> None:
    job_path = folder / "job.json"
    async with _fetched(calls, work, folder, models) as job:
        await in_thread(None, lambda: job_path.write_bytes(structuring.dumps(job)))
        how = await _train(job_path, lines)
    _log.info("fine-tune %s: the trainer has ended %s", work.job_id, how.how)
    missing = [name for name in work.outputs if not (folder / name).is_file()]
    if how.is_well and missing:
        how = Ended(is_well=False, how=f"without {missing[0]}")
    await _finish(calls, lines, how, [folder / name for name in work.outputs])


@contextlib.asynccontextmanager
async def _fetched(
    calls: Calls, work: Work, folder: Path, models: KeptModels
) -> AsyncIterator[dict[str, Any]]:  # Any: the trainer's input
    """Fetch the inputs; return a context manager of the trainer's input, with the paths of the inputs."""
    open_model = work.job.get("open_model")
    parts = [name for name in work.inputs if open_model and name.startswith(f"{open_model['path']}/")]
    for name, size in work.inputs.items():
        if name not in parts:
            await fetch(calls, name, size, folder / name)
    if open_model is None:
        yield work.job
        return

    async def fetch_model(place: Path) -> None:
        for name in parts:
            await fetch(calls, name, work.inputs[name], place / PurePosixPath(name).name)

    async with models.used(work.model_version, fetch_model) as path:
        yield {**work.job, "open_model": {**open_model, "path": str(path)}}


async def _train(job_path: Path, lines: _Lines) -> Ended:
    async with started(job_path) as process, asyncio.TaskGroup() as group:
        assert process.stdout is not None  # noqa: S101  # It is a pipe.
        stderr = group.create_task(read_stderr(process))
        sending = group.create_task(lines.send_all())
        try:
            async for line in process.stdout:
                lines.add(line)
            code = await process.wait()
        except ValueError:  # A line is longer than asyncio's buffer.
            return Ended(is_well=False, how="because it wrote a line that is too long")
        finally:
            sending.cancel()
    return ended(code, stderr.result())


class _Lines:
    """The lines of a trainer. All are kept, because a server that was restarted needs them again."""

    def __init__(self, calls: Calls) -> None:
        self.all: list[bytes] = []
        self._calls = calls
        self._sent = 0
        self._added = asyncio.Event()

    def add(self, line: bytes) -> None:
        """Add a line, which is sent soon."""
        self.all.append(line.rstrip(b"\n"))
        self._added.set()

    def tell_of_shortage(self) -> bool:
        """Return whether the trainer ended because this machine has run out of something."""
        try:
            last = structuring.loads(self.all[-1]) if self.all else None
        except (ValueError, ProtocolViolation):
            return False
        return isinstance(last, dict) and last.get("type") == "short"

    async def send_all(self) -> None:
        """Send lines as they are added, until cancelled."""
        while True:
            await self._added.wait()
            self._added.clear()
            await self.send()

    async def send(self) -> None:
        """Send the lines that the server does not have."""
        while self._sent < len(self.all):
            batch = _batch(self.all, self._sent)
            answer = await self._calls.json(
                "POST", "/lines", params={"start": str(self._sent)}, body=functools.partial(b"\n".join, batch)
            )
            self._sent = int(answer["next"])

    def send_again(self) -> None:
        """Ask the server with the next `send` which lines it has."""
        self._sent = 0


def _batch(lines: list[bytes], start: int) -> list[bytes]:
    """Return lines from `start` on, at least one, that are not too long together."""
    size, stop = 0, start
    while stop < len(lines) and (stop == start or size + len(lines[stop]) < _MAX_BATCH):
        size += len(lines[stop]) + 1
        stop += 1
    return lines[start:stop]


async def _finish(calls: Calls, lines: _Lines, how: Ended, outputs: list[Path]) -> None:
    """Upload what a trainer made, and say how it ended."""
    digests: dict[str, str] = {}
    for tries_left in reversed(range(_UPLOADS)):
        try:
            await lines.send()
            if how.is_well:
                for path in outputs:
                    digests[path.name] = await in_thread(None, functools.partial(_digest, path))
                    await upload(calls, path)
            report = {"lines": len(lines.all), "is_well": how.is_well, "how": how.how, "outputs": digests}
            await calls.json("POST", "/end", body=functools.partial(structuring.dumps, report))
            return
        except Refusal as refusal:
            if not tries_left:
                raise
            if refusal.status not in (409, 422):
                how = Ended(is_well=False, how=f"well, but the server refused what it made: {refusal.message}")
            # 409: a server that was restarted needs the lines again. 422: an output arrived changed.
            lines.send_again()


@contextlib.asynccontextmanager
async def _folder() -> AsyncIterator[Path]:
    stack = contextlib.ExitStack()
    try:
        yield await in_thread(None, lambda: stack.enter_context(temporary_folder(ATTEMPT)))
    finally:
        await in_thread(None, stack.close)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_work(value: object) -> Work:
    """Read what the server says of an attempt.

    Raises:
        ProtocolViolation: It is not what a server says.
    """
    match value:
        case {
            "job_id": str(job_id),
            "job": dict(job),
            "inputs": list(inputs),
            "outputs": list(outputs),
            "model_version": str(version),
        } if _VERSION.fullmatch(version):
            sizes = {_relative(each["name"]): int(each["bytes"]) for each in inputs}
            _check_paths(job)
            return Work(job_id, job, sizes, tuple(map(_relative, outputs)), version)
        case _:
            raise ProtocolViolation("the server's description of the attempt is not one")


def _check_paths(job: Mapping[str, Any]) -> None:
    """Check that a trainer reads and writes only within the folder of the attempt, whatever the server says.

    Raises:
        ProtocolViolation: A path leads elsewhere.
    """
    named = [job.get(key) for key in ("training_path", "validation_path", "model", "model_path", "results_path")]
    named += (job.get("checkpoint_paths") or {}).values()
    named.append((job.get("open_model") or {}).get("path"))
    for name in filter(None, named):
        _relative(name)


def _relative(name: object) -> str:
    """Return the name of a file, if it is within the folder of the attempt."""
    if isinstance(name, str) and name.isprintable():
        path = PurePosixPath(name)
        if path.parts and not path.is_absolute() and ".." not in path.parts:
            return name
    raise ProtocolViolation(f"the server names a file {name!r}")
