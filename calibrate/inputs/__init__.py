"""Inputs of a plan: the request, and the target, device and acceptance that it names."""
