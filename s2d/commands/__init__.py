"""The commands `s2d-run`, `s2d-train` and `s2d-engines`."""
