"""Record acceptance traces along the target's own text."""
