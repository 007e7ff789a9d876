"""JSON by the standard library, where orjson is not installed: as strict, and under the same names."""

from __future__ import annotations

import json
import math


def dumps(value: object) -> bytes:
    """Encode as UTF-8 JSON; a ValueError or TypeError for what JSON cannot hold."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def loads(data: bytes) -> object:
    """Decode UTF-8 JSON; a ValueError for anything else."""
    try:
        value: object = json.loads(data.decode(), parse_constant=_refuse, parse_float=_finite)
        if b"\\u" in data:
            # Half of a surrogate pair is no text: a UnicodeEncodeError is a ValueError.
            dumps(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
