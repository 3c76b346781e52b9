"""Latency models: seconds of a pass from a datasheet, a fit, or a profile."""
