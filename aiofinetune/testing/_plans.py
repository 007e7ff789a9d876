"""The faults that are still to be met: asked for on any thread, and met on the server's.

A request meets at most one fault: of those that fit it, the one that was asked for first. Whether a fault has an effect
may show only later, such as how long a stream is; the request takes it until then.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence

import attrs

from aiofinetune.testing._endpoints import ANY, WITHOUT_FIELDS


@attrs.frozen
class Failure:
    """The request is refused, and not carried out."""

    status: int
    message: str
    code: str | None
    retry_after: float | None


@attrs.frozen
class LostReply:
    """The request is carried out, and the connection ends without a reply."""


@attrs.frozen
class OddReply:
    """Some fields of the reply are others, or missing."""

    fields: Mapping[str, object]
    without: Sequence[str]


@attrs.frozen
class Cut:
    """The connection of a stream ends after some events."""

    after: int


@attrs.frozen
class Stall:
    """Nothing more comes: no reply, or no event after some."""

    after: int


@attrs.frozen
class Delay:
    """The reply, or each event of a stream, comes late."""

    seconds: float


Fault = Failure | LostReply | OddReply | Cut | Stall | Delay


@attrs.define(eq=False)
class Plan:
    """A fault, and the requests that are still to meet it."""

    endpoint: str
    fault: Fault
    left: int | None
    """How many; None for all."""
    taken: int = 0
    """How many requests have taken it, and are still to meet it."""

    def fits(self, endpoint: str, *, is_stream: bool) -> bool:
        """Return whether a request can take it."""
        if self.endpoint not in (endpoint, ANY) or self.taken == self.left:
            return False
        match self.fault:
            case Cut():
                return is_stream
            case OddReply():
                return not is_stream and endpoint not in WITHOUT_FIELDS
            case _:
                return True

    def __str__(self) -> str:
        return f"{self.fault} for {'every' if self.left is None else f'the next {self.left}'} {self.endpoint}"


class Gate:
    """Where tasks of any event loop wait while it is closed; any thread opens and closes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self.is_closed: bool = False

    def close(self) -> None:
        """Let those wait who come from now on."""
        with self._lock:
            self.is_closed = True

    def open(self) -> None:
        """Let all pass."""
        with self._lock:
            self.is_closed = False
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            # A loop that has closed has no task that waits.
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    async def passed(self) -> None:
        """Return once the gate is open, or has been."""
        event = asyncio.Event()
        with self._lock:
            if not self.is_closed:
                return
            self._waiting.append((asyncio.get_running_loop(), event))
        await event.wait()


@attrs.frozen
class JobFailure:
    """A job fails."""

    message: str
    param: str | None
    """The parameter to blame."""


class Plans:
    """The faults that requests and jobs are still to meet."""

    def __init__(self) -> None:
        self.held_jobs: Gate = Gate()
        """Where jobs wait that are held."""
        self.stalled_requests: Gate = Gate()
        """Where requests wait that are stalled."""
        self.stalled_requests.close()
        self._lock = threading.Lock()
        self._requests: list[Plan] = []
        self._jobs: list[JobFailure] = []

    def add(self, endpoint: str, fault: Fault, times: int | None) -> None:
        """Let the next requests for an endpoint meet a fault; all of them if `times` is None."""
        with self._lock:
            self._requests.append(Plan(endpoint, fault, times))

    def add_job_failures(self, failure: JobFailure, times: int) -> None:
        """Let the next jobs fail."""
        with self._lock:
            self._jobs += [failure] * times

    def take(self, endpoint: str, *, is_stream: bool) -> Plan | None:
        """Take the fault for the next request: it either meets it (`note_met`), or puts it back; None if none fits."""
        with self._lock:
            plan = next((each for each in self._requests if each.fits(endpoint, is_stream=is_stream)), None)
            if plan is not None:
                plan.taken += 1
            return plan

    def note_met(self, plan: Plan) -> None:
        """Note that a request meets a fault that it has taken."""
        with self._lock:
            plan.taken -= 1
            if plan.left is not None:
                plan.left -= 1
            if plan.left == 0 and plan in self._requests:  # `clear` may have forgotten it.
                self._requests.remove(plan)

    def put_back(self, plan: Plan) -> None:
        """Leave a fault that a request has taken to another one: it had no effect."""
        with self._lock:
            plan.taken -= 1

    def take_job_failure(self) -> JobFailure | None:
        """Return how the next job fails; None if it does not."""
        with self._lock:
            return self._jobs.pop(0) if self._jobs else None

    def describe(self) -> list[str]:
        """Return the faults in words."""
        with self._lock:
            held = ["jobs are held"] if self.held_jobs.is_closed else []
            return [*map(str, self._requests), *(f"{failure} for the next job" for failure in self._jobs), *held]

    def unmet(self) -> list[str]:
        """Return the faults that were asked for a number of times, and were not met as often, in words."""
        with self._lock:
            plans = [str(plan) for plan in self._requests if plan.left is not None]
            return [*plans, *(f"{failure} for the next job" for failure in self._jobs)]

    def clear(self) -> None:
        """Forget all faults, and let pass what is held and stalled."""
        with self._lock:
            self._requests.clear()
            self._jobs.clear()
        self.held_jobs.open()
        self.stalled_requests.open()
        self.stalled_requests.close()
