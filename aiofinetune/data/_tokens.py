"""Count tokens: by an estimate, or exactly with a tokenizer's file."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike, fspath
from typing import Final

from aiofinetune.errors import ConfigurationError

Counter = Callable[[str, int], int]
"""Returns the number of tokens of a text, which is also given by its length in UTF-8."""

ESTIMATE: Final = "an estimate"


def estimate(text: str, length: int) -> int:
    """Return about how many tokens a text has: a quarter of its ASCII bytes and half of the others, rounded up.

    About four characters of English make a token in byte-pair encodings such as GPT-2's (reference: the guide to
    tokens), and two bytes of the scripts that they split more finely.
    """
    if length == len(text):
        return (length + 3) // 4
    other = length - len(text.encode("ascii", "ignore"))
    return (length + other + 3) // 4


def tokenizer_counter(path: str | PathLike[str]) -> Counter:
    """Return a function that counts tokens exactly.

    Args:
        path: A `tokenizer.json` of the `tokenizers` library.

    Raises:
        ConfigurationError: The extra ``tokenizers`` is not installed, or the file is not a tokenizer's.
    """
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415  # an extra  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigurationError(
            "counting tokens exactly needs tokenizers: pip install 'aiofinetune[tokenizers]'"
        ) from error
    try:
        encode = Tokenizer.from_file(fspath(path)).encode
    except Exception as error:  # the library raises plain Exceptions
        raise ConfigurationError(f"tokenizer: {fspath(path)} cannot be read: {error}") from error
    return lambda text, _length: len(encode(text, add_special_tokens=False).ids)
