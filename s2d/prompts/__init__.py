"""Prompts and conversations, and the text that tokens decode to."""
