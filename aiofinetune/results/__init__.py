"""Read the results file of a job, which has one row of figures for each training step."""

from aiofinetune.results._rows import ResultRow, last_figures, read_results

__all__ = ["ResultRow", "last_figures", "read_results"]
