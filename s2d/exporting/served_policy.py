"""The part of a plan that an engine executes: one exit, a draft length, perhaps a floor and a schedule by batch size."""

from dataclasses import dataclass, replace

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Frac, Tokens
from perfmodel.engines.engine import Engine
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.results.plan import BatchPoint, BatchSchedule, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRange:
    """A draft length for batches of `first` to `last` sequences, both included."""

    first: int
    last: int
    draft_tokens: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPolicy:
    """What an engine does in each round."""

    exit_layer: int
    draft_tokens: Tokens
    floor: float | None
    """Confidence in the engine's own measure below which drafting stops; None: fixed length."""
    by_batch: tuple[BatchRange, ...]
    """Empty if the engine takes no schedule, or if the plan has none for this exit."""
    acceptance_rates: tuple[Frac, ...]
    """Entry i: predicted share of the rounds that accept at least i + 1 tokens; as long as `draft_tokens`."""

    @property
    def acceptance_length(self) -> float:
        """Predicted accepted tokens per round, and the bonus."""
        return 1 + sum(self.acceptance_rates)

    @property
    def label(self) -> str:
        """`exit 4, 8 tokens`, or `exit 4, up to 8 tokens, floor 0.4`."""
        if self.floor is None:
            return f"exit {self.exit_layer}, {self.draft_tokens} tokens"
        return f"exit {self.exit_layer}, up to {self.draft_tokens} tokens, floor {self.floor:g}"


def served_policy(plan: Plan, engine: Engine) -> ServedPolicy:
    """The plan's policy in the terms of an engine, which `check_export` has found able to execute it.

    Raises:
        UserInputError: the plan does not speculate.
    """
    policy = plan.policy
    if policy is None:
        raise UserInputError(
            "the plan is plain decoding: expected one that speculates. There is nothing to export; serve the target alone."
        )
    exit_layer = policy.exits[-1]
    return ServedPolicy(
        exit_layer=exit_layer,
        draft_tokens=policy.tokens,
        floor=policy.stop.floor if isinstance(policy.stop, ConfidenceFloor) else None,
        by_batch=_by_batch(plan, exit_layer) if engine.has_tokens_by_batch else (),
        acceptance_rates=_acceptance_rates(plan, policy),
    )


def _acceptance_rates(plan: Plan, policy: Policy) -> tuple[Frac, ...]:
    """Share of the rounds that accept at least 1, 2, … tokens, never rising."""
    rounds = plan.chosen.rounds
    rates = [accepted / rounds.num_rounds for accepted in rounds.accepted_by_position[: policy.tokens]]
    return tuple(rates + [0.0] * (policy.tokens - len(rates)))


def _by_batch(plan: Plan, exit_layer: int) -> tuple[BatchRange, ...]:
    """The plan's schedule at the context nearest to the middle of its texts; empty if it has one length for all batches.

    From the first batch at which another exit would be faster, the last length of this one goes on.
    """
    if not plan.batch_schedules:
        return ()
    middle = plan.workload.prompt_tokens + plan.workload.output_tokens // 2
    schedule = min(plan.batch_schedules, key=lambda schedule: abs(schedule.context_tokens - middle))
    points = _points_with_exit(schedule, exit_layer)
    ends = [point.batch for point in points[1:]] + [schedule.stops_at_batch or schedule.max_batch + 1]
    lengths = [(end - 1, point.draft_tokens) for point, end in zip(points, ends, strict=False)]
    if points and schedule.stops_at_batch is not None:
        lengths.append((max(schedule.stops_at_batch, schedule.max_batch), 0))
    ranges: list[BatchRange] = []
    for last, draft_tokens in lengths:
        if ranges and ranges[-1].draft_tokens == draft_tokens:
            ranges[-1] = replace(ranges[-1], last=last)
        else:
            first = ranges[-1].last + 1 if ranges else 1
            ranges.append(BatchRange(first=first, last=last, draft_tokens=draft_tokens))
    return tuple(ranges) if len(ranges) > 1 else ()


def _points_with_exit(schedule: BatchSchedule, exit_layer: int) -> list[BatchPoint]:
    """The points from batch 1 on that use the exit; those with another one end the list."""
    points: list[BatchPoint] = []
    for point in schedule.points:
        if point.draft_tokens and point.exit_layer == exit_layer:
            points.append(point)
        else:
            break
    return points if points and points[0].batch == 1 else []
