"""The options that all commands share, from the command line, the environment and configuration files.

An option goes before its ``AIOFINETUNE_`` variable, that before ``--config FILE`` or else the user's own configuration
file, and that before the file of the working directory, which may only set what is shown.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from aiofinetune.cli._types import LocalPath, Number
from aiofinetune.cli._wording import PLACES, SOURCES, origin, places

# ruff: noqa: PLC0415  # --help needs only the names of the options

Function = TypeVar("Function", bound=Callable[..., Any])  # Any: click calls it by the names of its options

LOCAL_FILE: Final = ".aiofinetune.toml"
"""The configuration file of a working directory."""
_HARMLESS: Final = frozenset({"timeout", "retries", "as_json", "verbose", "quiet", "no_color"})
"""What the file of a working directory may set: not where the key goes, and not which file is written."""
_PATHS: Final = frozenset({"api_key_file", "log_file", "local_data"})
_OF_A_SERVICE: Final = ("api_key_file", "dialect", "allow_plain_http")
"""What a configuration file says of the service of its base URL, and of no other."""


def user_file() -> Path:
    """Return the path of the user's own configuration file."""
    folder = Path(click.get_app_dir("aiofinetune"))
    # A relative folder in XDG_CONFIG_HOME is not valid (XDG Base Directory Specification), and might be anybody's.
    return (folder if folder.is_absolute() else Path.home() / ".config" / "aiofinetune") / "config.toml"


