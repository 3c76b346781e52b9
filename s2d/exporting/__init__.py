"""Export a plan: everything that an engine needs to serve it."""
