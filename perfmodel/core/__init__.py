"""Shared ground: units, errors, files, the console, and statistics."""
