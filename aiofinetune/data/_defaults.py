"""Hyperparameters that depend on the data, as the reference describes them (create fine-tune)."""

from __future__ import annotations


def batch_size_of(examples: int) -> int:
    """Return about 0.2 % of the number of `examples`, between 1 and 256."""
    return max(1, min(256, round(0.002 * examples)))


def learning_rate_multiplier_of(batch_size: int) -> float:
    """Return 0.05 for a final batch size under 8, 0.1 for one under 64, and 0.2 otherwise."""
    return 0.05 if batch_size < 8 else 0.1 if batch_size < 64 else 0.2
