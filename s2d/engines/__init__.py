"""Run engines: their environments, their checkpoints, and sessions with them."""
