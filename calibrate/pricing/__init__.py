"""Prices of the passes of a pair: by datasheet, by fit or by profile."""
