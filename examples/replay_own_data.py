"""Replay policies on acceptance that you recorded yourself: confidences and agreements, position by position."""

import numpy as np

import s2d

generator = np.random.default_rng(0)
difficulty = generator.random(2000)  # [P]
reach = np.array([0.6, 0.7, 0.8])  # share of the positions that each exit predicts as the target does. [E]
agrees = difficulty[:, None] < reach  # [P, E]
confidence = np.clip(0.5 + reach - difficulty[:, None] + generator.normal(0, 0.1, agrees.shape), 0, 1)  # [P, E]

trace = s2d.Trace.from_arrays(confidence, agrees, exits=(6, 9, 12))
for policy in (
    s2d.Policy(exits=(12,), tokens=6),
    s2d.Policy(exits=(6, 12), thresholds=(0.6,), tokens=6),
    s2d.Policy(exits=(6, 12), thresholds=(0.6,), tokens=12, stop=s2d.ConfidenceFloor(floor=0.5)),
):
    rounds = s2d.replay(trace, policy)
    print(f"{policy.label:55} {rounds.tokens_per_round:.2f} tokens per round, exits {rounds.exits_taken}")
