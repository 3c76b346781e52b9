"""Prompt and text files: any common layout, recognised by its content, to prompts or training texts; needs no torch."""
