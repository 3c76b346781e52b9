"""Code used by several benchmarks."""
