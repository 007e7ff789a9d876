"""Encodings: what a file says about its own, and what its undecodable lines may be in."""

from __future__ import annotations

import codecs
from typing import Final

from aiofinetune.errors import ConfigurationError

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(head: bytes) -> str:
    """Return the encoding that the first bytes of a file show: by their mark, or by the zero bytes of UTF-16."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    # The first two characters of JSON and of a header are ASCII.
    zeros = "".join("0" if byte == 0 else "x" for byte in head[:4])
    return {"x0x0": "utf-16-le", "0x0x": "utf-16-be"}.get(zeros, "utf-8")


def check_encoding(name: str) -> str:
    """Return the usual name of an encoding.

    Raises:
        ConfigurationError: Python has no text encoding of that name.
    """
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        raise ConfigurationError(f"encoding: {name!r} is unknown; give one such as 'cp1252'") from None


def keeps_ascii(name: str) -> bool:
    """Whether each ASCII character is its own byte, so that a file can be split into lines before it is decoded."""
    ascii_text = bytes(range(128)).decode("ascii")
    try:
        return ascii_text.encode(name) == ascii_text.encode() and not name.startswith(("iso2022", "hz", "utf-7"))
    except ValueError:
        return False


def suggest_encoding(sample: bytes) -> str | None:
    """Return an encoding that bytes which are not UTF-8 may be in; None if none fits.

    charset-normalizer is asked if it is installed (extra ``encodings``). Otherwise it is cp1252, in which most such
    files of western languages are, if that has all the bytes.
    """
    try:
        from charset_normalizer import from_bytes  # noqa: PLC0415  # an extra  # pyright: ignore[reportMissingImports]
    except ImportError:
        best = None
    else:
        best = from_bytes(sample, preemptive_behaviour=False).best()
    for name in (best.encoding if best is not None else None, "cp1252"):
        try:
            if name is not None:
                sample.decode(name)
                return name
        except ValueError:
            continue
    return None
