"""Replay: the rounds, passes and accepted tokens of any policy along a trace, and their speed."""
