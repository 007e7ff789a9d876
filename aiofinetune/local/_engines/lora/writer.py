"""The process that writes completions with one open model and its adapters.

    python -P aiofinetune/local/_engines/lora/writer.py

The first line of standard input is the model, as `OpenModel.as_json` returns it. Each further line is a JSON object:
``{"id": 1, "asked": {...}, "weights": PATH or null}`` asks for completions, and ``{"id": 1, "cancel": true}`` abandons
them. On standard output, each line is one of ``{"id": 1, "piece": [INDEX, {...}]}``, ``{"id": 1, "over": true}`` and
``{"id": 1, "failed": MESSAGE, "status": 500, "param": null}``.

Requests take turns, each of which reads one token, so that none waits until another is complete. The process ends as
soon as standard input does, so that a killed server does not leave it behind.
"""

# ruff: noqa: E402  # Slow imports follow the start of the thread that watches standard input.

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

# The exit status if standard input has ended.
EXIT_ABANDONED: Final = 3

_PIECE_BYTES: Final = 1 << 16


def read_lines(lines: "queue.Queue[bytes]") -> None:
    """Put the lines of standard input into a queue; end the process with it."""
    # sys.stdin is not used, because a thread that holds its lock would abort the interpreter at exit.
    rest = b""
    while piece := os.read(0, _PIECE_BYTES):
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            lines.put(line)
    os._exit(EXIT_ABANDONED)


_LINES: "queue.Queue[bytes]" = queue.Queue()

if __name__ == "__main__":
    threading.Thread(target=read_lines, args=[_LINES], daemon=True).start()

import contextlib
import json
import sys
import traceback

import attrs

from aiofinetune.local._engines import lora
from aiofinetune.local._engines.training_files import TrainingError
from aiofinetune.local._engines.written import Unable, Written


class Writes(Protocol):
    """Writes with a model."""

    def write(self, asked: Mapping[str, Any], weights: str | None) -> Iterator[tuple[int, Written] | None]:
        """Yield the pieces of what is asked for, and None between them, after each turn."""
        ...


def serve(lines: "queue.Queue[bytes]", open_writer: Callable[[Mapping[str, Any]], Writes]) -> None:
    """Answer requests until the process is ended.

    Args:
        lines: The lines of standard input.
        open_writer: Loads the model.
    """
    with contextlib.redirect_stdout(sys.stderr):
        try:
            writer = open_writer(json.loads(lines.get()))
        except Exception as error:  # noqa: BLE001  # It is the answer to each waiting request.
            _refuse_all(lines, _unable(error))
            return
        active: dict[int, Iterator[tuple[int, Written] | None]] = {}
        while True:
            while not (active and lines.empty()):
                _take(json.loads(lines.get()), active, writer)
            for number in list(active):
                _turn(number, active)


def _take(message: dict[str, Any], active: dict[int, Iterator[Any]], writer: Writes) -> None:
    if message.get("cancel"):
        if steps := active.pop(message["id"], None):
            steps.close()  # type: ignore[attr-defined]  # It is a generator, and frees what it uses.
    else:
        active[message["id"]] = writer.write(message["asked"], message["weights"])


def _turn(number: int, active: dict[int, Iterator[tuple[int, Written] | None]]) -> None:
    try:
        found = next(active[number])
    except StopIteration:
        del active[number]
        _say(number, over=True)
    except Exception as error:  # noqa: BLE001  # Other requests go on.
        del active[number]
        _say(number, **_unable(error))
    else:
        if found is not None:
            index, piece = found
            _say(number, piece=[index, attrs.asdict(piece)])


def _refuse_all(lines: "queue.Queue[bytes]", failure: dict[str, Any]) -> None:
    while True:
        message = json.loads(lines.get())
        if not message.get("cancel"):
            _say(message["id"], **failure)


def _unable(error: Exception) -> dict[str, Any]:
    if isinstance(error, Unable):
        return {"failed": str(error), "status": error.status, "param": error.param}
    if isinstance(error, TrainingError):
        return {"failed": str(error), "status": 500, "param": None}
    traceback.print_exc()
    return {"failed": f"The model failed: {type(error).__name__}: {error}", "status": 500, "param": None}


def _say(number: int, **what: object) -> None:
    assert sys.__stdout__ is not None  # noqa: S101  # The server gives it a pipe.
    sys.__stdout__.write(json.dumps({"id": number, **what}) + "\n")
    sys.__stdout__.flush()


def open_sampler(open_model: Mapping[str, Any]) -> Writes:
    """Load an open model.

    Raises:
        TrainingError: It cannot be loaded, or the extra is not installed.
    """
    lora.set_environment()
    try:
        from aiofinetune.local._engines.lora import sampling  # noqa: PLC0415  # It imports the extra.
    except ImportError as error:
        raise TrainingError(f"{lora.EXTRA} ({error})") from error
    return sampling.Sampler(open_model)


if __name__ == "__main__":
    # NumPy and PyTorch read these when they are imported.
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    serve(_LINES, open_sampler)
