"""The command line of `s2d-profile`."""
