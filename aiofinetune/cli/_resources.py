"""Read what machines have and jobs need, as options give it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import click

_AMOUNT: Final = re.compile(r"([A-Za-z][\w-]*)=([1-9][0-9]{0,5})", re.ASCII)


def read_resources(_ctx: click.Context, _param: click.Parameter, given: Sequence[str]) -> list[tuple[str, int]]:
    """Read what a machine has, such as ``gpu=1``."""
    return [_read(text) for text in given]


def read_needs(_ctx: click.Context, _param: click.Parameter, given: Sequence[str]) -> list[tuple[str, str, int]]:
    """Read what jobs need, such as ``davinci:gpu=1``."""
    needs = []
    for text in given:
        model, _, resource = text.rpartition(":")
        if not model:
            raise click.BadParameter(f"expected MODEL:NAME=AMOUNT such as davinci:gpu=1, got {text!r}")
        needs.append((model, *_read(resource)))
    return needs


def _read(text: str) -> tuple[str, int]:
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"expected NAME=AMOUNT such as gpu=1, got {text!r}")
    return found[1], int(found[2])
