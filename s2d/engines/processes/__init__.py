"""Processes that never outlive this one: the guard above them, their interpreters, and requests to their servers."""
