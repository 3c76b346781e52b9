"""The search for the fastest policy."""
