"""Measure a device: latency profiles from the decoding loop, and acceptance traces."""
