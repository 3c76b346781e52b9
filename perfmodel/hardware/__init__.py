"""Devices: datasheets, kernel efficiencies, and devices of the user's own."""
