"""Bytes as they are on the wire: requests, forms, and what the server replies."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

from aiofinetune.local import LocalServer

FILE_KEYS = {"id", "object", "bytes", "created_at", "filename", "purpose"}


def address(server: LocalServer) -> tuple[str, int]:
    parts = urlsplit(server.base_url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read one reply from a raw connection: its status, headers by lower-case name, and body."""
    first, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    return int(first.split()[1]), headers, body


async def raw(server: LocalServer, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes on a connection of their own, and read one reply."""
    reader, writer = await asyncio.open_connection(*address(server))
    try:
        writer.write(sent)
        async with asyncio.timeout(30):
            return await read_reply(reader)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


FORM = {
    "purpose": b'Content-Disposition: form-data; name="purpose"\r\n\r\nfine-tune',
    "file": b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\nline\r\n\r\n--x\r\nline',
    "unnamed": b'Content-Disposition: form-data; name="file"\r\n\r\nline\r\n\r\n--x\r\nline',
}
FORM_TYPE = {"Content-Type": "multipart/form-data; boundary=frontier"}


def form(*parts: bytes, end: bytes = b"--frontier--\r\n") -> bytes:
    return b"".join(b"--frontier\r\n%b\r\n" % part for part in parts) + end


def request_bytes(method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    fields = {"Host": "localhost", "Authorization": "Bearer a-key-for-tests"}
    if body:
        fields["Content-Length"] = str(len(body))
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


FORM_NAME = FORM_TYPE["Content-Type"]
