"""Prices of a pair's passes: by datasheet, by fit, or by profile."""
