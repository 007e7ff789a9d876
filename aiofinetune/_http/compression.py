"""Decompress the bodies of replies. No I/O."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from aiofinetune.errors import (
    ProtocolViolation,
)

ENCODINGS: Final = frozenset({"identity", "gzip", "x-gzip", "deflate"})
"""The encodings that can be decoded."""


_COMPRESSIONS: Final = frozenset(
    {"aes128gcm", "br", "compress", "dcb", "dcz", "exi", "pack200-gzip", "x-compress", "zstd"}
)
"""The other registered encodings (IANA, HTTP Content Coding Registry)."""


def encoding_of(headers: Mapping[str, str]) -> str:
    """Return the encoding of a body, from its ``Content-Encoding`` (RFC 9110, section 8.4).

    Values that are not encodings are ignored, because some services send an empty value, ``none`` or a character set.
    """
    if not (value := headers.get("Content-Encoding")):
        return "identity"
    named = value.lower().split(",")
    known = [name for each in named if (name := each.strip()) in (ENCODINGS | _COMPRESSIONS) - {"identity"}]
    return ", ".join(known) or "identity"


def new_decompressor(encoding: str, start: bytes = b"") -> zlib._Decompress:
    """Return a decompressor for a body (RFC 9110, section 8.4.1).

    Args:
        encoding: The encoding, as `encoding_of` returns it.
        start: The first bytes of the body. They show whether ``deflate`` comes without the zlib wrapper, as RFC 9110
            warns that some servers send it.

    Raises:
        ProtocolViolation: The encoding is not one that the client asks for.
    """
    match encoding.strip().lower():
        case "gzip" | "x-gzip":
            # The 16 makes zlib expect a gzip header.
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        case "deflate":
            # The low four bits of zlib's first byte are 8 (RFC 1950, section 2.2), and no bare deflate body starts like
            # that. Nor does deflated JSON start with a bracket: such a body is plain JSON with a wrong header.
            is_bare = start and start[0] & 0x0F != 8 and start[:1] not in (b"{", b"[")
            return zlib.decompressobj(wbits=-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS)
        case other:
            raise ProtocolViolation(
                f"the reply has the Content-Encoding {other[:40]!r}, which the client did not ask for"
            )
