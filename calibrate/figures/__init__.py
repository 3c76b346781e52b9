"""Figures of notebooks and benchmarks."""
