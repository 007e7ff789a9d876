"""``python -m aiofinetune.testing``: a server of tests on its own, for tests in other processes and languages."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import sys
from typing import Final

from aiofinetune.errors import ConfigurationError
from aiofinetune.testing import FineTuneServer

_DESCRIPTION: Final = "Run a server of tests on its own, for tests in other processes and languages."


async def _serve(port: int, api_key: str | None) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with FineTuneServer(port=port, api_key=api_key) as server:
        sys.stdout.write(f"export OPENAI_BASE_URL={server.base_url}\n")
        sys.stdout.write(f"export OPENAI_API_KEY={shlex.quote(server.api_key)}\n")
        sys.stdout.flush()
        await stopped.wait()


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m aiofinetune.testing", description=_DESCRIPTION)
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 chooses a free one")
    parser.add_argument("--api-key", help="key that clients must send; by default a random one")
    arguments = parser.parse_args()
    try:
        asyncio.run(_serve(arguments.port, arguments.api_key))
    except ConfigurationError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
