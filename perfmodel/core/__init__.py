"""Foundations: units, errors, files, the console, and statistics."""
