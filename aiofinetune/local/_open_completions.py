"""Completions by open models. Each base model has a process of its own, which also holds its adapters.

A process is started when its model is first asked for something, and ended when it has been idle for a while: models
take much memory. It speaks the lines that `aiofinetune.local._engines.lora.writer` describes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import attrs

from aiofinetune import structuring
from aiofinetune._threads import until_over
from aiofinetune.local._completions import ChatRequest, CompletionRequest
from aiofinetune.local._engines.written import Written
from aiofinetune.local._open_models import OpenModel
from aiofinetune.local._store.models import Origin
from aiofinetune.local._store.refused import Refused

_IDLE: Final = 300.0
"""Seconds without a request after which a model's process is ended."""

_STDERR_BYTES: Final = 4096
"""The number of bytes that are kept from the end of a process's stderr."""

_WRITER: Final = Path(__file__).parent / "_engines" / "lora" / "writer.py"

_PARAMETERS: Final = ("prompt", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "logprobs", "echo")


class OpenCompleter:
    """Writes completions with open models.

    Args:
        program: The command of a model's process.
        idle: Seconds without a request after which a process is ended.
    """

    def __init__(self, program: Sequence[str] = (sys.executable, "-P", str(_WRITER)), idle: float = _IDLE) -> None:
        self._program = program
        self._idle = idle
        self._processes: dict[str, _Process] = {}
        """The process of each base model, by the model's name."""
        self._ending: set[_Process] = set()
        """The processes that are about to end."""
        self._starting = asyncio.Lock()

    async def write(self, asked: CompletionRequest, origin: Origin) -> AsyncGenerator[list[tuple[int, Written]]]:
        """Yield the pieces as they are written (see `aiofinetune.local._completions.Completer`)."""
        assert origin.open_model is not None  # noqa: S101  # The other engine writes with the others.
        async with self._used(origin.open_model) as process:
            async for piece in process.write(asked, origin.weights):
                yield [piece]

    async def close(self) -> None:
        """End the processes (see `aiofinetune.local._completions.Completer`)."""
        for name in list(self._processes):
            self._unload(name)
        while self._ending:
            await self._ending.pop().ended()

    @contextlib.asynccontextmanager
    async def _used(self, model: OpenModel) -> AsyncIterator[_Process]:
        """Return a context manager of a model's process, which is not ended in the meantime."""
        async with self._starting:
            process = self._processes.get(model.name)
            if process is None or process.is_over:
                process = await _start(self._program, model)
                self._processes[model.name] = process
        process.users += 1
        process.timer.cancel()
        try:
            yield process
        finally:
            process.users -= 1
            if not process.users:
                process.timer = asyncio.get_running_loop().call_later(self._idle, self._unload, model.name, process)

    def _unload(self, name: str, idle: _Process | None = None) -> None:
        process = self._processes.get(name)
        if process is None or idle not in (None, process):
            return
        del self._processes[name]
        process.end()
        self._ending = {other for other in self._ending if not other.is_over} | {process}


