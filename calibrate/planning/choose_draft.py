"""Plan several drafts of one target and put the fastest first.

Drafts are compared by their speedups. Each draft was profiled beside the target in its own session. Plain decoding is the same
in all sessions, so dividing by it removes differences in the machine's speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calibrate.inputs.acceptance import load_acceptance
from calibrate.inputs.requests import PlanRequest
from calibrate.planning.make_plan import make_plan
from perfmodel.acceptance.trace import TraceHeader
from perfmodel.core.errors import UserInputError
from perfmodel.results.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDraft:
    """One draft: its request and its plan."""

    request: PlanRequest
    plan: Plan


def have_one_target(requests: Sequence[PlanRequest]) -> bool:
    """Whether all traces are of one target. They must then be of different drafts.

    Args:
        requests: each with a trace.
    """
    headers = [_header(request) for request in requests]
    return len({(header.target, header.target_sha256) for header in headers}) == 1


def _header(request: PlanRequest) -> TraceHeader:
    assert request.trace is not None
    return load_acceptance(request.trace).trace.header


def plan_drafts(requests: Sequence[PlanRequest]) -> tuple[PlannedDraft, ...]:
    """The plan of every draft, the highest predicted speedup first.

    Args:
        requests: one for each draft, with its own profiles, all of one target.

    Raises:
        UserInputError: a draft is given twice, the traces were sampled in different ways, or anything that a plan raises.
    """
    planned = [PlannedDraft(request=request, plan=make_plan(request)) for request in requests]
    by_draft: dict[object, PlannedDraft] = {}
    for candidate in planned:
        key = (candidate.plan.draft, candidate.plan.draft_sha256)
        if key in by_draft:
            traces = [str(same_draft.request.trace) for same_draft in (by_draft[key], candidate)]
            raise UserInputError(
                f"traces {traces[0]!r} and {traces[1]!r} are of one draft at one target: give one of them, or traces of "
                "different drafts, or of different targets."
            )
        by_draft[key] = candidate
    samplings = list(dict.fromkeys(candidate.plan.workload.sampling.label for candidate in planned))
    if len(samplings) > 1:
        raise UserInputError(
            f"the drafts were traced on {samplings[0]} and on {samplings[1]} text: record all of them with the same sampling."
        )
    return tuple(sorted(planned, key=lambda candidate: candidate.plan.chosen.speedup.speedup.value, reverse=True))
