"""Open models on a worker: fetched once, kept between attempts within a bound, and gone with the worker."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web

from aiofinetune.local import LocalServer
from aiofinetune.local._open_models import OpenModel
from aiofinetune.local._routes import Handler
from aiofinetune.local._trainers.claims import Claims
from aiofinetune.local._trainers.remote import RemoteTrainers
from aiofinetune.local._worker import kept
from aiofinetune.local._worker.claiming import work
from aiofinetune.local._worker.folder import MODELS, remove_abandoned, temporary_folder
from aiofinetune.local._worker.kept import KeptModels
from tests.local.plainclient import KEY, connected

WORKER = "a-token-for-workers"


class Fetched:
    """Fills folders, and counts how often; another one can be made to wait until `may_end`."""

    def __init__(self) -> None:
        self.count = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self, folder: Path) -> None:
        """Fill a folder."""
        self.count += 1
        (folder / "begun").touch()
        await self.may_end.wait()
        (folder / "weights").touch()


async def use(models: KeptModels, name: str, fetch: Fetched) -> Path:
    """Use a model for a moment; return its folder."""
    async with models.used(name, fetch) as folder:
        assert (folder / "weights").exists()
        return folder


async def test_a_model_is_fetched_once(tmp_path: Path) -> None:
    """Processes that need the same model at once wait for one of them to fetch it; later ones find it."""
    fetch = Fetched()
    fetch.may_end.clear()
    async with asyncio.TaskGroup() as group:
        uses = [group.create_task(use(KeptModels(lambda: tmp_path), "one", fetch)) for _ in range(3)]
        while not fetch.count:
            await asyncio.sleep(0)
        fetch.may_end.set()
    assert {each.result() for each in uses} == {tmp_path / "one"}
    await use(KeptModels(lambda: tmp_path), "one", fetch)
    assert fetch.count == 1
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


async def test_a_fetch_that_ends_early_is_begun_again(tmp_path: Path) -> None:
    """What a cancelled or broken fetch has left is not taken for a model."""
    fetch = Fetched()
    fetch.may_end.clear()
    using = asyncio.create_task(use(KeptModels(lambda: tmp_path), "one", fetch))
    while not fetch.count:
        await asyncio.sleep(0)
    using.cancel()
    await asyncio.wait([using])
    fetch.may_end.set()
    await use(KeptModels(lambda: tmp_path), "one", fetch)
    assert fetch.count == 2


async def test_few_models_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models that were used last are kept, and those that others use; no others."""
    monkeypatch.setattr(kept, "MOST_KEPT", 2)
    models, fetch = KeptModels(lambda: tmp_path), Fetched()
    async with models.used("held", fetch):
        for name in ("one", "two", "three"):
            await use(models, name, fetch)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["held", "three", "two"]
    await use(models, "two", fetch)
    assert fetch.count == 4
    await use(models, "four", fetch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four", "two"]


def test_the_models_of_a_killed_worker_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a worker that lives is left alone; that of one that was killed is removed by the next."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"{MODELS}left" / "one").mkdir(parents=True)
    with temporary_folder(MODELS) as folder:
        remove_abandoned()
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


async def test_a_worker_fetches_an_open_model_once(
    data: Path, tmp_path: Path, examples: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of an open model come with the first attempt, and again when one changes; they go with the worker."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    folder = tmp_path / "smol"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    asked = Counter[str]()

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked[request.match_info.get("name", "")] += 1
        return await handler(request)

    async with (
        LocalServer(
            data,
            api_key=KEY,
            remote=RemoteTrainers(Claims()),
            worker_token=WORKER,
            models=[OpenModel("smol", folder)],
            extend=lambda application: application.middlewares.append(count),
        ) as server,
        connected(server.base_url) as client,
    ):
        worker = asyncio.create_task(work(f"{server.base_url}/attempts", WORKER, {}))
        # The jobs fail, because this is no model; nothing less than the extra 'transformers' would train one.
        for _ in range(2):
            assert (await client.finish((await client.create(examples, model="smol"))["id"]))["status"] == "failed"
        assert (asked["smol/config.json"], asked["smol/model.safetensors"]) == (1, 1)
        (folder / "config.json").write_text("{ }")
        await client.finish((await client.create(examples, model="smol"))["id"])
        assert (asked["smol/config.json"], asked["smol/model.safetensors"]) == (2, 2)
        (models,) = temporary.glob(f"{MODELS}*")
        assert len(list(models.iterdir())) == 2
        worker.cancel()
        await asyncio.wait([worker])
        assert list(temporary.iterdir()) == []
