"""Models: shapes, number types, configs, and the table of known models."""
