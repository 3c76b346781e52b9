"""Inputs of a plan: the request, and the target, draft, device and acceptance it names."""
