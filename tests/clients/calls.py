"""What the scripts that try other clients share: each call is made, checked and printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Calls:
    """Calls a client, sync or async, checks what comes back, and prints each call.

    Args:
        name: What to print before each call.
        client: The client with strict models.
        lenient: The client without.
    """

    def __init__(self, name: str, client: Any, lenient: Any) -> None:  # Any: two classes of one shape
        self.client = client
        self.lenient = lenient
        self.name = name
        self.count = 0

    async def __call__(self, what: str, call: Callable[[], Any], check: Callable[[Any], object] = bool) -> Any:
        """Call, check the result, and return it."""
        result = await self.run(call)
        if not check(result):
            raise SystemExit(f"{self.name}: {what}: unexpected {result!r}")
        self.count += 1
        print(f"{self.name}: {what}: ok")
        return result

    async def run(self, call: Callable[[], Any]) -> Any:
        """Call, and return what comes back, read to its end."""
        raise NotImplementedError
