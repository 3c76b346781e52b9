"""Processes that never outlive this one: the guard above them, their variables, and requests to their servers."""
