"""Read and check training data."""
