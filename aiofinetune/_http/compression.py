"""Compressed bodies of replies. No I/O."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from aiofinetune.errors import (
    ProtocolViolation,
)

ENCODINGS: Final = frozenset({"identity", "gzip", "x-gzip", "deflate"})
"""The encodings of a body that are understood."""


_COMPRESSIONS: Final = frozenset(
    {"aes128gcm", "br", "compress", "dcb", "dcz", "exi", "pack200-gzip", "x-compress", "zstd"}
)
"""The registered encodings (IANA, HTTP Content Coding Registry) that are not."""


def encoding_of(headers: Mapping[str, str]) -> str:
    """The encoding of a body, by its ``Content-Encoding`` (RFC 9110, section 8.4).

    Some services name there what is no encoding: nothing, ``none``, a character set. That leaves a body as it is.
    """
    named = headers.get("Content-Encoding", "").lower().split(",")
    known = [name for each in named if (name := each.strip()) in (ENCODINGS | _COMPRESSIONS) - {"identity"}]
    return ", ".join(known) or "identity"


def new_decompressor(encoding: str, start: bytes = b"") -> zlib._Decompress:
    """What undoes a body's encoding (RFC 9110, section 8.4.1).

    Args:
        encoding: As `encoding_of` gives it.
        start: The body's first bytes: some servers send ``deflate`` without zlib's wrapper, as RFC 9110 warns.

    Raises:
        ProtocolViolation: An encoding that was not asked for.
    """
    match encoding.strip().lower():
        case "gzip" | "x-gzip":
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        case "deflate":
            # The lower half of zlib's first byte is 8 (RFC 1950, section 2.2), and no bare deflate begins so. Nor does
            # that of JSON begin as JSON itself, which is here under a wrong name.
            is_bare = start and start[0] & 0x0F != 8 and start[:1] not in (b"{", b"[")
            return zlib.decompressobj(wbits=-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS)
        case other:
            raise ProtocolViolation(f"the reply has the Content-Encoding {other[:40]!r}, which was not asked for")
