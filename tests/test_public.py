from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiofinetune

ROOT = Path(aiofinetune.__file__).parent
MODULES = {
    ".".join(("aiofinetune", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
PUBLIC = [
    "APIError",
    "AuthenticationFailed",
    "BadRequest",
    "Batch",
    "BatchStopped",
    "Checkpoint",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionUsage",
    "ConfigurationError",
    "Conflict",
    "ConnectFailed",
    "ConnectionLost",
    "CreateUncertain",
    "DatasetError",
    "Deleted",
    "Dialect",
    "Entry",
    "EntryChanged",
    "EventStream",
    "Failure",
    "File",
    "FineTune",
    "FineTuneCancelled",
    "FineTuneEnded",
    "FineTuneError",
    "FineTuneEvent",
    "FineTuneFailed",
    "FineTuneRequest",
    "FineTuneSession",
    "FineTuneUnreadable",
    "Hyperparams",
    "JournalUnusable",
    "LocalFileError",
    "ManifestInvalid",
    "Method",
    "Model",
    "NoResults",
    "NotFound",
    "Outcome",
    "PermissionDenied",
    "PriceEstimate",
    "Problem",
    "Progress",
    "ProtocolViolation",
    "QuotaExceeded",
    "RateLimited",
    "ReplyTimeout",
    "RequestInvalid",
    "ResultRow",
    "Retry",
    "ServerError",
    "Status",
    "StreamHistoryChanged",
    "StreamInterrupted",
    "Timeout",
    "TooManyJobs",
    "TransportError",
    "WaitTimeout",
    "__version__",
    "check_manifest",
    "last_figures",
    "read_manifest",
]


@functools.cache
def imports(module: str) -> tuple[str, ...]:
    """Every module that a module imports, anywhere in its text, and every ``module.name`` it takes from one."""
    return tuple(_imports(module))


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def is_local(module: str) -> bool:
    return is_within(module, "aiofinetune.local")


def test_all_is_pinned() -> None:
    """What the package offers changes on purpose only."""
    assert aiofinetune.__all__ == PUBLIC


def test_all_is_sorted_and_there() -> None:
    """Each name offered exists, once, in order."""
    assert sorted(set(aiofinetune.__all__)) == aiofinetune.__all__
    assert all(hasattr(aiofinetune, name) for name in aiofinetune.__all__)


def test_typed() -> None:
    """Type checkers are told to read the package's annotations (PEP 561)."""
    assert (ROOT / "py.typed").is_file()


def test_aiohttp_has_few_doors() -> None:
    """Aiohttp is imported where sockets are, and nowhere else."""
    users = {module for module in MODULES if any(is_within(name, "aiohttp") for name in imports(module))}
    doors = ("aiofinetune._http", "aiofinetune.local", "aiofinetune.testing")
    assert {module for module in users if not any(is_within(module, door) for door in doors)} == {"aiofinetune.session"}


def test_client_and_server_are_apart() -> None:
    """The client never imports the embedded server, nor that the client: each works without the other."""
    client = ("session", "_http", "_jobs")
    for module in MODULES:
        if any(is_within(module, f"aiofinetune.{part}") for part in client):
            assert not [name for name in imports(module) if is_local(name)]
    for module in filter(is_local, MODULES):
        assert not [name for name in imports(module) for part in client if is_within(name, f"aiofinetune.{part}")]


PURE = (
    "_completions",
    "_http.compression",
    "_jobs.matching",
    "_jobs.ordering",
    "_other_models",
    "_sse",
    "_urls",
    "_value",
    "data._chat",
    "dialects._azure",
    "dialects._choice",
    "dialects._dialect",
    "dialects._error_replies",
    "dialects._fine_tunes",
    "dialects._jobs",
    "dialects._nebius",
    "dialects._replies",
    "dialects._requests",
    "dialects._together",
    "errors",
    "local._chat_completions",
    "local._engines.lora.examples",
    "local._engines.lora.streams",
    "local._engines.written",
    "local._jobs_api",
    "models",
    "results._comparison",
    "results._drawing",
    "results._figures",
    "results._metrics",
    "results._panels",
    "results._rows",
    "retry",
    "structuring",
    "testing._endpoints",
    "testing._recorder",
)


@pytest.mark.parametrize("module", PURE)
def test_pure_modules(module: str) -> None:
    """What is pure cannot so much as name a socket, a loop, a file or the environment."""
    effects = {"aiohttp", "asyncio", "socket", "os", "pathlib", "subprocess", "threading", "logging"}
    assert not {name.partition(".")[0] for name in imports(f"aiofinetune.{module}")} & effects


def test_import_has_no_effects(tmp_path: Path) -> None:
    """Importing the package starts no thread and no loop, opens no socket, and reads neither NumPy nor a key."""
    script = """
import sys, threading
opened = []
sys.addaudithook(lambda event, args: opened.append(event) if event.startswith("socket.connect") else None)
import aiofinetune
assert threading.active_count() == 1
assert not opened
import aiofinetune.local
assert not {"aiohttp", "attrs", "numpy", "click", "rich"} & set(sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), "OPENAI_BASE_URL": "no URL at all"}
    done = subprocess.run(  # noqa: S603  # the script above
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == done.stderr == b""
    assert list(tmp_path.iterdir()) == []


WHEN_USED = {
    *(f"aiofinetune._http.{name}" for name in ("download", "token", "upload_body", "upload_check", "upload_source")),
    *(
        f"aiofinetune._jobs.{name}"
        for name in ("changes", "listed", "looking", "polling", "stream", "uploads", "waiting")
    ),
    *(f"aiofinetune.dialects.{name}" for name in ("_azure", "_jobs", "_nebius", "_together")),
    *("aiofinetune._other_models", "aiofinetune._completions", "aiofinetune.data", "aiofinetune.results"),
    *("click", "numpy", "rich"),
}
"""What a session imports only when it is used."""


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        (["-c", "import aiofinetune.local._engines.trainer"], {"aiohttp", "cattrs", "click", "rich"}),
        (["-m", "aiofinetune", "--help"], {"aiohttp", "attrs", "cattrs", "numpy"}),
        (["-c", "from aiofinetune import FineTuneSession"], WHEN_USED),
    ],
    ids=["trainer", "help", "session"],
)
def test_imports_no_more_than_it_uses(command: list[str], unused: set[str]) -> None:
    """A trainer and ``--help``, which start often, and a session, import nothing that they do not use."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(  # noqa: S603  # the commands above
        [sys.executable, "-X", "importtime", *command], env=environment, capture_output=True, check=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}
    assert not imported & unused


STOREYS = (
    ("aiofinetune.cli",),
    ("aiofinetune.testing",),
    ("aiofinetune.batch",),
    ("aiofinetune.session", "aiofinetune.local", "aiofinetune.telemetry"),
    ("aiofinetune._jobs",),
    ("aiofinetune._http",),
    ("aiofinetune.dialects",),
    ("aiofinetune.data", "aiofinetune.results"),
    ("aiofinetune.retry",),
    ("aiofinetune.structuring",),
    ("aiofinetune._completions", "aiofinetune._other_models"),
    ("aiofinetune.models",),
    ("aiofinetune.errors",),
)
GROUND = ("_json", "_local_files", "_observe", "_secret", "_sqlite", "_sse", "_threads", "_urls", "_value", "_version")
"""What any module may import, and what imports only errors, and one another in this order of the alphabet or not."""


def storey(module: str) -> int | None:
    """How far down a module is, from 0 for the command line; None for the ground and the top."""
    for level, rooms in enumerate(STOREYS):
        if any(is_within(module, room) for room in rooms):
            return level
    return None


def is_ground(module: str) -> bool:
    return any(is_within(module, f"aiofinetune.{name}") for name in GROUND)


def is_below(name: str, module: str) -> bool:
    """Whether a module may import a name."""
    if not name.startswith("aiofinetune.") or (name.rpartition(".")[0] == "aiofinetune" and name not in MODULES):
        return True
    level, below = storey(module), storey(name)
    if level is None:
        return is_ground(name) or is_within(name, "aiofinetune.errors")
    same_room = [room for room in STOREYS[level] if is_within(module, room) and is_within(name, room)]
    return is_ground(name) or bool(same_room) or (below is not None and below > level)


def test_imports_go_down() -> None:
    """A module imports, for types too, only what is below it; rooms on one storey do not import each other."""
    for module in sorted(MODULES.keys() - {"aiofinetune", "aiofinetune.__main__"}):
        assert storey(module) is not None or is_ground(module), f"{module} has no room in the house"
        assert not [name for name in imports(module) if not is_below(name, module)], module


def test_no_statement_numbers_its_placeholders() -> None:
    """From Python 3.14 on, `sqlite3` refuses a sequence for them, and 3.12 warns."""
    for module, path in MODULES.items():
        assert not re.search(r"[^?\w]\?[0-9]", path.read_text(encoding="utf-8")), module


def test_no_module_imports_from_the_top() -> None:
    """The public names are for users: inside, each is imported from its home, so that no import goes in a circle."""
    for module in sorted(set(MODULES) - {"aiofinetune"}):
        names = [name for name in imports(module) if name.rpartition(".")[0] == "aiofinetune" and name not in MODULES]
        assert not names, module
