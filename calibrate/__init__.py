"""Decisions from evidence: fits, calibration, policy search, and plan against run."""
