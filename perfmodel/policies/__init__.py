"""Policies (exits, thresholds, lengths, stop rules), the frontier, and sampling."""
