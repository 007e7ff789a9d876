"""Workers that ask for attempts themselves: ``aiofinetune worker``, on any machine, however it was started there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Final

import attrs

from aiofinetune.local._machines import Machine, Resources, fits
from aiofinetune.local._trainers import EngineLost
from aiofinetune.local._trainers.remote import Live, Order

_FIRST_CLAIM: Final = 10.0
"""Seconds in which a worker must ask for an attempt that was begun because one had asked. It may have left since."""

_FIRST_CONTACT: Final = 15.0
"""Seconds that a worker has, after it was given an attempt, to begin with it."""


@attrs.frozen(eq=False)
class _Claim:
    """A worker that waits for an attempt."""

    resources: Resources
    order: asyncio.Future[Order]

    def fits(self, needs: Resources) -> bool:
        return not self.order.done() and fits(needs, self.resources)


class Claims:
    """Gives attempts to the workers that ask for them; the one that has waited for longest comes first."""

    paces: bool = True
    """A worker waits before it asks again after an attempt that failed there."""

    def __init__(self) -> None:
        self._waiting: list[_Claim] = []
        self._arrived = asyncio.Condition()
        self._on_change: Callable[[], None] = lambda: None

    def slots(self, running: int) -> int:
        """Return the number of attempts at once; see `aiofinetune.local._trainers.remote.Engine`."""
        return running + len(self._waiting)

    def machines(self, placed: Collection[Live], others: Collection[Resources]) -> Sequence[Machine]:
        """Return what each worker has; see `aiofinetune.local._trainers.remote.Engine`."""
        waiting = list(self._waiting)
        busy = [live.worker_has for live in placed]
        for needs in others:
            if claim := _chosen(waiting, needs):
                waiting.remove(claim)
                busy.append(claim.resources)
        free = [Machine(claim.resources, claim.resources) for claim in waiting]
        return [*free, *(Machine(has, {}) for has in busy)]

    @contextlib.asynccontextmanager
    async def opened(self, on_change: Callable[[], None]) -> AsyncIterator[None]:
        """Return a context manager in which workers are served; see `aiofinetune.local._trainers.remote.Engine`."""
        self._on_change = on_change
        yield

    async def claim(self, resources: Resources) -> Order:
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
        try:
            async with asyncio.timeout(_FIRST_CLAIM), self._arrived:
                claim = await self._arrived.wait_for(lambda: _chosen(self._waiting, needs))
                assert claim is not None  # noqa: S101  # It has waited for one.
                self._waiting.remove(claim)
                claim.order.set_result(order)
                live.worker_has = claim.resources
                live.has_place = True
        except TimeoutError:
            raise EngineLost("its worker was lost before it began") from None
        try:
            async with asyncio.timeout(_FIRST_CONTACT):
                await live.contacted.wait()
        except TimeoutError:
            raise EngineLost("its worker did not begin") from None


def _chosen(waiting: Sequence[_Claim], needs: Resources) -> _Claim | None:
    """Return the worker that has the least, so that one with a GPU stays free for a job that needs it."""
    return min((claim for claim in waiting if claim.fits(needs)), key=_wealth, default=None)


def _wealth(claim: _Claim) -> int:
    return sum(claim.resources.values())
