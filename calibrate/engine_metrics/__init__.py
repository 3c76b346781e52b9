"""Read what engines and their benchmark tools print about speculation."""
