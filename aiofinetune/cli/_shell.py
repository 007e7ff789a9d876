"""What a command has at hand: its session, its consoles and its log."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
from rich.console import Console

from aiofinetune._http.transport import Timeout
from aiofinetune._secret import Secret
from aiofinetune.cli._output import one_line, print_json_line, print_line
from aiofinetune.cli._reaching import better_url, reach
from aiofinetune.dialects import Dialect
from aiofinetune.errors import ConfigurationError, LocalFileError
from aiofinetune.retry import Retry
from aiofinetune.session import FineTuneSession, find_service

_log: Final = logging.getLogger("aiofinetune")
_MAX_KEY_BYTES: Final = 1 << 16
_CONNECT: Final = Timeout().connect
_LOOPBACK: Final = "http://127.0.0.1/v1"
"""Stands for the base URL of the embedded server before it runs."""


@attrs.frozen
class Shell:
    """The surroundings of one command.

    Args:
        out: Where to print what was asked for.
        err: Where to print hints, progress and warnings.
        api_key: The service's key; None leaves it to the session.
        base_url: The service's URL; None leaves it to the session.
        dialect: The name of the dialect; None leaves it to the session.
        allow_plain_http: Whether the key may be sent over plain http.
        timeout: How long to wait.
        retry: How often to retry.
        local: Whether to run an embedded server.
        local_data: Its folder; None is a temporary one.
        as_json: Whether to print JSON lines in place of texts for people.
        is_quiet: Whether to print no hints and no progress.
        log: What shows the log on `err`.
        again: The options by which another command reaches the same service.
        words: The words of the command line, after the program's name.
        waits_for_service: Whether to wait until the service can be reached.
    """

    out: Console
    err: Console
    api_key: Secret | None = None
    base_url: str | None = None
    dialect: str | None = None
    allow_plain_http: bool = False
    timeout: Timeout = Timeout()
    retry: Retry = Retry()
    local: bool = False
    local_data: Path | None = None
    as_json: bool = False
    is_quiet: bool = False
    log: logging.Handler = attrs.field(factory=logging.NullHandler)
    again: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    waits_for_service: bool = False

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[FineTuneSession]:
        """Open a session with the service, or with an embedded server that runs as long.

        The first call finds the service there: this waits a little for it, and guesses at a ``/v1`` that was left out.

        Raises:
            ConfigurationError: There is no key, or an option is not valid.
            ConnectFailed: The service cannot be reached.
        """
        async with contextlib.AsyncExitStack() as stack:
            key, url = self.api_key, self.base_url
            if self.local:
                from aiofinetune.local import LocalServer  # noqa: PLC0415  # needs an extra

                server = await stack.enter_async_context(LocalServer(self.local_data))
                key, url = Secret(server.api_key), server.url_of(self.dialect or "")
            session = self._session_with(key, url)
            if not self.local:
                await reach(
                    session.base_url,
                    retries=self.retry.attempts - 1,
                    waits=self.waits_for_service,
                    say=self.tell,
                )
                if better := await better_url(session.base_url, partial(self._session_with, key)):
                    self.tell(f"there is no API at {session.base_url}, but at {better}, which is used; add the /v1")
                    session = self._session_with(key, better)
            yield await stack.enter_async_context(session)

    def find_service(self) -> tuple[Dialect, str]:
        """Return the dialect and the base URL that a session will have; the embedded server's without its port.

        Raises:
            ConfigurationError: There is no such dialect, or it has no base URL of its own and none was given.
        """
        return find_service(self.dialect, _LOOPBACK if self.local else self.base_url)

    def _session_with(self, key: Secret | None, url: str | None) -> FineTuneSession:
        return FineTuneSession(
            key,
            base_url=url,
            dialect=self.dialect,
            timeout=self.timeout,
            retry=self.retry,
            allow_plain_http=self.allow_plain_http,
        )

    @property
    def shows_progress(self) -> bool:
        """Whether there is a terminal to draw progress bars on."""
        return self.err.is_terminal and not self.is_quiet

    def hint(self, words: str) -> None:
        """Tell a person something beside the output."""
        if not self.is_quiet:
            print_line(self.err, words, "dim")

    def tell(self, words: str) -> None:
        """Tell a person what this command does or waits for, beside the output; in a log with the time."""
        if not self.is_quiet:
            print_line(self.err, words if self.err.is_terminal else stamped(words))

    def command(self, *words: str) -> str:
        """Return a command that reaches the same service, to be pasted into a shell."""
        return shlex.join(["aiofinetune", *words, *self.again])

    def print_json(self, *values: object) -> None:
        """Print models, each as a JSON object on a line: all their fields by name; None is null."""
        from aiofinetune import structuring  # noqa: PLC0415  # only for --json

        for value in values:
            print_json_line(structuring.write_reply(value) if attrs.has(type(value)) else value)


def stamped(words: str) -> str:
    """Return a line with the date and time before it, for a log that somebody reads later."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}"


