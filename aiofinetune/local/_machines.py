"""What the machines have that train jobs, and which of them has room for a job. A job runs on one machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import attrs

Resources: TypeAlias = Mapping[str, int]
"""The amount of each resource, such as ``{"gpu": 1}``."""


@attrs.frozen
class Machine:
    """A machine that trains jobs."""

    has: Resources
    """What it has, used or not."""
    free: Resources
    """What further jobs can use."""


def fits(needs: Resources, amounts: Resources) -> bool:
    """Return whether the amounts are enough for what a job needs."""
    return all(amounts.get(name, 0) >= amount for name, amount in needs.items())


def shared(machines: Iterable[Resources], used: Iterable[Resources]) -> Sequence[Machine]:
    """Return machines of which jobs use each the first that has room.

    Args:
        machines: What each machine has.
        used: What each job uses.
    """
    found = [Machine(has, dict(has)) for has in machines]
    for needs in filter(None, used):
        place = next((machine for machine in found if fits(needs, machine.free)), None)
        if place is not None:  # Its machine may have been lost.
            found[found.index(place)] = attrs.evolve(place, free=_less(place.free, needs))
    return found


def _less(amounts: Resources, used: Resources) -> Resources:
    return {name: amount - used.get(name, 0) for name, amount in amounts.items()}


def described(needs: Resources) -> str:
    """Return what a job needs, in words."""
    return ", ".join(f"{name}={amount}" for name, amount in needs.items())
