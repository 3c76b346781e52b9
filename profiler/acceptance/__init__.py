"""Acceptance traces, recorded along the target's own text."""
