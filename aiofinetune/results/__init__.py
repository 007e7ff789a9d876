"""Results files: the figures that a job leaves, a row each step."""

from aiofinetune.results._rows import ResultRow, last_figures, read_results

__all__ = ["ResultRow", "last_figures", "read_results"]
