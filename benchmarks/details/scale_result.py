"""Results of at_scale.py: predicted and measured arms of one pair, and readings of the device."""

from collections.abc import Sequence
from dataclasses import dataclass

from calibrate.inputs.acceptance import Acceptance
from perfmodel.acceptance.trace import Trace
from perfmodel.core.console import table
from perfmodel.core.units import (
    format_bytes_per_s,
    format_frac,
    format_interval,
    format_number,
    format_seconds,
    format_signed_frac,
    format_speedup,
)
from perfmodel.passes.kernels import KernelTrial
from perfmodel.replay.estimate import Speedup
from perfmodel.replay.round_stats import sum_rounds
from profiler.latency.pass_log import PassLog
from s2d.decoding.pair import ModelPair
from shared.device_readings import Bandwidth, ExitCheck
from shared.scripted import PLAIN, ScriptedArm

PLAN, PAPER, AHEAD, SINGLE = "plan", "published thresholds", "published, running ahead", "best single exit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleResult:
    """The measurements of a pair."""

    pair: ModelPair
    acceptance: Acceptance
    stands_in: bool
    """Whether the trace is of another target or draft."""
    is_whole: bool
    """Whether the target was built at full size."""
    trace: Trace
    """The acceptance, in the decoded lengths."""
    log: PassLog
    """Pass times; empty if only plain decoding was measured."""
    kernel_trials: tuple[KernelTrial, ...]
    """The trials behind the choice of kernels; empty if the kernels were given."""
    arms: Sequence[ScriptedArm]
    measured: dict[str, Speedup]
    predicted: dict[str, Speedup]
    """Without arms that need an unprofiled pass."""
    by_datasheet: dict[str, Speedup]
    """Predictions from the datasheet; empty for a device in no table."""
    bandwidth: Bandwidth
    exit_check: ExitCheck

    @property
    def noise_frac(self) -> float:
        """Plain decoding, forward over reverse runs, minus one."""
        forwards, backwards = (sum(run.decode_s for runs in self.arms[0].runs for run in runs[turn::2]) for turn in (0, 1))
        return abs(forwards / backwards - 1)

    @property
    def as_json(self) -> dict[str, object]:
        """The figures; an arm that was not measured is None."""
        target = self.pair.target.geometry
        ratios = {name: speed.speedup for name, speed in self.measured.items()}
        plan, errors = ratios.get(PLAN), self.errors_frac()
        return {
            "target": target.name,
            "num_layers": target.num_layers,
            "is_whole": self.is_whole,
            "draft": self.pair.geometry.model.name,
            "acceptance_of": self.acceptance.trace.header.target.name,
            "acceptance_stands_in": self.stands_in,
            "device": self.pair.device_key.device,
            "dtype": self.pair.device_key.dtype,
            "kernels": self.pair.target.decoder.kernels.label,
            "plain_tokens_per_s": self.measured[PLAIN].tokens_per_s,
            "plan_tokens_per_s": self.measured[PLAN].tokens_per_s if plan else None,
            "plan_over_plain": plan.value if plan else None,
            "plan_over_plain_low": plan.low if plan else None,
            "plan_over_plain_high": plan.high if plan else None,
            "plan_over_paper_thresholds": plan.value / ratios[PAPER].value if plan and PAPER in ratios else None,
            "running_ahead_over_waiting": ratios[AHEAD].value / ratios[PAPER].value if {AHEAD, PAPER} <= set(ratios) else None,
            "plan_over_best_single_exit": plan.value / ratios[SINGLE].value if plan and SINGLE in ratios else None,
            "worst_abs_error_frac": max(map(abs, errors.values()), default=None),
            "plain_read_bytes_per_token": self.bandwidth.bytes_per_token,
            "plain_bytes_per_s": self.bandwidth.bytes_per_s,
            "datasheet_bandwidth_frac": self.bandwidth.datasheet_frac,
            "exit_check_s": self.exit_check.check_s,
            "exit_check_reading_s": self.exit_check.reading_s,
            "noise_frac": self.noise_frac,
        }

    def errors_frac(self) -> dict[str, float]:
        """Predicted over measured speedup, minus one, by arm."""
        return {
            name: predicted.speedup.value / self.measured[name].speedup.value - 1
            for name, predicted in self.predicted.items()
            if name != PLAIN
        }

    def details(self) -> list[dict[str, object]]:
        """A record per arm."""
        return [
            {
                "arm": arm.name,
                "policy": arm.policy.label if arm.policy else None,
                "tokens_per_round": sum_rounds(run.rounds for run in arm.all_runs).tokens_per_round,
                "measured": _speed_json(self.measured[arm.name]),
                "predicted": _speed_json(self.predicted.get(arm.name)),
                "by_datasheet": _speed_json(self.by_datasheet.get(arm.name)),
            }
            for arm in self.arms
        ]


def _speed_json(speed: Speedup | None) -> dict[str, float] | None:
    if speed is None:
        return None
    ratio = speed.speedup
    return {"tokens_per_s": speed.tokens_per_s, "speedup": ratio.value, "low": ratio.low, "high": ratio.high}


def arms_table(result: ScaleResult) -> str:
    """A row per arm."""
    rows = []
    errors = result.errors_frac()
    for arm in result.arms:
        ratio = result.measured[arm.name].speedup
        predicted = result.predicted.get(arm.name)
        rows.append(
            (
                arm.name,
                arm.policy.label if arm.policy else "",
                format_number(result.measured[arm.name].tokens_per_s),
                format_speedup(ratio.value),
                format_interval(ratio.low, ratio.high, format_speedup) if arm.policy else "",
                format_number(predicted.tokens_per_s) if predicted else "",
                format_speedup(predicted.speedup.value) if predicted else "",
                format_signed_frac(errors[arm.name]) if arm.name in errors else "",
                format_number(result.by_datasheet[arm.name].tokens_per_s) if arm.name in result.by_datasheet else "",
            )
        )
    headers = ("arm", "policy", "tokens/s", "ratio", "90 % interval", "predicted", "ratio", "error of ratio", "by datasheet")
    return table(rows, headers=headers, align="llrrrrrrr")


def readings_text(result: ScaleResult) -> str:
    """Bandwidth, exit check, kernels, noise, and the source of the acceptance."""
    bandwidth, check = result.bandwidth, result.exit_check
    share = bandwidth.datasheet_frac
    of_sheet = f", {format_frac(share)} of the datasheet's" if share is not None else " (no datasheet to compare with)"
    stands_in = ", used instead of the target's" if result.stands_in else ""
    return "\n".join(
        [
            f"plain decoding reads {format_bytes_per_s(bandwidth.bytes_per_s)}{of_sheet}",
            f"exit check {format_seconds(check.check_s)}, of which choosing and reading {format_seconds(check.reading_s)}",
            f"kernels {result.pair.target.decoder.kernels.label}",
            f"noise {format_frac(result.noise_frac)}: plain decoding against itself",
            f"acceptance{stands_in}: {result.acceptance.evidence.description}",
        ]
    )
