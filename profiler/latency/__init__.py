"""Pass times, measured inside the running loop."""
