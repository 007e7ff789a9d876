"""What happens to files: bits flip, and whole parts are lost, overwritten, or put elsewhere."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final


def flipped(data: bytes, bit: int) -> bytes:
    """Give some bytes with one bit flipped."""
    number = int.from_bytes(data, "little") ^ 1 << bit
    return number.to_bytes(len(data), "little")


def corrupted(data: bytes, chance: random.Random) -> bytes:
    """Give some bytes that were damaged at random; they differ."""
    while True:
        start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        damaged = chance.choice(_DAMAGES)(data, start, end, chance)
        if damaged != data:
            return damaged


Damage = Callable[[bytes, int, int, random.Random], bytes]
_DAMAGES: Final[tuple[Damage, ...]] = (
    lambda data, start, _end, _chance: data[:start],
    lambda data, start, end, _chance: data[:start] + data[end:],
    lambda data, start, end, _chance: data[:start] + bytes(end - start) + data[end:],
    lambda data, start, end, chance: data[:start] + chance.randbytes(end - start) + data[end:],
    lambda data, start, end, chance: data[:start] + chance.randbytes(chance.randrange(1, 100)) + data[end:],
    lambda data, start, end, _chance: data[:end] + data[start:],
    lambda data, start, _end, chance: data + data[start:] + chance.randbytes(chance.randrange(100)),
    lambda data, start, end, _chance: data[start:end] + data[:start] + data[end:],
    lambda data, start, _end, chance: data[:start] + chance.randbytes(1) + data[start + 1 :],
    lambda data, _start, _end, chance: chance.randbytes(len(data)),
    lambda data, _start, _end, _chance: data.replace(b"\n", b"\r\n"),
    lambda data, start, end, _chance: data[:start] + b"\n" + data[end:],
)
