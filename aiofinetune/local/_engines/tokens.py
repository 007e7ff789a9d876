"""Tokens as the API counts them: word-like chunks of UTF-8.

The model underneath reads and writes bytes; a token is what `max_tokens`, `elapsed_tokens` and the accuracies count in.
The rule follows the byte-level splitting of GPT-2 (Radford et al. 2019, `encoder.py`): a word, or a run of punctuation,
each with the one space before it, or a run of other white space. So a class label such as " Cyrillic" is one token.
Splitting is stable: text added at the end can lengthen the last token or add tokens, and changes no token before them.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

# A run longer than this is several tokens, so that no number of tokens allows endless text.
TOKEN_BYTES: Final = 32

_TOKEN = re.compile(
    rb" ?[\w\x80-\xff]{1,%(most)d}| ?[^\s\w\x80-\xff]{1,%(most)d}|\s{1,%(most)d}" % {b"most": TOKEN_BYTES - 1}
)


def split_tokens(text: bytes) -> list[bytes]:
    """Split UTF-8 `text` into tokens, each at most `TOKEN_BYTES` bytes; joined, they are `text`."""
    return _TOKEN.findall(text)


def token_starts(text: bytes) -> Iterator[int]:
    """Yield the offset in `text`, in bytes, at which each of its tokens starts."""
    return (match.start() for match in _TOKEN.finditer(text))


def count_tokens(text: bytes) -> int:
    """Count the tokens of UTF-8 `text`."""
    return sum(1 for _ in _TOKEN.finditer(text))


@lru_cache(maxsize=4096)
def extensions(token: bytes) -> frozenset[int]:
    """Return the bytes that, added to `token`, make one longer token; of no token, all bytes."""
    return frozenset(byte for byte in range(256) if _TOKEN.fullmatch(token + bytes((byte,))))


def show_token(token: bytes) -> str:
    r"""Return `token` as text, or as the API writes bytes that are no UTF-8 of their own: `bytes:\xe2\x82`."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
