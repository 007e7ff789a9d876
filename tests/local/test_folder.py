"""The server's folder: an incomplete one is refused and left as it is, and no file of a user's is deleted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from aiofinetune import ConfigurationError, FineTuneSession, Retry, ServerError
from aiofinetune.local import LocalServer

DATABASE: Final = "server.sqlite3"
LOG: Final = "server.sqlite3-wal"
ROWS: Final = b"".join(json.dumps({"prompt": f"{n} ->", "completion": " yes"}).encode() + b"\n" for n in range(4))

SERVE: Final = """
import asyncio, sys
from aiofinetune import FineTuneRequest, FineTuneSession
from aiofinetune.local import LocalServer

async def main():
    async with LocalServer(sys.argv[1]) as server:
        async with FineTuneSession(server.api_key, base_url=server.base_url) as session:
            file = await session.upload_file(sys.argv[2].encode())
            job = await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="ada", n_epochs=1))
            await session.wait(job.id)
            file = await session.upload_file(2000 * sys.argv[2].encode())
            job = await session.create_fine_tune(FineTuneRequest(training_file=file.id, model="davinci", n_epochs=50))
            # Nothing more is noted of a running job until its first epoch is over.
            while job.status != "running":
                job = await session.retrieve_fine_tune(job.id)
            print("ready", flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


def snapshot(folder: Path) -> dict[str, str]:
    """Every file of a folder, with the digest of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server that trained a model and was killed while it trained another."""
    folder = tmp_path_factory.mktemp("killed") / "data"

    async def serve_and_kill() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVE, folder, ROWS.decode(), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        await process.communicate()

    asyncio.run(serve_and_kill())
    return folder


@pytest.fixture
def folder(killed: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(killed, tmp_path / "data"))


async def closed(folder: Path) -> None:
    """Open a folder whole, and close it in good order, so that it has no log."""
    async with LocalServer(folder):
        pass
    assert not (folder / LOG).exists()


def delete(*paths: Path) -> None:
    for path in paths:
        path.unlink()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << 4
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def empty_without_log(folder: Path) -> None:
    (folder / LOG).unlink()
    (folder / DATABASE).write_bytes(b"")


def as_others(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE theirs (a)")
    database.close()


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_newer(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


AFTER_A_KILL: Final[dict[str, Callable[[Path], object]]] = {
    "no database": lambda folder: (folder / DATABASE).unlink(),
    "no database, no log": lambda folder: delete(folder / DATABASE, folder / LOG),
    "an empty database": lambda folder: (folder / DATABASE).write_bytes(b""),
    "an empty database, no log": empty_without_log,
    "no log": lambda folder: (folder / LOG).unlink(),
    "an empty log": lambda folder: (folder / LOG).write_bytes(b""),
    "a log cut in half": lambda folder: cut(folder / LOG, (folder / LOG).stat().st_size // 2),
    "a log without its last commit": lambda folder: cut(folder / LOG, (folder / LOG).stat().st_size - 4120),
    "a bit of the log's last frame": lambda folder: flip(folder / LOG, (folder / LOG).stat().st_size - 100),
    "a bit of the log's first frame": lambda folder: flip(folder / LOG, 40),
    "a bit of the log's header": lambda folder: flip(folder / LOG, 17),
}

AFTER_A_CLOSE: Final[dict[str, Callable[[Path], object]]] = {
    "no database": lambda folder: (folder / DATABASE).unlink(),
    "an empty database": lambda folder: (folder / DATABASE).write_bytes(b""),
    "random bytes": lambda folder: (folder / DATABASE).write_bytes(hashlib.shake_256(b"x").digest(50_000)),
    "half a database": lambda folder: cut(folder / DATABASE, (folder / DATABASE).stat().st_size // 2),
    "a bit of its header": lambda folder: flip(folder / DATABASE, 18),
    "a page of zeros": lambda folder: (folder / DATABASE).write_bytes(
        (folder / DATABASE).read_bytes()[:4096] + bytes(4096) + (folder / DATABASE).read_bytes()[8192:]
    ),
    "another program's": lambda folder: as_others(folder / DATABASE),
    "a newer version": lambda folder: as_newer(folder / DATABASE),
    "a folder in its place": lambda folder: as_folder(folder / DATABASE),
}


async def refused_and_unchanged(folder: Path) -> str:
    """Start a server on a folder; check that it refuses and that each file is what it was; give its words."""
    before = snapshot(folder)
    with pytest.raises(ConfigurationError) as caught:
        async with LocalServer(folder):
            pass
    assert snapshot(folder) == before
    return str(caught.value)


@pytest.mark.parametrize("damage", AFTER_A_KILL.values(), ids=AFTER_A_KILL)
async def test_what_a_killed_server_left_is_refused_where_a_part_is_missing(
    damage: Callable[[Path], object], folder: Path
) -> None:
    """A folder whose server was killed is refused where its database or its log is not all there, and left as it is."""
    damage(folder)
    words = await refused_and_unchanged(folder)
    assert "Restore server.sqlite3, and server.sqlite3-wal" in words


@pytest.mark.parametrize("damage", AFTER_A_CLOSE.values(), ids=AFTER_A_CLOSE)
async def test_a_damaged_database_is_refused(damage: Callable[[Path], object], folder: Path) -> None:
    """A folder whose database is missing, damaged or another program's is refused, and left as it is."""
    await closed(folder)
    damage(folder)
    assert str(folder) in await refused_and_unchanged(folder)


async def test_flips_of_bits_delete_nothing(folder: Path) -> None:
    """Whatever bit of the database is flipped, the server starts or refuses, and each file of data is still there."""
    await closed(folder)
    database = (folder / DATABASE).read_bytes()
    contents = {path.name: path.read_bytes() for part in ("files", "models") for path in (folder / part).iterdir()}
    for number in range(24):
        (folder / DATABASE).write_bytes(database)
        flip(folder / DATABASE, int.from_bytes(hashlib.sha256(b"%d" % number).digest()[:4], "big"))
        try:
            async with LocalServer(folder):
                pass
        except ConfigurationError:
            pass
        there = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert contents.items() <= there.items()


async def test_a_killed_server_goes_on(folder: Path) -> None:
    """A whole folder opens after a kill: files, models and jobs are there, and the unfinished job runs again."""
    async with LocalServer(folder) as server, FineTuneSession(server.api_key, base_url=server.base_url) as session:
        first, second = await session.list_fine_tunes()
        assert first.status == "succeeded"
        assert second.status in ("pending", "running")
        assert first.fine_tuned_model in [model.id for model in await session.list_models()]
        assert await session.download_file(first.training_files[0].id) == ROWS
        await session.cancel_fine_tune(second.id)


async def test_unknown_files_are_set_aside(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files of the server's naming that no record names are moved, not deleted, and named in the log."""
    orphans = {folder / "files" / f"file-{'a' * 24}": b"upload", folder / "models" / f"model-{'b' * 24}.npz": b"model"}
    foreign = folder / "files" / "holiday.jpg"
    for path, content in {**orphans, foreign: b"mine"}.items():
        path.write_bytes(content)
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "aiofinetune"):
            await closed(folder)
    assert foreign.read_bytes() == b"mine"
    for path, content in orphans.items():
        assert not path.exists()
        assert (folder / "unknown" / path.name).read_bytes() == content
        assert str(path) in caplog.text


async def test_what_an_interrupted_attempt_left_unfinished_is_removed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of an attempt that begins again, its input and unfinished files are removed without a word, but nothing else."""
    (run,) = (folder / "runs").iterdir()
    own, another = run.stem.removeprefix("run-"), "a" * 24
    left = [run]
    for name in ("files/file-{}.partial", "models/model-{}.npz.partial", "models/checkpoint-{}.epoch49.npz.partial"):
        left.append(folder / name.format(own))
        left[-1].write_bytes(b"unfinished")
    # A whole model could be all that is left of a job; the others belong to nothing that is known.
    kept = [f"models/model-{own}.npz", f"files/file-{another}.partial", f"runs/run-{another}.json"]
    for path in kept:
        (folder / path).write_bytes(b"kept")
    with caplog.at_level(logging.WARNING, "aiofinetune"):
        await closed(folder)
    assert [path for path in left if path.exists()] == []
    assert {path.name for path in (folder / "unknown").iterdir()} == {Path(path).name for path in kept}
    assert len(caplog.records) == len(kept)


async def test_what_was_set_aside_before_is_not_overwritten(folder: Path) -> None:
    """Two unknown files of one name are both kept."""
    orphan = folder / "files" / f"file-{'a' * 24}"
    for content in (b"first", b"second"):
        orphan.write_bytes(content)
        await closed(folder)
    kept = [path.read_bytes() for path in (folder / "unknown").glob(f"{orphan.name}*")]
    assert sorted(kept) == [b"first", b"second"]


async def test_missing_files_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is on record and not there is named in the log, and the rest is served."""
    (weights,) = (path for path in (folder / "models").iterdir() if path.suffix == ".npz")
    weights.unlink()
    with caplog.at_level(logging.WARNING, "aiofinetune"):
        await closed(folder)
    assert weights.name in caplog.text


@pytest.mark.parametrize("name", ["lock", "commits", DATABASE, "everything"])
async def test_the_lock_holds_when_a_file_is_deleted(name: str, tmp_path: Path) -> None:
    """A second server on a folder is refused while the first runs, whatever file of it was deleted."""
    async with LocalServer(tmp_path / "data"):
        for path in [*(tmp_path / "data").iterdir()] if name == "everything" else [tmp_path / "data" / name]:
            if path.is_file():
                path.unlink()
        with pytest.raises(ConfigurationError, match="another server is using"):
            async with LocalServer(tmp_path / "data"):
                pass


@pytest.mark.parametrize("take", [Path.unlink, lambda path: path.rename(path.with_name("moved"))], ids=["rm", "mv"])
async def test_nothing_is_acknowledged_that_would_be_lost(take: Callable[[Path], object], tmp_path: Path) -> None:
    """An upload to a server whose database was taken away is an error, not a file that nobody will find again."""
    async with LocalServer(tmp_path / "data") as server:
        retry = Retry(attempts=1)
        async with FineTuneSession(server.api_key, base_url=server.base_url, retry=retry) as session:
            take(tmp_path / "data" / DATABASE)
            with pytest.raises(ServerError):
                await session.upload_file(ROWS)


async def test_a_folder_of_an_older_server_opens(folder: Path) -> None:
    """A folder whose changes were not counted goes on."""
    await closed(folder)
    with sqlite3.connect(folder / DATABASE) as database:
        database.execute("DROP TABLE commits")
    database.close()
    (folder / "commits").unlink()
    (folder / "lock").touch()
    await closed(folder)
    assert int((folder / "commits").read_bytes()) > 0


async def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A folder without the right to write in it is refused by name."""
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("root may write anywhere")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        async with LocalServer(tmp_path):
            pass
