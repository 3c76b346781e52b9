"""Fits: the latency law, acceptance, and their validation on published data."""