@contextlib.contextmanager
def opened(
    given: Mapping[str, Any], again: tuple[str, ...], words: tuple[str, ...] = ()
) -> Iterator[Shell]:  # Any: the values of options
    """Return a context manager of the surroundings of a command, in which its log is written.

    Args:
        given: The shared options, by name.
        again: The options by which another command reaches the same service.
        words: The words of the command line, after the program's name.

    Raises:
        ConfigurationError: There is no such folder for the log.
        LocalFileError: The file of the key cannot be read or holds none, or that of the log cannot be written.
    """
    no_color = True if given["no_color"] else None
    seconds, retries = given["timeout"], given["retries"]
    timeout = Timeout() if seconds is None else Timeout(connect=min(_CONNECT, seconds), reply=seconds, stall=seconds)
    err = Console(no_color=no_color, highlight=False, stderr=True)
    level = (
        logging.ERROR if given["quiet"] else (logging.WARNING, logging.INFO, logging.DEBUG)[min(given["verbose"], 2)]
    )
    shell = Shell(
        Console(no_color=no_color, highlight=False),
        err,
        _key(given["api_key"], given["api_key_file"]),
        given["base_url"],
        given["dialect"],
        bool(given["allow_plain_http"]),
        timeout,
        Retry() if retries is None else Retry(attempts=retries + 1),
        given["local"],
        given["local_data"],
        given["as_json"],
        given["quiet"],
        _OnConsole(err, level),
        again,
        words,
        given["wait_for_service"],
    )
    with _logged(shell.log, given["log_file"]):
        yield shell


def _key(key: str | None, file: Path | None) -> Secret | None:
    if key is not None or file is None:
        return None if key is None else Secret(key)
    try:
        with file.open("rb") as opened_file:
            line = opened_file.readline(_MAX_KEY_BYTES)
        key = line.decode().strip()
    except OSError as error:
        raise LocalFileError(f"--api-key-file: {file}: {error.strerror}") from error
    except UnicodeDecodeError:
        # The error would show what may be a key.
        raise LocalFileError(f"--api-key-file: the first line of {file} is not text") from None
    if not key:
        raise LocalFileError(f"--api-key-file: the first line of {file} is empty; write the key there")
    return Secret(key)


class _OnConsole(logging.Handler):
    """Prints records to a console, above a progress bar if there is one."""

    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record on one line."""
        print_line(self._console, f"aiofinetune: {record.getMessage()}")


class _LogFile(logging.FileHandler):
    """Appends records to a file. If that fails, it is said once, and the command goes on without its log.

    Args:
        file: The file.
        shown: What shows records to people.
    """

    def __init__(self, file: Path, shown: logging.Handler) -> None:
        super().__init__(file, encoding="utf-8", errors="backslashreplace")
        self._file = file
        self._shown = shown
        self._is_told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  # as logging has it
        """Say why a record could not be written."""
        if not self._is_told and self._shown.level <= logging.WARNING:
            self._is_told = True
            words = f"{self._file}: {getattr(sys.exception(), 'strerror', None)}; the log is not written"
            self._shown.handle(logging.makeLogRecord({"msg": words, "levelno": logging.WARNING}))

    def close(self) -> None:
        """Close the file, with what could not be written."""
        with contextlib.suppress(OSError):
            super().close()


class _OneLine(logging.Formatter):
    """Formats a record on one line, whatever a service has said."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return one_line(super().format(record))


@contextlib.contextmanager
def _logged(shown: logging.Handler, file: Path | None) -> Iterator[None]:
    """Write what the library logs to the console, and to a file."""
    handlers = [shown]
    if file is not None:
        try:
            handlers.append(_LogFile(file, shown))
        except FileNotFoundError:
            raise ConfigurationError(f"log_file: the folder {file.parent} does not exist") from None
        except OSError as error:
            raise LocalFileError(f"{file}: {error.strerror}") from error
        handlers[-1].setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers[-1].setLevel(min(shown.level, logging.INFO))
    before = _log.level
    _log.setLevel(min(handler.level for handler in handlers))
    for handler in handlers:
        _log.addHandler(handler)
    try:
        yield
    finally:
        _log.setLevel(before)
        for handler in handlers:
            _log.removeHandler(handler)
            handler.close()
