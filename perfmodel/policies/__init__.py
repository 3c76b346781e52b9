"""Policies of a draft (exits, thresholds, draft lengths, stop rules), the frontier, and sampling settings."""
