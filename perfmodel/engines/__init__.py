"""Engines: programs that serve models, what each can execute, and what running one has measured."""
