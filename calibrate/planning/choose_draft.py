"""Several drafts of one target -> the plan of each, the fastest first: which draft to run, and with how large a head.

Drafts are compared by their speedups. Each was profiled beside the target in a session of its own, and plain decoding, the same
for all, tells how fast the machine was in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calibrate.inputs.requests import PlanRequest
from calibrate.planning.evidence import gather_acceptance
from calibrate.planning.make_plan import make_plan
from perfmodel.core.errors import UserInputError
from perfmodel.results.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDraft:
    """One of the drafts."""

    request: PlanRequest
    plan: Plan


def of_one_target(requests: Sequence[PlanRequest]) -> bool:
    """Whether all traces are of one target, so that they must be of different drafts."""
    headers = [gather_acceptance(request).trace.header for request in requests]
    return len({(header.target, header.target_sha256) for header in headers}) == 1


def plan_drafts(requests: Sequence[PlanRequest]) -> tuple[PlannedDraft, ...]:
    """Every draft at its best, by predicted speedup.

    Args:
        requests: one for each draft, with its own profiles, all of one target.

    Raises:
        UserInputError: a draft is given twice, the texts differ in how they are sampled, or anything that a plan would raise.
    """
    planned = [PlannedDraft(request=request, plan=make_plan(request)) for request in requests]
    known: dict[object, PlannedDraft] = {}
    for one in planned:
        key = (one.plan.draft, one.plan.draft_sha256)
        if key in known:
            traces = [str(found.request.trace) for found in (known[key], one)]
            raise UserInputError(
                f"traces {traces[0]!r} and {traces[1]!r} are of one draft at one target: give one of them, or traces of "
                "different drafts, or of different targets."
            )
        known[key] = one
    samplings = list(dict.fromkeys(one.plan.workload.sampling.label for one in planned))
    if len(samplings) > 1:
        raise UserInputError(f"the drafts were traced on {samplings[0]} and on {samplings[1]} text: record all of them alike.")
    return tuple(sorted(planned, key=lambda one: one.plan.chosen.speedup.speedup.value, reverse=True))
