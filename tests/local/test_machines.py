"""What machines have, and which has room for a job."""

from __future__ import annotations

from pathlib import Path

from aiofinetune.local._machines import Machine, fits, shared
from aiofinetune.local._store import Store
from aiofinetune.models import FineTuneRequest
from tests.local.test_store import ROW, add_file


def test_a_job_is_on_one_machine() -> None:
    """What a job uses is taken from one machine that has room, never from several."""
    assert shared([{"gpu": 1}, {"gpu": 2, "disk": 1}], [{"gpu": 2}, {}, {"gpu": 1}, {"gpu": 9}]) == [
        Machine({"gpu": 1}, {"gpu": 0}),
        Machine({"gpu": 2, "disk": 1}, {"gpu": 0, "disk": 1}),
    ]
    assert not fits({"gpu": 2}, {"gpu": 1})
    assert fits({}, {})


async def test_a_job_waits_only_for_machines_that_are_enough(data: Path) -> None:
    """An older job keeps back what it needs on the machines where it fits, and nothing on others."""
    needs = {"davinci": {"gpu": 2}, "curie": {"gpu": 1}}
    busy = Machine({"gpu": 2}, {"gpu": 1})
    async with Store(data).opened() as store:
        file = await add_file(store, ROW)
        for model in ("davinci", "curie"):
            await store.jobs.create(FineTuneRequest(training_file=file, model=model))
        assert await store.attempts.take_next([busy], needs) is None
        assert await store.attempts.unfit([busy], needs) == {}
        attempt = await store.attempts.take_next([busy, Machine({"gpu": 1}, {"gpu": 1})], needs)
        assert attempt is not None
        assert attempt.base == "curie"