def _configured(ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Let the options that are not given have the values of the configuration files."""
    usual = user_file()
    values = _read(ctx, Path(LOCAL_FILE), allowed=_HARMLESS)
    values |= _read(ctx, usual if path is None else path, is_needed=path is not None)
    ctx.default_map = {**(ctx.default_map or {}), **values}
    return path


def _read(
    ctx: click.Context, path: Path, *, allowed: frozenset[str] | None = None, is_needed: bool = False
) -> dict[str, Any]:  # Any: click checks
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        if is_needed:
            raise click.BadParameter(f"{path} does not exist.") from None
        return {}
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    values = {"as_json" if name == "json" else name: value for name, value in found.items()}
    where = places(str(path), text, values)
    ctx.meta.setdefault(PLACES, {}).update(where)
    for name, value in values.items():
        if name not in NAMES - {"api_key", "config"} or isinstance(value, dict | list):
            raise click.UsageError(
                f"{where[name]}: {name!r} is not a setting; the settings are {', '.join(_settings())}"
            )
        if allowed is not None and name not in allowed:
            raise click.UsageError(
                f"{where[name]}: {name} may not be set by a file of the working directory; if you trust it, pass"
                f" --config {path}, or write it into {user_file()}"
            )
    return {name: _path(path, value) if name in _PATHS else value for name, value in values.items()}


def _path(file: Path, value: object) -> str:
    """Return a path of a configuration file, which is relative to that file's folder."""
    return str(file.absolute().parent / Path(str(value)).expanduser())


def _settings() -> list[str]:
    return sorted("json" if name == "as_json" else name for name in NAMES - {"api_key", "config"})


class _Option(click.Option):
    """A shared option, whose errors say from which variable or file a wrong value comes."""

    def consume_value(
        self, ctx: click.Context, opts: Mapping[str, Any]
    ) -> tuple[Any, ParameterSource]:  # Any: as click has it
        """Note where the value comes from."""
        value, source = super().consume_value(ctx, opts)
        ctx.meta.setdefault(SOURCES, {})[self.name] = source
        return value, source

    def process_value(self, ctx: click.Context, value: Any) -> Any:  # Any: as click has it
        """Return the value; say where a wrong one comes from, if it is not from the command line."""
        try:
            return super().process_value(ctx, value)
        except click.BadParameter as error:
            if (where := origin(self.name or "", ctx)) not in self.opts:
                words = f"{error.message.rstrip('.')}. It comes from {where.removesuffix(f', {self.name}')}."
                raise click.BadParameter(words, ctx, self) from None
            raise


_FILE: Final = LocalPath(path_type=Path, dir_okay=False)
_OPTIONS: Final = (
    _Option(["--base-url"], metavar="URL", help="URL of the service, with its /v1; else OPENAI_BASE_URL."),
    _Option(
        ["--dialect"],
        metavar="NAME",
        help="What the service speaks; see 'aiofinetune services'. By default that of a known host, or fine-tunes.",
    ),
    _Option(["--api-key-file"], type=_FILE, help="File whose first line is the key; else OPENAI_API_KEY."),
    _Option(["--api-key"], metavar="KEY", help="The key, which other users of this machine can see here."),
    _Option(["--allow-plain-http"], is_flag=True, help="Send the key over plain http to another machine."),
    _Option(["--local"], is_flag=True, help="Run an embedded server for this command, and need no key."),
    _Option(
        ["--local-data"],
        type=LocalPath(path_type=Path, file_okay=False),
        help="Run it with this folder, which keeps its files, jobs and models.",
    ),
    _Option(
        ["--timeout"],
        type=Number(0, min_open=True),
        metavar="SECONDS",
        help="Longest wait for a reply, or for an upload or a download to move; default 60.",
    ),
    _Option(["--retries"], type=click.IntRange(0), metavar="N", help="How often to retry a call; default 4."),
    _Option(
        ["--wait-for-service"],
        is_flag=True,
        help="Wait for as long as it takes to reach the service; else a command ends within 10 seconds if it cannot.",
    ),
    _Option(["--json", "as_json"], is_flag=True, help="Print JSON, an object on each line."),
    _Option(["-v", "--verbose"], count=True, help="Log what is retried; -vv also shows tracebacks."),
    _Option(["-q", "--quiet"], is_flag=True, help="Print no hints, no progress and no warnings."),
    _Option(["--log-file"], type=_FILE, help="Append the log to this file, with times."),
    _Option(["--no-color"], is_flag=True, help="Print no colors, as with the variable NO_COLOR."),
)
_CONFIG: Final = _Option(
    ["--config"],
    type=_FILE,
    is_eager=True,
    callback=_configured,
    envvar="AIOFINETUNE_CONFIG",
    help="Configuration file (TOML) in place of your own.",
)
WORDS: Final = "aiofinetune.words"
"""The key in a context's `meta` of the words of the command line, after the program's name."""
NAMES: Final = frozenset({"config", *(option.name or "" for option in _OPTIONS)})
"""The names of the shared options, as parameters."""
for _option in _OPTIONS:
    _option.envvar = f"AIOFINETUNE_{'JSON' if _option.name == 'as_json' else (_option.name or '').upper()}"


class Command(click.Command):
    """A command with the shared options, which its help lists after its own."""

    def __init__(self, *args: Any, **options: Any) -> None:  # Any: as click takes them
        super().__init__(*args, **options)
        self.params += [*_OPTIONS, _CONFIG]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the shared ones."""
        for title, is_shared in (("Options", False), ("Shared options", True)):
            options = [param for param in self.get_params(ctx) if param.param_type_name == "option"]
            params = [param for param in options if (param.name in NAMES) is is_shared]
            if rows := [row for param in params if (row := param.get_help_record(ctx)) is not None]:
                with formatter.section(title):
                    formatter.write_dl(rows)


def examples(*lines: str) -> str:
    """Return the end of a command's help: its examples, each on a line of its own."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def session_command(function: Callable[..., Coroutine[object, object, int | None]]) -> Callable[..., None]:
    """Return what a `Command` calls: it makes a `Shell` of the shared options, and runs the coroutine with it."""

    @functools.wraps(function)
    def call(**options: Any) -> None:  # Any: as click calls it
        from aiofinetune.cli._run import reported, run
        from aiofinetune.cli._shell import opened

        ctx = click.get_current_context()
        given = {name: options.pop(name) for name in NAMES}
        given["local"] = given["local"] or given["local_data"] is not None
        with reported(given["verbose"]):
            if ctx.get_parameter_source("api_key") is ParameterSource.COMMANDLINE and not given["quiet"]:
                click.echo("aiofinetune: other users of this machine can see --api-key; use --api-key-file", err=True)
            from_file = [name for name in NAMES if ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP]
            file_url = (ctx.default_map or {}).get("base_url")
            given = of_one_service(given, from_file, file_url, os.environ)
            with opened(given, _again(ctx), ctx.meta.get(WORDS, ())) as shell:
                status = run(function(shell, **options))
        sys.exit(status)

    return call


def of_one_service(
    given: Mapping[str, Any], from_file: Collection[str], file_url: str | None, environ: Mapping[str, str]
) -> dict[str, Any]:  # Any: the values of options
    """Return the options without what a configuration file says of another service than the one that is in use.

    So the key of a file goes to the base URL of that file, and to no other.

    Args:
        given: The options, by name.
        from_file: The names of those that come from a configuration file.
        file_url: The base URL that the file names, if it names one.
        environ: The environment, whose ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY`` go before a configuration file.
    """
    options = dict(given)
    if "base_url" in from_file and environ.get("OPENAI_BASE_URL"):
        options["base_url"] = None
    in_use = options["base_url"] or environ.get("OPENAI_BASE_URL")
    if given["local"] or (file_url is not None and in_use != file_url):
        options.update({name: None for name in _OF_A_SERVICE if name in from_file})
    elif file_url is None and "api_key_file" in from_file and environ.get("OPENAI_API_KEY"):
        options["api_key_file"] = None
    return options


def _again(ctx: click.Context) -> tuple[str, ...]:
    """Return the options that another command needs to reach the same service, as they were given."""
    words: list[str] = []
    for name in ("config", "base_url", "dialect", "api_key_file", "allow_plain_http", "local_data"):
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value, option = ctx.params[name], f"--{name.replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
    return tuple(words)
