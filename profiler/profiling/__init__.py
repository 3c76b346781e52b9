"""Requests to profile a pair of models or the latency law, and their results."""
