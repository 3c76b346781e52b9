"""Engines: solve their profiles for seconds of passes, and search what they can execute."""
