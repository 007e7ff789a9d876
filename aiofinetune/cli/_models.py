"""The commands about models: models and delete-model."""

from __future__ import annotations

from typing import Final

import click

from aiofinetune.cli._files import confirm, show_deleted
from aiofinetune.cli._options import Command, examples, session_command
from aiofinetune.cli._output import Column, ago, print_columns
from aiofinetune.cli._run import for_each
from aiofinetune.cli._shell import Shell


@click.command(cls=Command, epilog=examples("aiofinetune models", "aiofinetune models ada --json"))
@click.argument("names", metavar="[MODEL]...", nargs=-1)
@session_command
async def models(shell: Shell, names: tuple[str, ...]) -> None:
    """List the models that the key may use, or show those that are named."""
    async with shell.session() as session:
        found = [await session.retrieve_model(name) for name in names] if names else await session.list_models()
    if shell.as_json:
        shell.print_json(*found)
    elif found:
        columns = [
            Column("model", [model.id for model in found]),
            Column("created", [ago(model.created) for model in found]),
            Column("owner", [model.owned_by or "" for model in found]),
        ]
        print_columns(shell.out, columns)
    else:
        shell.hint("no models")


@click.command("delete-model", cls=Command, epilog=examples("aiofinetune delete-model ada:ft-acme-2026-11-27 --yes"))
@click.argument("names", metavar="MODEL...", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask. Where stdin is no terminal, nothing is asked.")
@session_command
async def delete_model(shell: Shell, names: tuple[str, ...], *, yes: bool) -> int:
    """Delete fine-tuned models at the service. They cannot be brought back."""

    async def do(name: str) -> None:
        show_deleted(shell, await session.delete_model(name))

    confirm(f"Delete {', '.join(names)} for good?", yes=yes)
    async with shell.session() as session:
        return await for_each(names, do)


COMMANDS: Final = {"models": models, "delete-model": delete_model}
