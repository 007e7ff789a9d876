"""``python -m aiofinetune`` and the ``aiofinetune`` command."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def main() -> None:
    """Run the command line, or explain how to install its dependencies."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # While commands are imported and options are read too. A shell's background job may ignore Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    try:
        from aiofinetune.cli._commands import cli  # noqa: PLC0415  # its dependencies may not be installed
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            # Anything else that is missing is a defect of the installation, which the traceback shows.
            raise
        sys.exit(f"the command line needs {error.name}: pip install 'aiofinetune[cli]'")
    from aiofinetune.cli._stdio import OutputFailed, guarded  # noqa: PLC0415  # likewise

    try:
        with guarded():
            cli(prog_name="aiofinetune")
    except OutputFailed as failure:
        from aiofinetune.cli._run import fail  # noqa: PLC0415  # --help does not wait for it

        fail(failure)


def _end(number: int, _frame: object) -> NoReturn:
    """End by a signal with the status that says so, which click does not have."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
