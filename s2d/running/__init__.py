"""Run plans over prompts, and the Python API of the runtime."""
