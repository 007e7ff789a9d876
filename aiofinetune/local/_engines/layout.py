"""Texts as the model reads them: one position for each symbol that it predicts."""

from collections.abc import Iterator, Sequence
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from aiofinetune.local._engines.model import (
    END_OF_TEXT,
    PROMPT_BYTES,
    SYMBOLS,
    Floats,
    Indices,
    Size,
    Symbols,
    TextPair,
)
from aiofinetune.local._engines.training_files import COMPLETION_BYTES

# Texts are laid out in slices of at most this many positions, because a whole batch of long texts took 2.5 GB. The
# longest prompt and completion with its end of text fit in one slice.
SLICE_POSITIONS: Final = PROMPT_BYTES + COMPLETION_BYTES + 1

# The layers are computed for blocks of at most this many positions of a slice. No number from 256 to 2,048 is more than
# 3 % faster.
BLOCK_POSITIONS: Final = 1024

Chosen = slice | Indices
"""Some of the positions of a slice, in order."""


@attrs.frozen(eq=False)
class Layout:
    """Concatenated texts as n positions, each with one symbol to predict."""

    padded: Symbols  # (p,): the symbols of each text, after as many ends of text as the window has bytes
    places: Indices  # (n,): where in `padded` the position's symbol is
    symbols: Symbols  # (n,): the symbol to predict
    ngrams: Symbols  # (2, n): buckets of the 2- and 4-gram that end in the symbol, for the contexts of later positions
    starts: Indices  # (n,): where the position's text starts
    ends: Indices  # (n,): where it ends (the position after its last)
    in_completion: NDArray[np.bool_]  # (n,)
    scales: Floats  # (n, 1): 1/sqrt(length of the left context)

    def blocks(self, prompt_weight: float) -> Iterator[tuple[Chosen, Floats]]:
        """Yield the positions whose weight is not 0, and their weights, a block at a time."""
        weights = np.where(self.in_completion, np.float32(1.0), np.float32(prompt_weight))
        chosen = None if prompt_weight else np.flatnonzero(weights)
        for start in range(0, len(weights) if chosen is None else len(chosen), BLOCK_POSITIONS):
            block = slice(start, start + BLOCK_POSITIONS)
            indices: Chosen = block if chosen is None else chosen[block]
            yield indices, weights[indices]


def lay_out(texts: Sequence[TextPair], size: Size) -> Layout:
    """Lay out `texts` for a model of `size`."""
    joined = b"".join([part for text in texts for part in (text.prompt, text.completion, b"\0")])
    lengths = np.array([text.positions for text in texts])
    prompts = np.array([len(text.prompt) for text in texts])
    ends = lengths.cumsum()
    symbols = np.frombuffer(joined, np.uint8).astype(np.uint16)
    symbols[ends - 1] = END_OF_TEXT
    owners, positions = np.arange(len(texts)).repeat(lengths), np.arange(len(symbols))
    places = positions + (owners + 1) * size.window
    padded = np.full(len(symbols) + len(texts) * size.window, END_OF_TEXT, np.uint16)
    padded[places] = symbols
    starts = (ends - lengths).take(owners)
    lefts = positions - starts
    return Layout(
        padded=padded,
        places=places,
        symbols=symbols,
        ngrams=ngram_buckets(padded, size.bucket_bits).take(places - 3, axis=1),
        starts=starts,
        ends=ends.take(owners),
        in_completion=lefts >= prompts.take(owners),
        scales=(1.0 / np.sqrt(np.maximum(lefts, 1)))[:, None].astype(np.float32),
    )


def slices(texts: Sequence[TextPair]) -> Iterator[Sequence[TextPair]]:
    """Split `texts` into runs of at most `SLICE_POSITIONS` positions."""
    start, positions = 0, 0
    for index, text in enumerate(texts):
        if positions + text.positions > SLICE_POSITIONS and index > start:
            yield texts[start:index]
            start, positions = index, 0
        positions += text.positions
    yield texts[start:]


def total_weight(texts: Sequence[TextPair], prompt_weight: float) -> float:
    """Return the sum of the weights of all positions of `texts`."""
    return sum(len(text.completion) + 1 + prompt_weight * len(text.prompt) for text in texts)


def ngram_buckets(symbols: Symbols, bits: int) -> Symbols:
    """Hash the 2- and 4-gram ending in each symbol from the fourth on: (n,) to (2, n - 3) buckets below 2**bits.

    This is multiplicative hashing (Knuth, The Art of Computer Programming, 6.4) modulo 2**32. NumPy can radix-sort the
    buckets because they have 16 bits.
    """
    wide = symbols.astype(np.uint32)
    pairs = wide[:-1] * np.uint32(SYMBOLS) + wide[1:]
    fours = pairs[:-2] * np.uint32(SYMBOLS**2) + pairs[2:]
    hashed = np.stack((pairs[2:] * np.uint32(2654435761), fours * np.uint32(2246822519)))
    return (hashed >> np.uint32(32 - bits)).astype(np.uint16)
