"""Passes: kinds and samples, bytes and FLOP, the latency law, profiles and fits."""
