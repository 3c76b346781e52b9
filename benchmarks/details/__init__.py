"""Parts of single benchmarks."""
