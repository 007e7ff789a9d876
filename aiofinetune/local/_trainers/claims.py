"""Workers that ask for attempts themselves: ``aiofinetune worker``, on any machine, however it was started there."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import attrs

from aiofinetune.local._trainers import EngineLost
from aiofinetune.local._trainers.remote import Live, Order

_FIRST_CONTACT: Final = 15.0
"""Seconds that a worker has, after it was given an attempt, to begin with it."""


@attrs.frozen(eq=False)
class _Claim:
    """A worker that waits for an attempt."""

    resources: Mapping[str, int]
    order: asyncio.Future[Order]

    def fits(self, needs: Mapping[str, int]) -> bool:
        return not self.order.done() and all(self.resources.get(name, 0) >= amount for name, amount in needs.items())


class Claims:
    """Gives attempts to the workers that ask for them; the one that has waited for longest comes first."""

    def __init__(self) -> None:
        self._waiting: list[_Claim] = []
        self._arrived = asyncio.Condition()
        self._on_change: Callable[[], None] = lambda: None

    def slots(self, running: int) -> int:
        """Return the number of attempts at once; see `aiofinetune.local._trainers.remote.Engine`."""
        return running + len(self._waiting)

    def resources(self, used: Mapping[str, int]) -> Mapping[str, int]:
        """Return the amount of each resource; see `aiofinetune.local._trainers.remote.Engine`."""
        found = Counter(used)
        for claim in self._waiting:
            found.update(claim.resources)
        return found

    @contextlib.asynccontextmanager
    async def opened(self, on_change: Callable[[], None]) -> AsyncIterator[None]:
        """Return a context manager in which workers are served; see `aiofinetune.local._trainers.remote.Engine`."""
        self._on_change = on_change
        yield

    async def claim(self, resources: Mapping[str, int]) -> Order:
        """Wait for an attempt for a worker that has these resources."""
        claim = _Claim(resources, asyncio.get_running_loop().create_future())
        self._waiting.append(claim)
        try:
            self._on_change()
            async with self._arrived:
                self._arrived.notify_all()
            return await claim.order
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(claim)

    async def start(self, order: Order, live: Live) -> None:
        """Give an attempt to a worker; see `aiofinetune.local._trainers.remote.Engine`."""
        needs = live.attempt.needs
        async with self._arrived:
            await self._arrived.wait_for(lambda: any(claim.fits(needs) for claim in self._waiting))
            # The worker that has the least, so that one with a GPU stays free for a job that needs it.
            claim = min(filter(lambda claim: claim.fits(needs), self._waiting), key=_wealth)
            self._waiting.remove(claim)
            claim.order.set_result(order)
            live.has_place = True
        try:
            async with asyncio.timeout(_FIRST_CONTACT):
                await live.contacted.wait()
        except TimeoutError:
            raise EngineLost("its worker did not begin") from None


def _wealth(claim: _Claim) -> int:
    return sum(claim.resources.values())
