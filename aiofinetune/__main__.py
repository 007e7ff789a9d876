"""``python -m aiofinetune`` and the ``aiofinetune`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or explain how to install its dependencies."""
    try:
        from aiofinetune.cli._commands import cli  # noqa: PLC0415  # its dependencies may not be installed
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            # Anything else that is missing is a defect of the installation, which the traceback shows.
            raise
        sys.exit(f"the command line needs {error.name}: pip install 'aiofinetune[cli]'")
    cli(prog_name="aiofinetune")


if __name__ == "__main__":
    main()
