"""The commands `s2d-run` and `s2d-train`."""
