"""Replay: rounds, passes and accepted tokens of a policy along a trace."""
