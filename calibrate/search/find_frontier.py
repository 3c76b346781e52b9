"""Evidence -> frontier: the policies that a run may move along, each priced by how many tokens a round of it drafts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from perfmodel.acceptance.trace import Trace
from perfmodel.core.units import Frac, Seconds
from perfmodel.passes.passes import SEGMENT_KINDS, Line, PassKind
from perfmodel.policies.frontier import FrontierPoint, leaders
from perfmodel.policies.policy import Policy
from perfmodel.replay.replay import Price, replay_batch

SHORT_DRAFTS = (1, 2, 4)
"""Tokens that each exit is also tried at alone: the others were searched on a mean text, and these lead on harder ones."""


def frontier_of(
    trace: Trace, price: Price, chosen: Policy | None, others: Iterable[Policy | None]
) -> tuple[FrontierPoint, ...]:
    """Plain decoding, the chosen policy, and all of the others and of the exits' short drafts that lead at some drift.

    From those that lead where least is accepted to those that lead where most is. Policies that draft more than was
    searched, or need a pass without a price, are left out.
    """
    considered = dict.fromkeys((None, chosen, *others, *_short_drafts(trace)))
    short = [one for one in considered if one is None or one.tokens <= MAX_DRAFT_TOKENS]
    at_any_backlog = with_long_backlogs(price)
    points = [_point(trace, at_any_backlog, policy) for policy in short]
    priced = [point for point in points if math.isfinite(math.fsum((*point.round_s, point.catch_up_s)))]
    return leaders(priced, always=(None, chosen))


def _short_drafts(trace: Trace) -> list[Policy]:
    confidence = trace.header.confidence
    return [
        Policy(exits=(layer,), tokens=cap, confidence=confidence)
        for layer in trace.header.draft.exit_layers
        for cap in SHORT_DRAFTS
    ]


def with_long_backlogs(price: Price) -> Price:
    """The price, with segments of more rows than have one priced as the widest that has: a few rounds of a text at most."""

    @cache
    def line(kind: PassKind, stage: int, rows: int) -> Line:
        found = price.line(kind, stage, rows)
        if kind in SEGMENT_KINDS and rows > 1 and not math.isfinite(found.base_s):
            return line(kind, stage, rows - 1)
        return found

    return replace(price, line=line)


def _point(trace: Trace, price: Price, policy: Policy | None) -> FrontierPoint:
    if policy is None:
        return FrontierPoint(policy=None, kept_frac=(), drafted_frac=(), round_s=_seconds(trace, price, [None]), catch_up_s=0.0)
    [rounds] = replay_batch(trace, [policy]).stats()
    lengths = [replace(policy, tokens=cap, stop=None) for cap in range(1, len(rounds.drafted_by_position) + 1)]
    is_fixed = policy.stop is None
    return FrontierPoint(
        policy=policy,
        kept_frac=_shares([rounds.num_rounds, *rounds.accepted_by_position]),
        drafted_frac=(1.0,) * len(lengths) if is_fixed else _shares([rounds.num_rounds, *rounds.drafted_by_position]),
        round_s=_seconds(trace, price, [None, *lengths]),
        catch_up_s=0.0 if trace.header.draft.kind == "self" else _catch_up_s(trace, price, policy),
    )


def _seconds(trace: Trace, price: Price, policies: Sequence[Policy | None]) -> tuple[Seconds, ...]:
    """Of a mean round of each policy."""
    batch = replay_batch(trace, policies)
    seconds: list[Seconds] = (batch.seconds(price) / batch.num_rounds).tolist()
    return tuple(seconds)


def _catch_up_s(trace: Trace, price: Price, policy: Policy) -> Seconds:
    """What a second token in a pass costs, in all segments that the policy may run; nobody waits for a token alone."""
    stages = range(trace.header.draft.exit_layers.index(policy.exits[-1]) + 1)
    return math.fsum(
        max(0.0, price.line("segment", stage, 2).base_s - price.line("segment", stage, 1).base_s) for stage in stages
    )


def _shares(reached: Sequence[float]) -> tuple[Frac, ...]:
    """Each count over the one before it; half a round is added on both sides, as nothing that was counted is certain."""
    return tuple((some + 0.5) / (before + 1) for before, some in pairwise(reached))
