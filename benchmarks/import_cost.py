"""What it takes to import the client, over aiohttp, which it needs: ``python -m benchmarks.import_cost [CHECKOUT]``.

The figures are instructions of the processor under valgrind's cachegrind, of the whole program and without those of
Python itself. They do not depend on how busy the machine is. Each import runs once before, so that all is compiled.

A session imports what not all sessions need, such as uploads, streams and dialects, when it is used: the last row has
all of that too.

With the folder of another checkout of this package, a row says what the client takes there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent.parent
_VALGRIND: Final = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
_CLIENT: Final = "from aiofinetune import FineTuneSession"
_WHEN_USED: Final = (
    "aiofinetune._http.download, aiofinetune._http.token, aiofinetune._http.upload_check, aiofinetune._jobs.changes,"
    " aiofinetune._jobs.checkpoints, aiofinetune._jobs.listed, aiofinetune._jobs.looking, aiofinetune._jobs.stream,"
    " aiofinetune._jobs.uploads, aiofinetune._jobs.waiting"
)
_ALL: Final = f"{_CLIENT}, dialects; import {_WHEN_USED}; [*dialects.DIALECTS.values()]"
MUST: Final = 1.10
"""The most that importing the client may take, over importing aiohttp."""


def instructions(program: str, checkout: Path, cache: str) -> int:
    """Return how many instructions a program takes, from the start of Python to its end.

    Args:
        program: The program.
        checkout: Where this package is.
        cache: A folder for what is compiled.

    Raises:
        subprocess.CalledProcessError: The program failed.
    """
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": str(checkout), "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run(command, cwd=checkout, env=environment, check=True)  # noqa: S603  # the programs below
    done = subprocess.run(  # noqa: S603  # as above
        [*_VALGRIND, *command], cwd=checkout, env=environment, capture_output=True, text=True, check=True
    )
    found = re.search(r"I +refs: +([\d,]+)", done.stderr)
    assert found is not None  # noqa: S101  # cachegrind prints it
    return int(found[1].replace(",", ""))


def main() -> None:
    """Count, and print a table."""
    rows = {"import aiohttp": ("import aiohttp", _HERE), _CLIENT: (_CLIENT, _HERE)}
    if len(sys.argv) > 1:
        rows["the same in the other checkout"] = (_CLIENT, Path(sys.argv[1]).resolve())
    rows["and what it imports when it is used"] = (_ALL, _HERE)
    with tempfile.TemporaryDirectory() as cache:
        python = instructions("pass", _HERE, cache)
        sys.stdout.write(f"| millions of instructions | all | ratio | without Python's {python / 1e6:.0f} | ratio |\n")
        sys.stdout.write("|---|---:|---:|---:|---:|\n")
        base = 0
        for name, (program, checkout) in rows.items():
            count = instructions(program, checkout, cache)
            base = base or count
            own = count - python
            cells = f"{count / 1e6:.0f} | {count / base:.3f} | {own / 1e6:.0f} | {own / (base - python):.3f}"
            sys.stdout.write(f"| `{name}` | {cells} |\n")
            sys.stdout.flush()
    sys.stdout.write(f"the ratio must be at most {MUST:.2f}\n")


if __name__ == "__main__":
    main()
