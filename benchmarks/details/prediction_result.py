"""One configuration, predicted and measured: what prediction.py asks of each, and what it says of all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calibrate.planning.candidates import rounds_by_document
from perfmodel.acceptance.off_path_trace import OffPath
from perfmodel.acceptance.trace import Trace
from perfmodel.core.console import table
from perfmodel.core.units import Seconds, format_signed_frac, format_speedup
from perfmodel.passes.passes import PassKind
from perfmodel.policies.policy import Policy
from perfmodel.replay.estimate import Speedup, estimate, pass_seconds
from perfmodel.replay.replay import block_lengths, replay, replay_prompts
from perfmodel.replay.round_stats import RoundStats
from shared.common import median, quantile
from shared.interleaved import Arm, Models, arm_speedup


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One configuration, predicted and measured."""

    pair: str
    policy: Policy
    predicted: Speedup
    told_off_path: Speedup | None
    """The same from a trace that tells what is said off the path too; None where too little was recorded of that."""
    planned: Speedup
    """From the calibration prompts' trace: what a plan would have said."""
    measured: float
    from_measured_rounds: float
    """The speedup priced from the passes that really ran."""
    acceptance_error_frac: float
    num_other_blocks: int
    """Prompts of which a block accepted another number of tokens than replayed."""
    noise_frac: float
    """Plain decoding, first over second visit, less one."""
    plain_change_frac: float
    """Plain seconds when measured over those of the profile, less one: how much the machine itself changed."""
    kind_errors_frac: dict[PassKind, float]
    """Predicted over measured seconds of the passes that ran, less one; relative to those of plain decoding."""
    half_frac: float
    """Measured speedup of the first over that of the second visits, less one: twice the error of their mean."""

    @property
    def error_frac(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted.speedup.value / self.measured - 1

    @property
    def latency_error_frac(self) -> float:
        """The same, acceptance known."""
        return self.from_measured_rounds / self.measured - 1

    @property
    def off_path_error_frac(self) -> float:
        """What is lost by replaying the text's own confidences where a draft went on after its first mistake."""
        return self.predicted.speedup.value / self.from_measured_rounds - 1

    @property
    def told_off_path_error_frac(self) -> float | None:
        """The same where a second trace tells what is said there."""
        return self.told_off_path.speedup.value / self.from_measured_rounds - 1 if self.told_off_path else None

    @property
    def is_predicted_right(self) -> bool:
        """Whether the measured speedup lies in the interval predicted for the very prompts it is over."""
        return self.predicted.speedup.low <= self.measured <= self.predicted.speedup.high

    @property
    def is_planned_right(self) -> bool:
        """Whether the measured speedup lies in the plan's interval, widened by the scatter of the few prompts it is over."""
        planned, here = self.planned.speedup, self.predicted.speedup
        below = math.hypot(math.log(planned.value / planned.low), math.log(here.value / here.low))
        above = math.hypot(math.log(planned.high / planned.value), math.log(here.high / here.value))
        return -below <= math.log(self.measured / planned.value) <= above

    @property
    def as_json(self) -> dict[str, object]:
        """What was said and what was found."""
        said = self.predicted.speedup
        return {
            "pair": self.pair,
            "policy": self.policy.label,
            "predicted_speedup": said.value,
            "predicted_low": said.low,
            "predicted_high": said.high,
            "planned_speedup": self.planned.speedup.value,
            "measured_speedup": self.measured,
            "speedup_noise_frac": abs(self.half_frac) / 2,
            "latency_error_frac": self.latency_error_frac,
            "off_path_error_frac": self.off_path_error_frac,
            "told_off_path_error_frac": self.told_off_path_error_frac,
            "acceptance_error_frac": self.acceptance_error_frac,
            "kind_errors_frac": dict(self.kind_errors_frac),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpriced:
    """A configuration that needs a pass nobody profiled."""

    pair: str
    policy: Policy
    was_measured: bool
    """Whether only the measurement, or the evaluated prompts' trace, showed it; else it was passed over."""
    reason: str

    @property
    def as_json(self) -> dict[str, object]:
        """What could not be priced, and why."""
        return {"pair": self.pair, "policy": self.policy.label, "was_measured": self.was_measured, "reason": self.reason}


def outcome(pair: str, policy: Policy, arms: tuple[Arm, Arm], traces: tuple[Trace, Trace], models: Models) -> Outcome:
    """Compare one configuration's measurement with its prediction.

    Args:
        pair: its name.
        policy: the configuration.
        arms: plain and speculative, as measured on the evaluation prompts.
        traces: of the calibration and of the evaluation prompts, of these with what is said off the path.
        models: seconds of the draft and of the target, from the calibration prompts.

    Raises:
        OutOfDomain: a pass that ran, or that a replay needs, was not profiled.
    """
    plain, speculative = arms
    seen = rounds_by_document(traces[0], [policy, None])
    planned = estimate(*models, seen[policy], seen[None])
    on_path = replace(traces[1], off_path=OffPath.empty(traces[1].confidence.shape[1]))
    predicted, told_off_path = (
        estimate(*models, *(replay_prompts(trace, one) for one in (policy, None))) for trace in (on_path, traces[1])
    )
    replayed = replay(on_path, policy)
    ran, ran_plain = speculative.all_rounds, plain.all_rounds
    expected = block_lengths(on_path, policy)
    return Outcome(
        pair=pair,
        policy=policy,
        predicted=predicted,
        told_off_path=told_off_path if traces[1].off_path.is_enough else None,
        planned=planned,
        measured=arm_speedup(plain, speculative),
        from_measured_rounds=ran.num_tokens / priced_s(ran, models) / (ran_plain.num_tokens / priced_s(ran_plain, models)),
        acceptance_error_frac=replayed.tokens_per_round / ran.tokens_per_round - 1,
        num_other_blocks=sum(_accepted(blocks) != _accepted(expected[i]) for i, blocks in speculative.blocks.items()),
        noise_frac=plain.visits_s[0] / plain.visits_s[1] - 1,
        plain_change_frac=_plain_change_frac(plain, models),
        kind_errors_frac=_kind_errors_frac(speculative, models, _plain_change_frac(plain, models)),
        half_frac=arm_speedup(plain, speculative, [0]) / arm_speedup(plain, speculative, [1]) - 1,
    )


def _accepted(blocks: Sequence[tuple[int, int]]) -> list[int]:
    """Accepted tokens block by block: exact, while what was drafted after a mismatch may differ."""
    return [accepted for _, accepted in blocks]


def _plain_change_frac(plain: Arm, models: Models) -> float:
    return sum(plain.visits_s) / plain.num_runs * len(plain.rounds) / priced_s(plain.all_rounds, models) - 1


def _kind_errors_frac(arm: Arm, models: Models, plain_change_frac: float) -> dict[PassKind, float]:
    """By kind, how the passes that ran were priced, the machine's own change since the profile divided out."""
    repeats = arm.num_runs / len(arm.rounds)
    priced = pass_seconds(*models, arm.all_rounds)
    return {kind: seconds * repeats / arm.kinds_s[kind] * (1 + plain_change_frac) - 1 for kind, seconds in priced.items()}


def priced_s(rounds: RoundStats, models: Models) -> Seconds:
    """Seconds of some rounds by the pass times."""
    return math.fsum(pass_seconds(*models, rounds).values())


def outcome_table(outcomes: Sequence[Outcome], unpriced: Sequence[Unpriced]) -> str:
    """A line per configuration, and one on those that have no prediction."""
    rows = [
        (
            one.pair,
            one.policy.label,
            format_speedup(one.predicted.speedup.value),
            format_speedup(one.measured),
            format_signed_frac(one.error_frac),
            format_signed_frac(one.acceptance_error_frac),
            format_signed_frac(one.latency_error_frac),
            format_signed_frac(one.noise_frac),
        )
        for one in outcomes
    ]
    headers = ("pair", "configuration", "predicted", "measured", "error", "acceptance", "latency", "noise")
    measured = sum(one.was_measured for one in unpriced)
    last = f"{len(unpriced)} configurations need a pass nobody profiled: {len(unpriced) - measured} passed over, {measured}"
    return f"{table(rows, headers=headers, align='llrrrrrr')}\n\n{last} measured and not scored"


def result_of(outcomes: Sequence[Outcome], unpriced: Sequence[Unpriced]) -> dict[str, object]:
    """The figures of DESIGN §9, and what explains them."""
    errors = [abs(one.error_frac) for one in outcomes]
    told = [abs(one.told_off_path_error_frac) for one in outcomes if one.told_off_path_error_frac is not None]
    return {
        "num_configs": len(outcomes),
        "num_unpriced": len(unpriced),
        "num_unpriced_after_measuring": sum(one.was_measured for one in unpriced),
        "median_abs_error_frac": median(errors),
        "p95_abs_error_frac": quantile(errors, 0.95),
        "worst_abs_error_frac": max(errors),
        "mean_error_frac": math.fsum(one.error_frac for one in outcomes) / len(outcomes),
        "acceptance_error_frac": max(abs(one.acceptance_error_frac) for one in outcomes),
        "num_prompts_with_other_blocks": sum(one.num_other_blocks for one in outcomes),
        "latency_error_frac": median(abs(one.latency_error_frac) for one in outcomes),
        "off_path_error_frac": median(abs(one.off_path_error_frac) for one in outcomes),
        "worst_off_path_error_frac": max(abs(one.off_path_error_frac) for one in outcomes),
        "num_told_off_path": len(told),
        "told_off_path_error_frac": median(told) if told else None,
        "worst_told_off_path_error_frac": max(told, default=None),
        "interval_coverage_frac": sum(one.is_predicted_right for one in outcomes) / len(outcomes),
        "planned_interval_coverage_frac": sum(one.is_planned_right for one in outcomes) / len(outcomes),
        "kind_errors_frac": _mean_kind_errors(outcomes),
        "plain_change_frac": median(abs(one.plain_change_frac) for one in outcomes),
        "noise_frac": median(abs(one.noise_frac) for one in outcomes),
        "speedup_noise_frac": median(abs(one.half_frac) / 2 for one in outcomes),
    }


def _mean_kind_errors(outcomes: Sequence[Outcome]) -> dict[PassKind, float]:
    kinds = dict.fromkeys(kind for one in outcomes for kind in one.kind_errors_frac)
    return {
        kind: math.fsum(found) / len(found)
        for kind in kinds
        for found in [[one.kind_errors_frac[kind] for one in outcomes if kind in one.kind_errors_frac]]
    }
