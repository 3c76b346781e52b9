"""Acceptance traces, calibration curves, and splits of prompts."""
