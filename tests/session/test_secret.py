"""Keeping the key out of what is shown."""

from __future__ import annotations

import pytest

from aiofinetune._secret import scrubbed

KEY = "sk-hostile-0123456789"


@pytest.mark.parametrize("around", [b"%b", b"%b at the start", b"at the end %b", b"%b twice %b"])
def test_key_is_scrubbed(around: bytes) -> None:
    """The key is taken out wherever it stands."""
    said = around.replace(b"%b", KEY.encode())
    assert scrubbed(said, KEY) == around.replace(b"%b", b"...")


def test_what_does_not_show_the_key_is_left() -> None:
    """What does not show the key is given as it is, not copied."""
    said = KEY[:-1].encode()
    assert scrubbed(said, KEY) is said


def test_short_keys_are_left() -> None:
    """A key as short as a word is no secret, and is not taken out of what people read."""
    assert scrubbed(b"train a model", "train") == b"train a model"
