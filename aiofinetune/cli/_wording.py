"""Say errors in the words of the command line: options in place of parameters, and where a wrong value comes from."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import click
from click.core import ParameterSource

PLACES: Final = "aiofinetune.places"
"""The key in a context's `meta` of where each value of a configuration file stands, by the option's name."""
SOURCES: Final = "aiofinetune.sources"
"""The key in a context's `meta` of where each option's value comes from, by the option's name."""

_FIELD: Final = re.compile(r"(\w+)(?=[\w.\[\]']*: )")
_ARGUMENT_OF_OPTION: Final = re.compile(r"\b\w+=\S+ \((--[\w-]+)\)")
"""A parameter in code, and the option in brackets: ``accept_changes=True (--accept-changes)``."""
_ARGUMENT: Final = re.compile(r"\b(\w+)=(True\b|'[^']*')(?: \(AIOFINETUNE_\w+(?:=[\w-]+)?\))?")
"""A parameter in code with its value: ``allow_plain_http=True``, ``dialect='jobs' (AIOFINETUNE_DIALECT)``."""
_PASSED: Final = re.compile(r"\b(pass an|pass|without) (\w+)(?=[ ;,]|$)")
_COMMANDS: Final = {
    "cancel_fine_tune": "cancel",
    "create_fine_tune": "create",
    "list_checkpoints": "checkpoints",
    "list_fine_tunes": "list",
    "pause_fine_tune": "pause",
    "resume_fine_tune": "resume",
    "retrieve_fine_tune": "get",
}
"""The commands of the calls that errors name."""
_CALL: Final = re.compile(rf"\b({'|'.join(_COMMANDS)})(\(\))?")
_OPTION_OF: Final = {"data": "local_data"}
"""The options of parameters that have another name: that of `LocalServer`."""
_VARIABLES: Final = {"base_url": "OPENAI_BASE_URL", "api_key": "OPENAI_API_KEY"}
"""The variables of OpenAI's, which the library reads."""


def in_options(words: str, ctx: click.Context) -> str:
    """Return what an error says of parameters, said of the options of a command.

    Args:
        words: The error's text, such as ``"n_epochs: expected an integer of at least 1, got 0"``.
        ctx: The command's context.
    """
    if words.startswith("api_key: missing"):
        return "there is no key"
    options = _options(ctx)
    if found := _FIELD.match(words):
        name = found[1] if found[1] in options else _OPTION_OF.get(found[1])
        if name in options:
            words = f"{origin(name, ctx)}{words[found.end(1) :]}"
    return _PASSED.sub(
        lambda match: f"{match[1]} {options.get(match[2], match[2])}", in_commands(in_arguments(words, ctx))
    )


def in_commands(words: str) -> str:
    """Return what an error says of calls, said of commands: ``retrieve_fine_tune()`` is ``'aiofinetune get'``."""
    return _CALL.sub(
        lambda match: f"'aiofinetune {_COMMANDS[match[1]]}'" if match.start() else _COMMANDS[match[1]], words
    )


def in_arguments(words: str, ctx: click.Context) -> str:
    """Return what an error says of arguments in code, said of options: ``overwrite=True`` is ``--overwrite``."""
    options = _options(ctx)

    def option(match: re.Match[str]) -> str:
        if match[1] not in options:
            return match[0]
        value = match[2].strip("'")
        return options[match[1]] if value == "True" else f"{options[match[1]]} {shlex.quote(value)}"

    return _ARGUMENT.sub(option, _ARGUMENT_OF_OPTION.sub(r"\1", words))


def origin(name: str, ctx: click.Context) -> str:
    """Return where the value of an option comes from: the option itself, a variable, or a line of a file."""
    source = ctx.meta.get(SOURCES, {}).get(name)
    if source is ParameterSource.ENVIRONMENT:
        return next(param.envvar for param in ctx.command.params if param.name == name)  # type: ignore[return-value]  # ours have one
    if source is ParameterSource.DEFAULT_MAP:
        return f"{ctx.meta[PLACES][name]}, {name}"
    variable = _VARIABLES.get(name)
    if source is ParameterSource.DEFAULT and variable is not None and os.environ.get(variable):
        return variable
    return _options(ctx)[name]


def _options(ctx: click.Context) -> dict[str, str]:
    """Return how each parameter of a command is written."""
    written: dict[str, str] = {}
    for param in ctx.command.params:
        if param.name is not None:
            is_option = param.param_type_name == "option"
            written[param.name] = max(param.opts, key=len) if is_option else param.human_readable_name
    if "api_key_file" in written:
        # A key on the command line can be seen by others.
        written["api_key"] = written["api_key_file"]
    return written


def again(
    words: Sequence[str], without: Collection[str] = (), flags: Collection[str] = (), more: Sequence[str] = ()
) -> str:
    """Return a command line that goes on with what another began, to be pasted into a shell.

    Args:
        words: The words of the other, after the program's name.
        without: The options to leave out that take a value.
        flags: The options to leave out that take none.
        more: The words to add.
    """
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        name, sign, _ = word.partition("=")
        if name in without:
            if not sign:
                next(rest, None)
        elif word not in flags:
            kept.append(word)
    return shlex.join(["aiofinetune", *kept, *more])


def places(path: str, text: str, names: Collection[str]) -> Mapping[str, str]:
    """Return where the settings of a configuration file stand, such as ``"config.toml, line 3"``."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name = line.partition("=")[0].strip().strip("\"'")
        name = "as_json" if name == "json" else name
        if name in names:
            found[name] = f"{path}, line {number}"
    return {name: found.get(name, path) for name in names}
