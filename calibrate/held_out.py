"""Search on one half of the prompts, score on the other: how much of a found speedup is fitted to the prompts.

Halves are by document, as everywhere (`perfmodel/halves.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from calibrate.cases import Case, rates_at
from calibrate.search import search
from perfmodel.halves import HALVES, Half, half_of
from perfmodel.plan import Overfitting
from perfmodel.policy import ExitPolicy


def halves_of(cases: Sequence[Case]) -> tuple[list[Case], list[Case]] | None:
    """Every case on the one half of its prompts and on the other; None where a half would be empty."""
    first, second = ([_half(case, half) for case in cases] for half in HALVES)
    found = ([case for case in half if case is not None] for half in (first, second))
    one, other = found
    return (one, other) if len(one) == len(other) == len(cases) else None


def _half(case: Case, half: Half) -> Case | None:
    kept = [number for number, prompt in enumerate(case.trace.header.prompts) if half_of(prompt.name) == half]
    return replace(case, trace=case.trace.subset(kept)) if kept else None


def log_speedups(case: Case, policies: Sequence[ExitPolicy | None]) -> list[float]:
    """Natural logarithm of the speedup of each policy over plain decoding; minus infinity where one has no price."""
    *rates, plain = rates_at([case], [*policies, None])[:, 0].tolist()
    return [math.log(rate / plain) if rate else -math.inf for rate in rates]


def overfitting(case: Case) -> Overfitting | None:
    """What a search gains on prompts it has seen, and on others; None where a half of the prompts would be empty."""
    halves = halves_of([case])
    if halves is None:
        return None
    (one,), (other,) = halves
    seen, unseen = [], []
    for searched, left_out in ((one, other), (other, one)):
        policy = search([searched]).chosen.policy
        seen += log_speedups(searched, [policy])
        unseen += log_speedups(left_out, [policy])
    return Overfitting(seen_speedup=math.exp(sum(seen) / 2), unseen_speedup=math.exp(sum(unseen) / 2))
