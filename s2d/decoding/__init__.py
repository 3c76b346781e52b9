"""The decoding loop: draft, verify, generate."""
