"""The types of options and arguments: paths of local files, and numbers."""

from __future__ import annotations

import math
import os
from typing import Any, NoReturn

import click


class WrongFile(click.BadParameter):
    """A local file cannot be used, which has the exit status of a wrong file: nothing is wrong with the command."""

    exit_code = 5


class LocalPath(click.Path):
    """A path on this machine. ``-`` is refused, for it would be a file of that name where users mean a stream."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:  # Any: as click has it
        """Return the path."""
        if os.fspath(value) == "-" and not self.allow_dash:
            words = "'-' is not stdin or stdout here; give a file (./- for one of that name)."
            raise click.BadParameter(words, ctx, param)
        return super().convert(value, param, ctx)

    def fail(self, message: str, param: click.Parameter | None = None, ctx: click.Context | None = None) -> NoReturn:
        """Raise `WrongFile`."""
        raise WrongFile(message, ctx, param)


class Number(click.FloatRange):
    """A number in a range; "nan" is in none, and "inf" is no number of seconds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:  # Any: as click has it
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a number, got {value!r}", param, ctx)
        return number
