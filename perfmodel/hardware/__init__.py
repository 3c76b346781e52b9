"""Devices: datasheets, kernel efficiencies, this CPU, and devices from files."""
