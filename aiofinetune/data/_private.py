"""Find what should not be in training data: secrets, payment cards and email addresses.

Each search first looks for what is cheap to find, because nearly every text holds none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from aiofinetune.data._report import Trouble

_TOKEN_STARTS: Final = (
    *("sk-", "AKIA", "ghp_", "gho_", "ghs_", "github_pat_", "xox", "AIza", "eyJ", "hf_", "glpat-"),
    *("PRIVATE KEY", "assword"),
)
_SECRET: Final = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}\b|gh[pos]_[A-Za-z0-9]{36}|github_pat_\w{22,}|xox[abprs]-[\w-]{16,}"
    r"|AIza[\w-]{35}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}|hf_[A-Za-z0-9]{30,}|glpat-[\w-]{20,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b[Pp]assword\s?[:=]\s?(?=\S*\d\S*\d)(?!\S*[<>{}$%]|[\w.]+[(\[])\S{8,}"
)
_EMAIL: Final = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b(?!-\w)")
_DOMAIN: Final = re.compile(r"@[A-Za-z0-9-]{1,63}\.")
"""The middle of an address, which is found fast."""
_EXAMPLES: Final = re.compile(r"@(?:[\w.-]+\.)?(?:example\.(?:com|org|net)|\w+\.(?:example|invalid|test))\b", re.ASCII)
"""Addresses that belong to nobody (RFC 2606)."""
_CARD: Final = re.compile(r"(?<![A-Za-z\d.,-])(?:\d[ -]?){12,18}\d(?![A-Za-z\d-]|[.,]\d)")
_DIGITS: Final = bytes(48 if 48 <= byte <= 57 else 32 for byte in range(256))
_SMALL: Final = b"abcdefghijklmnopqrstuvwxyz-_"
_SHAPES: Final = bytes(65 if chr(byte).isalnum() and byte < 128 else 32 for byte in range(256))
_CAPITALS: Final = b"A" * 6
"""The shortest rest of a token without its small letters, in a text whose other letters and digits are all the same."""
_MIN_CARD: Final = 13
_RUN: Final = b"0" * _MIN_CARD
"""The shortest number of a card, in a text whose digits are all 0, without the spaces and dashes between them."""


def has_private(content: bytes) -> bool:
    """Whether a text in UTF-8 may hold something private, so that `find_private` is to look closer."""
    # Not `in`, which makes and drops an exception for each search in bytes.
    if content.find(b"@") >= 0 or content.find(b"assword") >= 0:
        return True
    # Of a token, what is left without its small letters is still long; of words, it is not.
    if content.translate(_SHAPES, _SMALL).find(_CAPITALS) >= 0:
        return True
    digits = len(content) - len(content.translate(None, b"0123456789"))
    return digits >= _MIN_CARD and _has_run(content)


def _has_run(content: bytes) -> bool:
    return content.translate(_DIGITS, b" -").find(_RUN) >= 0


def find_private(field: str, text: str) -> Iterator[Trouble]:
    """Yield the first email address, secret and card number in a text, most of each hidden."""
    for address in _EMAIL.finditer(text) if _DOMAIN.search(text) else ():
        if not _EXAMPLES.search(address[0]):
            name, _, domain = address[0].partition("@")
            yield Trouble("email-address", field, f"{name[:1]}…@{domain}")
            break
    if any(start in text for start in _TOKEN_STARTS) and (match := _SECRET.search(text)):
        yield Trouble("secret", field, _masked(match[0], 6))
    if _has_run(text.encode()):
        for number in _CARD.finditer(text):
            if _is_card(number[0]):
                yield Trouble("card-number", field, _masked(number[0], 4))
                break


def _is_card(text: str) -> bool:
    """Whether digits are the number of a payment card: its issuer, its length and its check digit (ISO/IEC 7812)."""
    digits = [int(digit) for digit in text if digit.isdigit()]
    number = "".join(map(str, digits))
    if not _ISSUERS.fullmatch(number) or len(set(digits)) < 2:
        return False
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


# Visa and Mastercard; then American Express, Diners Club, Discover and JCB.
_ISSUERS: Final = re.compile(
    r"4\d{12}(?:\d{3})?|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"
    r"|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|5\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}"
)


def _masked(text: str, shown: int) -> str:
    return f"{text[:shown]}… ({len(text)} characters)"
