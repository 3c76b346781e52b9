"""Find the policies between which an adaptive run switches.

Each is stored with its predicted seconds per round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from calibrate.search.scenario import Scenario
from perfmodel.core.units import Frac, Seconds
from perfmodel.passes.passes import SEGMENT_KINDS, Line, PassKind
from perfmodel.policies.frontier import FrontierPoint, leading_points
from perfmodel.policies.policy import Policy
from perfmodel.replay.estimate import PassLatency, line_or_infinity
from perfmodel.replay.replay import replay_batch

SHORT_DRAFTS = (1, 2, 4)
"""Draft lengths that are also tried with each exit alone. The search optimises for the mean text; these win on harder ones."""


def find_frontier(scenario: Scenario, chosen: Policy | None, others: Iterable[Policy | None]) -> tuple[FrontierPoint, ...]:
    """Plain decoding, the chosen policy, and every candidate that is the fastest at some drift of acceptance.

    Candidates are the other policies and short drafts of each exit. Policies with longer drafts than the
    search tries are left out, and so are policies that need a pass without evidence. The points are sorted from the fastest at
    the lowest acceptance to the fastest at the highest.
    """
    candidates = dict.fromkeys((None, chosen, *others, *_short_drafts(scenario)))
    extended = with_long_backlogs(scenario)
    points = [_point(extended, policy) for policy in candidates if policy is None or policy.tokens <= MAX_DRAFT_TOKENS]
    priced = [point for point in points if math.isfinite(math.fsum((*point.round_s, point.catch_up_s)))]
    return leading_points(priced, always=(None, chosen))


def _short_drafts(scenario: Scenario) -> list[Policy]:
    header = scenario.trace.header
    return [
        Policy(exits=(layer,), tokens=tokens, confidence=header.confidence)
        for layer in header.exit_layers
        for tokens in SHORT_DRAFTS
    ]


def with_long_backlogs(scenario: Scenario) -> Scenario:
    """The scenario, with each segment pass that is wider than the evidence priced as the widest pass that has evidence.

    A switch of policies can leave a long backlog to a segment. This happens a few times per text at most.
    """
    return replace(scenario, draft=_LongBacklogs(scenario.draft))


class _LongBacklogs:
    """A draft's latency, extended to segment passes of any width."""

    def __init__(self, draft: PassLatency) -> None:
        self._draft = draft
        self._lines: dict[tuple[PassKind, int, int], Line] = {}

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of a warm pass."""
        key = kind, stage, rows
        if key not in self._lines:
            line = line_or_infinity(self._draft, *key)
            if kind in SEGMENT_KINDS and rows > 1 and not math.isfinite(line.base_s):
                line = self.line(kind, stage, rows - 1)
            self._lines[key] = line
        return self._lines[key]

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """Extra seconds of a cold pass."""
        return self._draft.cold_s(kind, stage, place)


def _point(scenario: Scenario, policy: Policy | None) -> FrontierPoint:
    if policy is None:
        return FrontierPoint(policy=None, kept_frac=(), drafted_frac=(), round_s=_round_s(scenario, [None]), catch_up_s=0.0)
    [rounds] = replay_batch(scenario.trace, [policy]).stats()
    lengths = [replace(policy, tokens=tokens, stop=None) for tokens in range(1, len(rounds.drafted_by_position) + 1)]
    return FrontierPoint(
        policy=policy,
        kept_frac=_shares([rounds.num_rounds, *rounds.accepted_by_position]),
        drafted_frac=(1.0,) * len(lengths)
        if policy.stop is None
        else _shares([rounds.num_rounds, *rounds.drafted_by_position]),
        round_s=_round_s(scenario, [None, *lengths]),
        catch_up_s=0.0 if scenario.trace.header.draft_kind == "self" else _catch_up_s(scenario, policy),
    )


def _round_s(scenario: Scenario, policies: Sequence[Policy | None]) -> tuple[Seconds, ...]:
    """Seconds of a mean round of each policy."""
    batch = replay_batch(scenario.trace, policies)
    seconds: list[Seconds] = (batch.seconds(scenario.draft, scenario.target) / batch.num_rounds).tolist()
    return tuple(seconds)


def _catch_up_s(scenario: Scenario, policy: Policy) -> Seconds:
    """Seconds that one more token adds to a pass, summed over the policy's segments: no token is caught up on alone."""
    stages = range(scenario.trace.header.exit_layers.index(policy.exits[-1]) + 1)
    return math.fsum(
        max(0.0, scenario.line("segment", stage, 2).base_s - scenario.line("segment", stage, 1).base_s) for stage in stages
    )


def _shares(counts: Sequence[float]) -> tuple[Frac, ...]:
    """Each count over the one before it, with half a round added to both: no share is exactly 0 or 1."""
    return tuple((count + 0.5) / (before + 1) for before, count in pairwise(counts))
