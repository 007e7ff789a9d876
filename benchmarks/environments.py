"""The peers, and the virtual environment of each: made once, by name and version from the package index."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).parent.parent

_PYTHONS: Final = ((3, 14), (3, 13), (3, 12), (3, 11))
_OURS: Final = "."

_INVENTORY: Final = """
import importlib.metadata, json, platform, sys
found = {d.name: d for d in importlib.metadata.distributions() if d.name not in ("pip", "setuptools", "wheel")}
files = {f.locate().resolve() for d in found.values() for f in d.files or ()}
folders = {f.parent for f in files}
compiled = {p for folder in folders if folder.name == "__pycache__" for p in folder.glob("*.pyc")}
print(json.dumps({
    "python": platform.python_version(),
    "distributions": {name: d.version for name, d in sorted(found.items())},
    "bytes": sum(f.stat().st_size for f in files | compiled if f.exists()),
}))
"""


@dataclasses.dataclass(frozen=True)
class Peer:
    """One client that is compared.

    Args:
        name: What it is called on the command line and in the tables.
        script: Its program, a module of `benchmarks.peers`.
        requirements: What to install.
        variant: Told to the program, which may know more than one.
        newest: The newest Python that its releases were made for.
        share: Of the work that the fastest peers get, so that a slow one does not take long; figures are per operation.
        imports: The statement by which its users import it.
        loop: On which it runs: ``asyncio`` or ``uvloop``.
        dialects: In which it works.
    """

    name: str
    script: str
    requirements: tuple[str, ...]
    imports: str
    variant: str = ""
    newest: tuple[int, int] = _PYTHONS[0]
    share: float = 1.0
    loop: str = "asyncio"
    dialects: tuple[str, ...] = ("fine-tunes",)


JOBS_DIALECTS: Final = ("jobs", "azure", "nebius")
"""Those with the jobs of OpenAI's API, in pages."""

_OPENAI_DIALECTS: Final = ("fine-tunes", *JOBS_DIALECTS)

ALL_DIALECTS: Final = (*_OPENAI_DIALECTS, "together")

# The package imports nothing until one of its names is used.
_SESSION: Final = "from aiofinetune import FineTuneSession"

PEERS: Final = (
    Peer("aiohttp", "bare", ("aiohttp", "orjson"), "import aiohttp", dialects=ALL_DIALECTS),
    Peer("aiofinetune", "ours", (_OURS, "orjson"), _SESSION, dialects=ALL_DIALECTS),
    # What a typed reply costs at least, and what another loop gains.
    Peer("aiohttp-msgspec", "bare_msgspec", ("aiohttp", "msgspec", "orjson"), "import aiohttp, msgspec"),
    Peer("aiohttp-uvloop", "bare", ("aiohttp", "orjson", "uvloop"), "import aiohttp, uvloop", loop="uvloop"),
    Peer("aiofinetune-uvloop", "ours", (_OURS, "orjson", "uvloop"), f"{_SESSION}; import uvloop", loop="uvloop"),
    Peer("aiofinetune-no-orjson", "ours", (_OURS,), _SESSION),
    Peer("openai-0.28-shared", "openai_0", ("openai==0.28.1",), "import openai", "shared", (3, 11), 0.4),
    Peer("openai-0.28", "openai_0", ("openai==0.28.1",), "import openai", "default", (3, 11), 0.2),
    # The last release with client.fine_tunes.
    Peer("openai-1.7", "openai_1", ("openai==1.7.1", "httpx<0.28"), "import openai", "", (3, 12), 0.1),
    Peer("openai", "openai_newest", ("openai",), "import openai", "httpx", share=0.1, dialects=_OPENAI_DIALECTS),
    Peer(
        "openai-aiohttp",
        "openai_newest",
        ("openai[aiohttp]",),
        "import openai",
        "aiohttp",
        share=0.2,
        dialects=_OPENAI_DIALECTS,
    ),
    Peer("together", "together_newest", ("together",), "import together", share=0.1, dialects=("together",)),
    Peer("httpx", "httpx_sse", ("httpx", "httpx-sse"), "import httpx", share=0.2),
)


@dataclasses.dataclass(frozen=True)
class Environment:
    """A virtual environment that is ready.

    Args:
        python: Its interpreter.
        version: Of Python.
        distributions: What is installed in it, pip aside: names and versions.
        bytes: Their size, compiled files included.
    """

    python: Path
    version: str
    distributions: dict[str, str]
    bytes: int


class EnvironmentRefused(Exception):
    """An environment could not be made; the words say why, in a line."""


def default_folder() -> Path:
    """Where environments are kept from run to run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aiofinetune-benchmarks"


def prepared(peer: Peer, folder: Path) -> Environment:
    """Give the environment of a peer; make it where it is not there yet.

    Args:
        peer: Whose.
        folder: Of all environments.

    Raises:
        EnvironmentRefused: It could not be made.
    """
    python, version = _newest_python(peer.newest)
    sources = _digest_of_sources() if _OURS in peer.requirements else ""
    key = json.dumps([version, peer.requirements, sources])
    path = folder / f"{peer.script}-{hashlib.sha256(repr((version, peer.requirements)).encode()).hexdigest()[:12]}"
    mark = path / "made-of.json"
    interpreter = path / "bin" / "python"
    if not mark.exists() or mark.read_text() != key:
        shutil.rmtree(path, ignore_errors=True)
        _run([str(python), "-m", "venv", str(path)])
        # Not in editable mode: the size of an installation is one of the figures.
        _run([str(interpreter), "-m", "pip", "install", "--quiet", *peer.requirements])
        mark.write_text(key)
    inventory = json.loads(_run([str(interpreter), "-c", _INVENTORY]))
    return Environment(interpreter, inventory["python"], inventory["distributions"], inventory["bytes"])


def _newest_python(newest: tuple[int, int]) -> tuple[Path, str]:
    """The newest Python of this machine that is no newer than `newest`, and its version."""
    for major, minor in _PYTHONS:
        if (major, minor) > newest:
            continue
        name = f"python{major}.{minor}"
        found = [Path(sys.executable), *sorted(Path.home().glob(f".pyenv/versions/{major}.{minor}.*/bin/{name}"))]
        on_path = shutil.which(name)
        for candidate in [*found, *([Path(on_path)] if on_path else [])]:
            # One on the path may be a shim that leads nowhere.
            program = "import platform; print(platform.python_version())"
            asked = subprocess.run([str(candidate), "-c", program], capture_output=True, text=True, check=False)  # noqa: S603  # our own programs
            version = asked.stdout.strip()
            if asked.returncode == 0 and version.startswith(f"{major}.{minor}."):
                return candidate, version
    raise EnvironmentRefused(f"no Python from 3.11 to {newest[0]}.{newest[1]} is installed")


def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted([CHECKOUT / "pyproject.toml", *(CHECKOUT / "aiofinetune").rglob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)  # noqa: S603  # our own programs
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise EnvironmentRefused(next((line for line in lines if line.startswith("ERROR")), lines[-1]))
    return done.stdout
