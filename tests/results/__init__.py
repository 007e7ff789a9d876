"""Results files, comparisons, pictures and metrics."""
