"""Results of engines.py: one record per held-out configuration, one per setting, the tables, and the summary."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from details.engines.measure import Measured
from details.engines.predict import (
    Predicted,
    RoundsCheck,
    check_rounds,
    cost_ratio,
    engine_counts,
    engine_estimate,
    leviathan_by_mean,
    leviathan_by_rounds,
    predict_setting,
)
from details.engines.texts import TextDifference, drafting_runs
from details.engines.timing import disturbed_frac, half_difference_frac, measured_speedup, plain_noise_frac, run_of
from perfmodel.core.console import table
from perfmodel.core.units import Frac, format_frac, format_signed_frac, format_speedup
from profiler.engines.engine_request import PLAIN, Arm
from shared.common import median, quantile

NEAR_ONE = (0.97, 1.03)
"""Measured speedups between these are too close to 1 to score the decision."""
_SETTING_KEYS = (
    "setting",
    "engine",
    "version",
    "plain_tokens_per_s",
    "plain_noise_frac",
    "disturbed_frac",
    "unpriced",
    "chosen",
    "chosen_predicted",
    "chosen_measured",
    "best",
    "best_measured",
    "default",
    "default_measured",
    "num_texts",
    "regret_frac",
    "plan_over_default",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One held-out configuration, predicted and measured."""

    setting: str
    arm: Arm
    predicted: Predicted
    measured: float
    half_frac: Frac
    """Measured speedup of the first repeat over that of the second, minus one: twice the error of their mean."""
    rounds: float
    """Of the engine, per token."""
    check: RoundsCheck
    leviathan: float | None
    """With accepted over drafted tokens of these very runs as the rate. None with a floor: the formula has a fixed length."""
    leviathan_by_rounds: float | None
    """With the rate that gives the tokens per round of these very runs."""
    engine_estimate: float | None
    """By the engine's own formula and figures of these very runs."""

    @property
    def error_frac(self) -> Frac:
        """Speedup predicted from the trace of the measured prompts, over measured, minus one."""
        return self.predicted.here.speedup.speedup.value / self.measured - 1

    @property
    def planned_error_frac(self) -> Frac:
        """The same from the trace of the calibration prompts, as a plan predicts."""
        return self.predicted.planned.speedup.speedup.value / self.measured - 1

    @property
    def acceptance_error_frac(self) -> Frac:
        """Tokens a round, replayed on the measured prompts over the engine's, minus one."""
        here = self.predicted.here.rounds
        return self.rounds * here.tokens_per_round - 1

    @property
    def latency_error_frac(self) -> Frac:
        """The error on the measured prompts if the rounds are known."""
        return (1 + self.error_frac) / (1 + self.acceptance_error_frac) - 1

    @property
    def rounds_over_trace_frac(self) -> Frac | None:
        """The engine's rounds over those of the trace as recorded in fp32, minus one; None if it reports none."""
        return self.check.rounds / self.check.replayed_rounds - 1 if self.check.num_prompts else None

    @property
    def is_in_interval(self) -> bool:
        """Whether the measurement is in the plan's interval, widened by the scatter of the few measured prompts."""
        planned, here = self.predicted.planned.speedup.speedup, self.predicted.here.speedup.speedup
        below = math.hypot(math.log(planned.value / planned.low), math.log(here.value / here.low))
        above = math.hypot(math.log(planned.high / planned.value), math.log(here.high / here.value))
        return -below <= math.log(self.measured / planned.value) <= above

    @property
    def is_decided_right(self) -> bool | None:
        """Whether predicted and measured speedup are on the same side of 1; None where the measured one is near 1."""
        if NEAR_ONE[0] <= self.measured <= NEAR_ONE[1]:
            return None
        return (self.predicted.planned.speedup.speedup.value > 1) == (self.measured > 1)

    @property
    def as_json(self) -> dict[str, object]:
        """The prediction and the measurement."""
        planned, here = self.predicted.planned.speedup.speedup, self.predicted.here.speedup.speedup
        return {
            "setting": self.setting,
            "configuration": self.arm.label,
            "measured_speedup": self.measured,
            "speedup_noise_frac": abs(self.half_frac) / 2,
            "planned_speedup": planned.value,
            "planned_low": planned.low,
            "planned_high": planned.high,
            "predicted_speedup": here.value,
            "acceptance_error_frac": self.acceptance_error_frac,
            "latency_error_frac": self.latency_error_frac,
            "rounds_over_trace_frac": self.rounds_over_trace_frac,
            "num_prompts_with_replayed_rounds": self.check.num_equal,
            "num_prompts_with_rounds": self.check.num_prompts,
            "leviathan_speedup": self.leviathan,
            "leviathan_by_rounds_speedup": self.leviathan_by_rounds,
            "engine_estimate": self.engine_estimate,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingResult:
    """One engine with one storage of the weights."""

    setting: str
    engine: str
    version: str
    plain_tokens_per_s: float
    plain_noise_frac: Frac
    disturbed_frac: Frac
    outcomes: tuple[Outcome, ...]
    unpriced: dict[str, str]
    """Reasons by configuration without a prediction."""
    chosen: str
    chosen_predicted: float
    chosen_measured: float
    best: str
    best_measured: float
    default: str | None
    default_measured: float | None
    num_texts: int
    """Speculative texts compared with plain ones: configurations x prompts."""
    differences: tuple[TextDifference, ...]

    @property
    def regret_frac(self) -> Frac:
        """What the plan loses against the best measured configuration."""
        return 1 - self.chosen_measured / self.best_measured

    @property
    def plan_over_default(self) -> float | None:
        """Measured speed of the plan over that of the engine's default settings with the same draft."""
        return None if self.default_measured is None else self.chosen_measured / self.default_measured

    @property
    def num_unexcused(self) -> int:
        """Texts that the engine's own plain decoding does not explain."""
        return sum(not difference.is_excused for difference in self.differences)

    @property
    def as_json(self) -> dict[str, object]:
        """The setting and what was decided in it."""
        kept = {name: getattr(self, name) for name in _SETTING_KEYS}
        errors = [abs(outcome.error_frac) for outcome in self.outcomes]
        texts = [
            {"configuration": found.arm, "prompt": found.prompt, "position": found.position, "is_excused": found.is_excused}
            for found in self.differences
        ]
        return kept | {"median_abs_error_frac": median(errors) if errors else None, "text_differences": texts}


def setting_result(measured: Measured, differences: Sequence[TextDifference]) -> SettingResult:
    """Score one setting."""
    evaluation, label = measured.evaluation, measured.setting.label
    plain = evaluation.plain
    predictions = predict_setting(measured)
    decision = measured.decision
    speedups = {Arm.of(run): measured_speedup(decision.plain, run) for run in decision.runs} | {PLAIN: 1.0}
    speedups = {arm: value for arm, value in speedups.items() if arm in (measured.decision_request.configurations or ())}
    candidates = {arm: value for arm, value in speedups.items() if arm != measured.default or arm in measured.held_out}
    best = max(candidates, key=candidates.__getitem__)
    default = measured.default
    return SettingResult(
        setting=label,
        engine=measured.engine.name,
        version=evaluation.setting.version,
        plain_tokens_per_s=plain.decode_tokens / plain.decode_s,
        plain_noise_frac=plain_noise_frac(plain),
        disturbed_frac=disturbed_frac(evaluation),
        outcomes=tuple(
            _outcome(measured, arm, predicted) for arm, predicted in predictions.items() if isinstance(predicted, Predicted)
        ),
        unpriced={arm.label: reason for arm, reason in predictions.items() if isinstance(reason, str)},
        chosen=measured.chosen.label,
        chosen_predicted=measured.plan.chosen.speedup.speedup.value,
        chosen_measured=speedups[measured.chosen],
        best=best.label,
        best_measured=speedups[best],
        default=None if default is None else default.label,
        default_measured=None if default is None else speedups[default],
        num_texts=len(drafting_runs(measured)) * len({call.prompt for call in plain.calls}),
        differences=tuple(differences),
    )


def _outcome(measured: Measured, arm: Arm, predicted: Predicted) -> Outcome:
    plain, run = measured.evaluation.plain, run_of(measured.evaluation, arm)
    counts = engine_counts(run, predicted)
    assert arm.exit_layer is not None
    ratio = cost_ratio(measured.profile, arm.exit_layer)
    return Outcome(
        setting=measured.setting.label,
        arm=arm,
        predicted=predicted,
        measured=measured_speedup(plain, run),
        half_frac=half_difference_frac(plain, run),
        rounds=counts.rounds,
        check=check_rounds(measured, run),
        leviathan=None if arm.floor is not None else leviathan_by_mean(arm, counts, ratio),
        leviathan_by_rounds=None if arm.floor is not None else leviathan_by_rounds(arm, counts, ratio),
        engine_estimate=engine_estimate(plain, run),
    )


def outcome_table(results: Sequence[SettingResult]) -> str:
    """A row per held-out configuration."""
    rows = [
        (
            outcome.setting,
            outcome.arm.label,
            format_speedup(outcome.predicted.here.speedup.speedup.value),
            format_speedup(outcome.measured),
            format_signed_frac(outcome.error_frac),
            format_signed_frac(outcome.planned_error_frac),
            format_signed_frac(outcome.acceptance_error_frac),
            format_signed_frac(outcome.latency_error_frac),
            _error_text(outcome.leviathan, outcome),
            _error_text(outcome.engine_estimate, outcome),
        )
        for result in results
        for outcome in result.outcomes
    ]
    headers = ("engine", "configuration", "predicted", "measured", "error", "as planned", "acceptance", "latency")
    return table(rows, headers=(*headers, "Leviathan", "engine's own"), align="llrrrrrrrr")


def setting_table(results: Sequence[SettingResult]) -> str:
    """A row per engine and weights: the plan, the best measured and the default."""
    rows = [
        (
            result.setting,
            f"{result.plain_tokens_per_s:,.0f}",
            format_frac(abs(result.plain_noise_frac)),
            result.chosen,
            format_speedup(result.chosen_predicted),
            format_speedup(result.chosen_measured),
            f"{format_speedup(result.best_measured)} ({result.best})",
            "-" if result.plan_over_default is None else format_speedup(result.plan_over_default),
            f"{len(result.differences)} ({result.num_unexcused})",
        )
        for result in results
    ]
    headers = ("engine", "plain tokens/s", "noise", "plan", "predicted", "measured", "best measured", "over default")
    return table(rows, headers=(*headers, "other texts (unexplained)"), align="lrrlrrlrr")


def result_of(results: Sequence[SettingResult]) -> dict[str, object]:
    """The summary over all settings. Keys without a measurement are None."""
    outcomes = [outcome for result in results for outcome in result.outcomes]
    decisions = [outcome.is_decided_right for outcome in outcomes if outcome.is_decided_right is not None]
    over_default = [result.plan_over_default for result in results if result.plan_over_default is not None]
    estimated = [outcome for outcome in outcomes if outcome.engine_estimate is not None]
    differences = [difference for result in results for difference in result.differences]
    return {
        "num_engines": len({result.engine for result in results}),
        "num_settings": len(results),
        "num_configs": len(outcomes),
        "num_unpriced": sum(len(result.unpriced) for result in results),
        **_errors("", [outcome.error_frac for outcome in outcomes]),
        **_errors("planned_", [outcome.planned_error_frac for outcome in outcomes]),
        "acceptance_error_frac": _median_abs(outcome.acceptance_error_frac for outcome in outcomes),
        "latency_error_frac": _median_abs(outcome.latency_error_frac for outcome in outcomes),
        "rounds_over_trace_frac": _median_abs(
            outcome.rounds_over_trace_frac for outcome in outcomes if outcome.rounds_over_trace_frac is not None
        ),
        "replayed_rounds_equal_frac": _share(
            sum(outcome.check.num_equal for outcome in outcomes), sum(outcome.check.num_prompts for outcome in outcomes)
        ),
        "decision_accuracy_frac": _share(sum(decisions), len(decisions)),
        "num_decisions": len(decisions),
        "regret_frac": _mean(result.regret_frac for result in results),
        "worst_regret_frac": max((result.regret_frac for result in results), default=None),
        "leviathan_median_abs_error_frac": _estimate_error([(outcome.leviathan, outcome) for outcome in outcomes]),
        "leviathan_by_rounds_median_abs_error_frac": _estimate_error(
            [(outcome.leviathan_by_rounds, outcome) for outcome in outcomes]
        ),
        "engine_estimate_median_abs_error_frac": _estimate_error([(outcome.engine_estimate, outcome) for outcome in estimated]),
        "beside_engine_estimate_median_abs_error_frac": _median_abs(outcome.error_frac for outcome in estimated),
        "plan_over_default": math.exp(math.fsum(map(math.log, over_default)) / len(over_default)) if over_default else None,
        "plan_over_default_min": min(over_default, default=None),
        "num_texts": sum(result.num_texts for result in results),
        "num_text_differences": len(differences),
        "num_unexcused_text_differences": sum(not difference.is_excused for difference in differences),
        "interval_coverage_frac": _mean(float(outcome.is_in_interval) for outcome in outcomes),
        "noise_frac": _median_abs(result.plain_noise_frac for result in results),
        "speedup_noise_frac": _median_abs(outcome.half_frac / 2 for outcome in outcomes),
        "disturbed_frac": _mean(result.disturbed_frac for result in results),
    }


def _errors(prefix: str, errors: Sequence[Frac]) -> dict[str, object]:
    return {
        f"{prefix}median_abs_error_frac": _median_abs(errors),
        f"{prefix}p95_abs_error_frac": quantile(map(abs, errors), 0.95) if errors else None,
        f"{prefix}worst_abs_error_frac": max(map(abs, errors), default=None),
        f"{prefix}mean_error_frac": _mean(errors),
    }


def _estimate_error(estimates: Iterable[tuple[float | None, Outcome]]) -> Frac | None:
    return _median_abs(value / outcome.measured - 1 for value, outcome in estimates if value is not None)


def _error_text(estimate: float | None, outcome: Outcome) -> str:
    return "-" if estimate is None else format_signed_frac(estimate / outcome.measured - 1)


def _median_abs(values: Iterable[float]) -> float | None:
    known = list(map(abs, values))
    return median(known) if known else None


def _share(number: int, total: int) -> Frac | None:
    return number / total if total else None


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return math.fsum(known) / len(known) if known else None
