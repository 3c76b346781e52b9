"""Results of prediction.py: one record per configuration, a table, and the summary."""

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
    predicted_with_off_path: Speedup | None
    """The prediction from a trace with off-path confidences; None if too few were recorded."""
    planned: Speedup
    """Predicted from the trace of the calibration prompts, like a plan."""
    measured: float
    from_measured_rounds: float
    """The speedup priced from the passes that ran."""
    acceptance_error_frac: float
    num_other_blocks: int
    """Prompts with a block that accepted a different number of tokens than its replay."""
    noise_frac: float
    """Plain decoding, first over second visit, minus one."""
    plain_change_frac: float
    """Measured plain seconds over those of the profile, minus one: the change of the machine."""
    kind_errors_frac: dict[PassKind, float]
    """Predicted over measured seconds of the passes that ran, minus one; relative to those of plain decoding."""
    half_frac: float
    """Measured speedup of the first over that of the second visits, minus one: twice the error of their mean."""

    @property
    def error_frac(self) -> float:
        """Predicted over measured speedup, minus one."""
        return self.predicted.speedup.value / self.measured - 1

    @property
    def latency_error_frac(self) -> float:
        """The error if the rounds are known."""
        return self.from_measured_rounds / self.measured - 1

    @property
    def off_path_error_frac(self) -> float:
        """The error from replaying the text's own confidences after the first mistake of a block."""
        return self.predicted.speedup.value / self.from_measured_rounds - 1

    @property
    def told_off_path_error_frac(self) -> float | None:
        """The same error with recorded off-path confidences."""
        return (
            self.predicted_with_off_path.speedup.value / self.from_measured_rounds - 1 if self.predicted_with_off_path else None
        )

    @property
    def is_predicted_right(self) -> bool:
        """Whether the measured speedup lies in the interval predicted for the same prompts."""
        return self.predicted.speedup.low <= self.measured <= self.predicted.speedup.high

    @property
    def is_planned_right(self) -> bool:
        """Whether the measured speedup lies in the plan's interval, widened by the scatter of the few measured prompts."""
        planned, here = self.planned.speedup, self.predicted.speedup
        below = math.hypot(math.log(planned.value / planned.low), math.log(here.value / here.low))
        above = math.hypot(math.log(planned.high / planned.value), math.log(here.high / here.value))
        return -below <= math.log(self.measured / planned.value) <= above

    @property
    def as_json(self) -> dict[str, object]:
        """The prediction and the measurement."""
        predicted = self.predicted.speedup
        return {
            "pair": self.pair,
            "policy": self.policy.label,
            "predicted_speedup": predicted.value,
            "predicted_low": predicted.low,
            "predicted_high": predicted.high,
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
    """A configuration that needs a pass that was not profiled."""

    pair: str
    policy: Policy
    was_measured: bool
    """Whether only the measurement or the trace of the evaluation prompts showed it; otherwise it was skipped."""
    reason: str

    @property
    def as_json(self) -> dict[str, object]:
        """The configuration and the reason."""
        return {"pair": self.pair, "policy": self.policy.label, "was_measured": self.was_measured, "reason": self.reason}


def outcome(pair: str, policy: Policy, arms: tuple[Arm, Arm], traces: tuple[Trace, Trace], models: Models) -> Outcome:
    """Compare the measurement of one configuration with its prediction.

    Args:
        pair: its name.
        policy: the configuration.
        arms: plain and speculative, measured on the evaluation prompts.
        traces: of the calibration and of the evaluation prompts; the latter has off-path confidences.
        models: latency models of draft and target, from the calibration prompts.

    Raises:
        OutOfDomain: a pass that ran, or that a replay needs, was not profiled.
    """
    plain, speculative = arms
    seen = rounds_by_document(traces[0], [policy, None])
    planned = estimate(*models, seen[policy], seen[None])
    on_path = replace(traces[1], off_path=OffPath.empty(traces[1].confidence.shape[1]))
    predicted, predicted_with_off_path = (
        estimate(*models, *(replay_prompts(trace, arm_policy) for arm_policy in (policy, None)))
        for trace in (on_path, traces[1])
    )
    replayed = replay(on_path, policy)
    ran, ran_plain = speculative.all_rounds, plain.all_rounds
    expected = block_lengths(on_path, policy)
    return Outcome(
        pair=pair,
        policy=policy,
        predicted=predicted,
        predicted_with_off_path=predicted_with_off_path if traces[1].off_path.is_enough else None,
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
    """Accepted tokens by block. Tokens drafted after a mismatch may differ from replay."""
    return [accepted for _, accepted in blocks]


def _plain_change_frac(plain: Arm, models: Models) -> float:
    return sum(plain.visits_s) / plain.num_runs * len(plain.rounds) / priced_s(plain.all_rounds, models) - 1


def _kind_errors_frac(arm: Arm, models: Models, plain_change_frac: float) -> dict[PassKind, float]:
    """Errors of the prices by kind of pass, with the change of the machine since the profile divided out."""
    repeats = arm.num_runs / len(arm.rounds)
    priced = pass_seconds(*models, arm.all_rounds)
    return {kind: seconds * repeats / arm.kinds_s[kind] * (1 + plain_change_frac) - 1 for kind, seconds in priced.items()}


def priced_s(rounds: RoundStats, models: Models) -> Seconds:
    """Seconds of some rounds by the pass times."""
    return math.fsum(pass_seconds(*models, rounds).values())


def outcome_table(outcomes: Sequence[Outcome], unpriced: Sequence[Unpriced]) -> str:
    """A row per configuration, and a line about configurations without a prediction."""
    rows = [
        (
            result.pair,
            result.policy.label,
            format_speedup(result.predicted.speedup.value),
            format_speedup(result.measured),
            format_signed_frac(result.error_frac),
            format_signed_frac(result.acceptance_error_frac),
            format_signed_frac(result.latency_error_frac),
            format_signed_frac(result.noise_frac),
        )
        for result in outcomes
    ]
    headers = ("pair", "configuration", "predicted", "measured", "error", "acceptance", "latency", "noise")
    measured = sum(result.was_measured for result in unpriced)
    last = f"{len(unpriced)} configurations need an unprofiled pass: {len(unpriced) - measured} skipped, {measured}"
    return f"{table(rows, headers=headers, align='llrrrrrr')}\n\n{last} measured and not scored"


def result_of(outcomes: Sequence[Outcome], unpriced: Sequence[Unpriced]) -> dict[str, object]:
    """The summary over all configurations."""
    errors = [abs(result.error_frac) for result in outcomes]
    off_path_errors = [
        abs(result.told_off_path_error_frac) for result in outcomes if result.told_off_path_error_frac is not None
    ]
    return {
        "num_configs": len(outcomes),
        "num_unpriced": len(unpriced),
        "num_unpriced_after_measuring": sum(result.was_measured for result in unpriced),
        "median_abs_error_frac": median(errors),
        "p95_abs_error_frac": quantile(errors, 0.95),
        "worst_abs_error_frac": max(errors),
        "mean_error_frac": math.fsum(result.error_frac for result in outcomes) / len(outcomes),
        "acceptance_error_frac": max(abs(result.acceptance_error_frac) for result in outcomes),
        "num_prompts_with_other_blocks": sum(result.num_other_blocks for result in outcomes),
        "latency_error_frac": median(abs(result.latency_error_frac) for result in outcomes),
        "off_path_error_frac": median(abs(result.off_path_error_frac) for result in outcomes),
        "worst_off_path_error_frac": max(abs(result.off_path_error_frac) for result in outcomes),
        "num_told_off_path": len(off_path_errors),
        "told_off_path_error_frac": median(off_path_errors) if off_path_errors else None,
        "worst_told_off_path_error_frac": max(off_path_errors, default=None),
        "interval_coverage_frac": sum(result.is_predicted_right for result in outcomes) / len(outcomes),
        "planned_interval_coverage_frac": sum(result.is_planned_right for result in outcomes) / len(outcomes),
        "kind_errors_frac": _mean_kind_errors(outcomes),
        "plain_change_frac": median(abs(result.plain_change_frac) for result in outcomes),
        "noise_frac": median(abs(result.noise_frac) for result in outcomes),
        "speedup_noise_frac": median(abs(result.half_frac) / 2 for result in outcomes),
    }


def _mean_kind_errors(outcomes: Sequence[Outcome]) -> dict[PassKind, float]:
    kinds = dict.fromkeys(kind for result in outcomes for kind in result.kind_errors_frac)
    return {
        kind: math.fsum(errors) / len(errors)
        for kind in kinds
        for errors in [[result.kind_errors_frac[kind] for result in outcomes if kind in result.kind_errors_frac]]
    }