@attrs.define(eq=False)
class _Process(asyncio.SubprocessProtocol):
    """A process that writes with one open model."""

    name: str
    users: int = 0
    timer: asyncio.TimerHandle = attrs.field(init=False)
    _transport: asyncio.SubprocessTransport = attrs.field(init=False)
    _answers: dict[int, asyncio.Queue[dict[str, Any] | None]] = attrs.field(factory=dict, init=False)
    """What the process has said about each request that is not over; None if it has ended."""
    _asked: int = attrs.field(default=0, init=False)
    _over: asyncio.Future[None] = attrs.field(init=False)
    _line: bytearray = attrs.field(factory=bytearray, init=False)
    _stderr: bytes = attrs.field(default=b"", init=False)
    _code: int = attrs.field(default=0, init=False)
    """The exit status, when it has ended."""

    def __attrs_post_init__(self) -> None:
        """Begin without a request."""
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        self.timer = loop.call_later(0, lambda: None)

    async def write(self, asked: CompletionRequest, weights: Path | None) -> AsyncGenerator[tuple[int, Written]]:
        """Yield the pieces of a request as they are written.

        Raises:
            Refused: The request cannot be answered, or the process has ended.
        """
        self._asked += 1
        number = self._asked
        answers = self._answers[number] = asyncio.Queue()
        is_over = False
        if self.is_over:
            answers.put_nowait(None)
        self.tell({"id": number, "asked": _parameters(asked), "weights": weights and str(weights)})
        try:
            while not is_over:
                answer = await answers.get()
                is_over = answer is None or "piece" not in answer
                if answer is None:
                    raise Refused(503, f"the process of the model {self.name} ended {self._how()}; try again")
                if "failed" in answer:
                    raise Refused(answer["status"], answer["failed"], param=answer["param"])
                if not is_over:
                    index, piece = answer["piece"]
                    yield index, _written(piece)
        finally:
            del self._answers[number]
            if not is_over:
                self.tell({"id": number, "cancel": True})

    @property
    def is_over(self) -> bool:
        """Whether the process has ended."""
        return self._over.done()

    def end(self) -> None:
        """End the process at once; it keeps nothing on the disk."""
        self.timer.cancel()
        if not self.is_over:
            self._transport.close()

    async def ended(self) -> None:
        """Wait until the process has ended."""
        await until_over(self._over)

    def tell(self, message: dict[str, object]) -> None:
        """Send the process a line."""
        pipe = self._transport.get_pipe_transport(0)
        if pipe is not None and not pipe.is_closing():
            cast("asyncio.WriteTransport", pipe).write(structuring.dumps(message) + b"\n")

    def _how(self) -> str:
        code = self._code
        how = f"with exit status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        # The kernel sends SIGKILL to a process when the machine runs out of memory.
        hint = ", perhaps because the machine ran out of memory" if code == -signal.SIGKILL else ""
        lines = self._stderr.decode(errors="replace").strip().splitlines()
        return how + hint + (f": {lines[-1]}" if lines and code > 0 else "")

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.SubprocessTransport", transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Read what the process says."""
        if fd == 2:
            self._stderr = (self._stderr + data)[-_STDERR_BYTES:]
            return
        self._line += data
        *lines, rest = self._line.split(b"\n")
        self._line = rest
        for line in lines:
            answer = structuring.loads(bytes(line))
            if answers := self._answers.get(answer["id"]):
                answers.put_nowait(answer)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # The process's own status says more.
        """Tell all who wait for an answer that the process has ended."""
        self._code = self._transport.get_returncode() or 0
        self._transport.close()
        self._over.set_result(None)
        for answers in self._answers.values():
            answers.put_nowait(None)


async def _start(program: Sequence[str], model: OpenModel) -> _Process:
    # As for trainers: one thread, the modules of the server, and no Ctrl-C at the terminal.
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    python_path = os.pathsep.join(path or os.curdir for path in sys.path)
    starting = asyncio.ensure_future(
        asyncio.get_running_loop().subprocess_exec(
            lambda: _Process(model.name),
            *program,
            env={**os.environ, **one_thread, "PYTHONPATH": python_path},
            start_new_session=True,
        )
    )
    try:
        _, process = await until_over(starting)
    except asyncio.CancelledError:
        # Otherwise nothing would end the process that has started.
        if not starting.cancelled() and starting.exception() is None:
            starting.result()[1].end()
            await starting.result()[1].ended()
        raise
    process.tell(model.as_json())
    return process


def _parameters(asked: CompletionRequest) -> dict[str, object]:
    parameters: dict[str, object] = {name: getattr(asked, name) for name in _PARAMETERS}
    messages = [attrs.astuple(message) for message in asked.messages] if isinstance(asked, ChatRequest) else None
    return {**parameters, "messages": messages}


def _written(piece: dict[str, Any]) -> Written:
    """Return a piece from its JSON."""
    lists = {name: piece[name] and tuple(piece[name]) for name in ("token_logprobs", "top_logprobs")}
    return Written(**{**piece, **lists, "tokens": tuple(piece["tokens"])})
