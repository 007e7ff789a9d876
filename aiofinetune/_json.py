"""JSON with the standard library, for when orjson is not installed: as strict, and with the same names."""

from __future__ import annotations

import json
import math


def dumps(value: object) -> bytes:
    """Encode a value as UTF-8 JSON.

    Raises:
        ValueError, TypeError: JSON cannot represent the value.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def loads(data: bytes) -> object:
    """Decode UTF-8 JSON.

    Raises:
        ValueError: The data is not UTF-8 JSON.
    """
    try:
        value: object = json.loads(data.decode(), parse_constant=_refuse, parse_float=_finite)
        if b"\\u" in data:
            # orjson refuses half of a surrogate pair. Encoding one raises UnicodeEncodeError, which is a ValueError.
            dumps(value)
    except RecursionError:
        # orjson raises a ValueError too.
        raise ValueError("nested too deeply") from None
    return value


def _finite(text: str) -> float:
    # JSON has no infinity, but float() returns one for a number such as 1e999.
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
