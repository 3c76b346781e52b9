"""Profile engines by running them: plain, and with a few draft lengths."""
