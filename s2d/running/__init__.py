"""A plan executed on prompts: texts, outputs, checks and the run report."""
