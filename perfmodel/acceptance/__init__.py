"""Acceptance traces: what every exit predicts along the target's own text."""
