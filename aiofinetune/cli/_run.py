"""Run the coroutine of a command, end it at a signal, print its error, and exit with the status that says why."""

from __future__ import annotations

import asyncio
import contextlib
import io
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Final, NoReturn

import click

from aiofinetune.cli._exit import Exit, exit_status, way_out
from aiofinetune.cli._stdio import OutputFailed
from aiofinetune.cli._wording import in_arguments, in_commands, in_options
from aiofinetune.errors import (
    BadRequest,
    ConfigurationError,
    Conflict,
    FineTuneError,
    JournalUnusable,
    LocalFileError,
    NotFound,
    ProtocolViolation,
    RequestInvalid,
)
from aiofinetune.models import CreateUncertain

_ABOUT_OPTIONS: Final = (ConfigurationError, JournalUnusable, ProtocolViolation, RequestInvalid)
"""The errors whose words may name parameters."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run(main: Coroutine[object, object, int | None]) -> int:
    """Run a coroutine, and return the exit status: what it returns, or that of the signal that cancelled it."""
    return asyncio.run(_until_signal(main))


async def _until_signal(main: Coroutine[object, object, int | None]) -> int:
    task = asyncio.current_task()
    received: list[int] = []

    def interrupt(number: int) -> None:
        received.append(number)
        if task is not None:
            task.cancel()

    try:
        with on_signal(interrupt):
            return await main or 0
    except asyncio.CancelledError as error:
        if not received:
            raise
        # A create that was cancelled says in a note what is known about its job.
        for note in getattr(error, "__notes__", ()):
            _say([in_commands(str(note))])
    except FineTuneError as error:
        if not received:
            raise
        _say(_worded(error))
    return exit_status(signal=received[0])


@contextlib.contextmanager
def on_signal(interrupt: Callable[[int], None]) -> Iterator[None]:
    """Call a function with the number of each SIGINT and SIGTERM that is received in the block.

    Only the main thread of a process receives signals. In another, as where a test runs a command, there are none. In a
    block in another the inner function is called, and after it the outer one again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = [signal.getsignal(number) for number in _SIGNALS]
    _interrupts.append(interrupt)
    for number in _SIGNALS:
        loop.add_signal_handler(number, _interrupt, number)
    try:
        yield
    finally:
        _interrupts.remove(interrupt)
        if not _interrupts:
            for number, handler in zip(_SIGNALS, before, strict=True):
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


def _interrupt(number: int) -> None:
    _interrupts[-1](number)


_interrupts: Final[list[Callable[[int], None]]] = []
"""What is called with the number of a signal: the last one. The signals are those of the process."""


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Let a signal end the process in the block, in which the event loop waits for a person's answer.

    A handler in Python might wait for that answer too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, signal.SIG_DFL) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


async def for_each(names: Sequence[str], do: Callable[[str], Awaitable[object]]) -> Exit:
    """Do something for each name, and return the exit status of all. A refusal of one does not keep the others."""
    status = Exit.DONE
    for name in names:
        try:
            await do(name)
        except (BadRequest, Conflict, NotFound) as error:
            if len(names) == 1:
                raise
            _say([f"{name}: {error}"])
            status = exit_status(error, so_far=status)
    return status


@contextlib.contextmanager
def reported(verbosity: int = 0, find_way_out: Callable[[BaseException], str | None] = way_out) -> Iterator[None]:
    """Print this package's own errors to stderr, and exit with their status.

    Args:
        verbosity: From 2 on, the traceback is printed first.
        find_way_out: Returns what to do about an error.
    """
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot display must not stop a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        yield
    except FineTuneError as error:
        if verbosity > 1:
            for line in "".join(traceback.format_exception(error)).splitlines():
                _write(line)
        fail(error, find_way_out(error))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(int(exit_status(signal=signal.SIGINT)))


def fail(error: FineTuneError, advice: str | None = None) -> NoReturn:
    """Print an error to stderr, and exit with its status.

    Args:
        error: The error.
        advice: What to do about it.
    """
    # Who closes a pipe, as in `aiofinetune list | head -1`, has seen enough.
    if not isinstance(error, OutputFailed) or not error.is_closed_pipe:
        _say(_worded(error))
    for line in (*getattr(error, "__notes__", ()), *([advice] if advice else [])):
        _write(f"  {line}")
    sys.exit(int(exit_status(error)))


def _worded(error: FineTuneError) -> list[str]:
    """Return the lines of an error in the words of the command line."""
    words, ctx = str(error), click.get_current_context(silent=True)
    if ctx is not None and isinstance(error, _ABOUT_OPTIONS):
        words = in_options(words, ctx)
    elif ctx is not None and isinstance(error, LocalFileError):
        # What it says of a field may be a file's name.
        words = in_arguments(words, ctx)
    elif isinstance(error, CreateUncertain):
        words = in_commands(words)
    # The lists of what is wrong with a manifest or a journal have a line for each; a service's text is one line.
    return words.splitlines() if isinstance(error, JournalUnusable | ValueError) else [words]


def _say(lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        _write(line if number else f"aiofinetune: {line}")


def _write(line: str) -> None:
    # A service's text may hold characters that would steer the terminal.
    click.echo("".join(character if character.isprintable() else " " for character in line), err=True)
