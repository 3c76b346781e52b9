"""Measure pass times, inside the decoding loop and for the latency law."""
