"""Memory and event-loop stalls of a large upload and download: ``python -m benchmarks.transfer [MEBIBYTES]``.

The server is another process that reads and writes raw sockets, so that what is measured is the client alone. Memory is
the peak of the process (``VmHWM``) over what it took before the transfer; a stall is the longest time for which the
event loop ran nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import re
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from aiofinetune import FineTuneSession

PIECE: Final = bytes(range(256)) * 4096
TICK: Final = 0.001
"""Seconds between two looks at the clock; what is later than that was stalled."""


def serve(ports: Connection, size: int) -> None:
    """Take any upload, and give any download `size` bytes; one connection at a time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ports.send(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ConnectionError):
                while answer(connection, size):
                    pass


def answer(connection: socket.socket, size: int) -> bool:
    """Answer one request; whether there was one."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(1 << 16)
        if not data:
            return False
        head += data
    head, _, body = head.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    left = int(length[1]) - len(body) if length else 0
    buffer = bytearray(1 << 20)
    while left > 0:
        left -= connection.recv_into(buffer)
    file = {"id": "file-1", "object": "file", "bytes": size, "created_at": 1, "filename": "a", "purpose": "fine-tune"}
    is_download = b"/content " in head.partition(b"\r\n")[0]
    reply = b"" if is_download else json.dumps(file).encode()
    whole = size if is_download else len(reply)
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (whole, reply)
    )
    for _ in range(size // len(PIECE) if is_download else 0):
        connection.sendall(PIECE)
    return True


def memory(name: str) -> float:
    """A figure of this process's memory, in MiB (proc(5), status)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


async def longest_stall(work: Awaitable[object]) -> float:
    """Await `work`; give the longest time, in seconds, for which the event loop ran nothing else."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(TICK)
            longest = max(longest, time.perf_counter() - begin - TICK)

    watching = asyncio.create_task(watch())
    await work
    watching.cancel()
    return longest


async def measure(name: str, size: int, work: Callable[[], Awaitable[object]]) -> None:
    """Do `work`, and print what it took."""
    # The peak begins anew at what is in use now.
    await asyncio.to_thread(Path("/proc/self/clear_refs").write_text, "5", encoding="ascii")
    idle, begin = memory("VmRSS"), time.perf_counter()
    stall = await longest_stall(work())
    seconds = time.perf_counter() - begin
    sys.stdout.write(
        f"{name:9} {size >> 20} MiB: {memory('VmHWM') - idle:5.1f} MiB over idle, longest stall {stall * 1000:5.1f} ms,"
        f" {seconds:.2f} s, {(size >> 20) / seconds:.0f} MiB/s\n"
    )


def fill(path: Path, size: int) -> None:
    """Write a file of `size` bytes, a piece at a time."""
    with path.open("wb") as file:
        for _ in range(size // len(PIECE)):
            file.write(PIECE)


async def main(port: int, size: int) -> None:
    """Upload, then download."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "up.jsonl"), Path(folder, "down.jsonl")
        await asyncio.to_thread(fill, source, size)
        async with FineTuneSession("sk-none", base_url=f"http://127.0.0.1:{port}/v1") as session:
            # So that what is made once, such as threads and a connection, is there.
            await session.upload_file(b"{}")
            await measure("upload", size, lambda: session.upload_file(source))
            await measure("download", size, lambda: session.download_file("file-1", target))
        if await asyncio.to_thread(lambda: target.stat().st_size) != size:
            sys.exit("the download is not as long as it should be")


if __name__ == "__main__":
    amount = int(sys.argv[1] if len(sys.argv) > 1 else 256) << 20
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there, amount), daemon=True)
    server.start()
    asyncio.run(main(here.recv(), amount))
    server.kill()
