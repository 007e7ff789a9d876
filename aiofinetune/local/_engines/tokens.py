"""Tokens as the API counts them: word-like chunks of UTF-8.

The model reads and writes bytes; tokens are the unit of `max_tokens`, `elapsed_tokens` and the accuracies. The rule
follows the byte-level splitting of GPT-2 (Radford et al. 2019, `encoder.py`): a token is a word or a run of
punctuation, each with the one space before it, or a run of other white space. So a class label such as " Cyrillic" is
one token. Text that is added at the end can extend the last token or add tokens, but never changes the tokens before.
"""

import re
from functools import lru_cache
from typing import Final

# A longer run is split into several tokens, so that a limit on the number of tokens also limits the length.
TOKEN_BYTES: Final = 32

_TOKEN = re.compile(
    rb" ?[\w\x80-\xff]{1,%(most)d}| ?[^\s\w\x80-\xff]{1,%(most)d}|\s{1,%(most)d}" % {b"most": TOKEN_BYTES - 1}
)


def split_tokens(text: bytes) -> list[bytes]:
    """Split UTF-8 `text` into tokens of at most `TOKEN_BYTES` bytes; joined, they are equal to `text`."""
    return _TOKEN.findall(text)


def count_tokens(text: bytes) -> int:
    """Count the tokens of UTF-8 `text`."""
    return len(_TOKEN.findall(text))


@lru_cache(maxsize=4096)
def extensions(token: bytes) -> frozenset[int]:
    """Return the bytes that extend `token` to one longer token; for an empty `token`, all bytes."""
    return frozenset(byte for byte in range(256) if _TOKEN.fullmatch(token + bytes((byte,))))


def show_token(token: bytes) -> str:
    r"""Return `token` as text; if it is not valid UTF-8, as the API shows such bytes: `bytes:\xe2\x82`."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
