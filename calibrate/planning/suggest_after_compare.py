"""Suggest the step after a comparison: nothing, or what to measure again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calibrate.planning.suggest_after_engine_plan import profile_engine_command
from calibrate.planning.suggest_after_plan import (
    DEFAULT_PLAN_PATH,
    DEFAULT_PROFILE_FOLDER,
    draft_argument,
    profile_command,
    run_plan_command,
)
from perfmodel.core.cpu_contention import BUSY_FRAC
from perfmodel.core.files import Stored
from perfmodel.core.stats import Interval
from perfmodel.core.units import Frac, Tokens, format_frac, format_signed_frac
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.results.plan import Plan
from perfmodel.results.report import RunReport
from perfmodel.results.residuals import PassResidual, Residuals

GOOD_ERROR_FRAC: Frac = 0.02
"""The accuracy that this project aims at. Smaller errors need no new measurement, however narrow the intervals."""
DEFAULT_REPORT_PATH = Path("report.json")
"""Where a report is written if no path was given."""

_PROMPT_FLAGS = (
    "--prompts",
    "--prompt-format",
    "--prompt-column",
    "--special-tokens",
    "--split",
    "--num-prompts",
    "--max-new-tokens",
)
_PROFILE_FLAGS = (*_PROMPT_FLAGS, "--draft-cap", "--budget", "--off-path", "--kernels")
_RUN_FLAGS = (*_PROMPT_FLAGS, "--stop")
"""Flags of `s2d-profile` and `s2d-run` that a plan does not hold. A second measurement repeats them."""
_SWITCHES = ("--chat", "--adapt")
"""The same without a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedFiles:
    """Files of a comparison, for the commands that it suggests."""

    plan: Path = DEFAULT_PLAN_PATH
    report: Path = DEFAULT_REPORT_PATH
    profiles: Mapping[Path, Stored[LatencyProfile]] = field(default_factory=dict)
    """Those that the plan was made with; empty if they were not given."""
    run_command: str = ""
    """The command that made the report, from its provenance; empty if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Error of a predicted speedup: its two parts as fractions of the measured speedup, and both intervals."""

    acceptance_frac: Frac
    latency_frac: Frac
    passes: tuple[PassResidual, ...]
    predicted: Interval
    measured: Interval

    @property
    def larger_frac(self) -> Frac:
        """Absolute value of the larger part."""
        return max(abs(self.acceptance_frac), abs(self.latency_frac))

    @property
    def is_in_interval(self) -> bool:
        """Whether the measured speedup lies in the predicted interval."""
        return self.predicted.low <= self.measured.value <= self.predicted.high


def next_step(errors: Errors, plan: Plan, report: RunReport, files: ComparedFiles) -> str:
    """What to measure again and the command for it; nothing if the errors are small or the intervals explain them."""
    if errors.larger_frac <= GOOD_ERROR_FRAC:
        return f"nothing: both errors are within {format_frac(GOOD_ERROR_FRAC)}"
    explained = explained_frac(errors.predicted, errors.measured)
    if errors.is_in_interval and errors.larger_frac <= explained:
        return f"nothing: both errors are within {format_frac(explained)}, which the intervals of plan and run explain"
    if abs(errors.acceptance_frac) >= abs(errors.latency_frac):
        return f"most of the error is in the acceptance: {_record_acceptance_again(plan, report.max_new_tokens, files)}"
    return _repeat_on_quiet_machine(plan, report, files) or _measure_latency_again(errors, plan, files)


def next_engine_step(residuals: Residuals, plan: Plan) -> str:
    """What to measure again after a run in an engine; nothing if the errors are small or the intervals explain them."""
    acceptance = abs(residuals.acceptance_error_frac)
    latency = None if residuals.latency_error_frac is None else abs(residuals.latency_error_frac)
    larger = max(acceptance, latency or 0.0)
    if larger <= GOOD_ERROR_FRAC:
        known = "the error of the acceptance is" if latency is None else "both errors are"
        return f"nothing: {known} within {format_frac(GOOD_ERROR_FRAC)}"
    if latency is not None and latency > acceptance and residuals.engine not in (None, plan.engine):
        return f"most of the error is in the seconds, which are of another engine. Plan again with --engine {residuals.engine}"
    predicted = plan.chosen.speedup.speedup
    value = residuals.measured_speedup or residuals.repriced_speedup
    explained = explained_frac(predicted, residuals.measured_interval or Interval(value=value, low=value, high=value))
    if predicted.low <= value <= predicted.high and larger <= explained:
        which = (
            "the interval of the plan explains"
            if residuals.measured_interval is None
            else "the intervals of plan and run explain"
        )
        known = "the error is" if latency is None else "both errors are"
        return f"nothing: {known} within {format_frac(explained)}, which {which}"
    if latency is None or acceptance >= latency:
        command = profile_command(plan, latency=False, acceptance=True)
        return f"most of the error is in the acceptance: record it on prompts like those that were served: {command}"
    worst = worst_pass(residuals.passes)
    kind = "" if worst is None else f", mostly in {worst.arm} {worst.kind} passes ({format_signed_frac(worst.error_frac)})"
    again = f"most of the error is in the seconds{kind}: profile the engine again with the options it was served with"
    return again if plan.engine == "s2d" else f"{again}: {profile_engine_command(plan, draft_argument(plan.draft))}"


def explained_frac(predicted: Interval, measured: Interval) -> Frac:
    """The error of a speedup that the two intervals explain: their half-widths added in quadrature, as a fraction.

    The two errors are independent. The fraction is of the measured speedup.
    """
    return math.hypot(predicted.high - predicted.low, measured.high - measured.low) / 2 / measured.value


def worst_pass(passes: Sequence[PassResidual]) -> PassResidual | None:
    """The kind of pass with the largest error in seconds, as a share of its arm's seconds."""
    arm_s = {arm: math.fsum(part.measured_s for part in passes if part.arm == arm) for arm in ("plan", "plain")}
    return max(passes, key=lambda part: abs(part.predicted_s - part.measured_s) / arm_s[part.arm], default=None)


def _repeat_on_quiet_machine(plan: Plan, report: RunReport, files: ComparedFiles) -> str | None:
    """How to repeat the measurement that other programs disturbed most; None if none was disturbed."""
    waited = [stored.record.waited_frac for stored in files.profiles.values()]
    profile_frac = max((frac for frac in waited if frac is not None), default=0.0)
    run_frac = report.waited_frac or 0.0
    if max(profile_frac, run_frac) < BUSY_FRAC:
        return None
    if profile_frac >= run_frac:
        subject, command = "profile", _profile_latency_command(plan, files)
    else:
        more = _words(_parse_flags(files.run_command, _RUN_FLAGS))
        subject, command = "run", run_plan_command(plan, files.plan, files.report, more=more)
    share = format_frac(max(profile_frac, run_frac))
    return f"{subject} again on a quiet machine, as {share} of the {subject}'s processor time went to other programs: {command}"


def _measure_latency_again(errors: Errors, plan: Plan, files: ComparedFiles) -> str:
    worst = worst_pass(errors.passes)
    kind = "" if worst is None else f", mostly in {worst.arm} {worst.kind} passes ({format_signed_frac(worst.error_frac)})"
    is_measured = any(part.level == "measured" for part in plan.evidence)
    unknown = " (give --profile to see whether the profile was disturbed)" if is_measured and not files.profiles else ""
    return f"most of the error is in the seconds{kind}{unknown}: {_profile_latency_command(plan, files)}"


def _record_acceptance_again(plan: Plan, run_tokens: Tokens, files: ComparedFiles) -> str:
    """How to get the acceptance of texts as long as those that were run: longer texts repeat themselves more.

    A recorded trace also holds shorter texts; published evidence does not.
    """
    planned_tokens, is_traced = plan.workload.output_tokens, any(part.level == "traced" for part in plan.evidence)
    if run_tokens < planned_tokens and is_traced:
        profiles = [word for path in files.profiles for word in ("--profile", str(path))]
        words = [*profiles, "--trace", str(_trace(files)), "--output-tokens", str(run_tokens), "-o", str(files.plan)]
        return f"plan for texts as long as those that were run: {shlex.join(['s2d-plan', *words])}"
    flags, length = _repeated_flags(files), ""
    if run_tokens != planned_tokens:
        flags["--max-new-tokens"] = str(run_tokens)
        length = f" and as long as those that were run ({run_tokens} tokens)"
    command = profile_command(plan, latency=False, acceptance=True, folder=_folder(files), more=_words(flags))
    return f"record it on prompts like those that were run{length}: {command}"


def _profile_latency_command(plan: Plan, files: ComparedFiles) -> str:
    more = _words(_repeated_flags(files))
    return profile_command(plan, latency=True, acceptance=False, folder=_folder(files), more=more)


def _folder(files: ComparedFiles) -> Path:
    return next((path.parent for path in files.profiles), DEFAULT_PROFILE_FOLDER)


def _trace(files: ComparedFiles) -> Path:
    """The trace that `s2d-profile` writes beside its profiles; a path to fill in if there is none."""
    trace = _folder(files) / "trace.npz"
    return trace if trace.exists() else Path("path/to/trace.npz")


def _repeated_flags(files: ComparedFiles) -> dict[str, str | None]:
    """Flags of the commands that made the profiles, except those that a plan holds."""
    flags: dict[str, str | None] = {}
    for stored in files.profiles.values():
        flags |= _parse_flags(stored.provenance.command, _PROFILE_FLAGS)
    return flags


def _parse_flags(command: str, names: Sequence[str]) -> dict[str, str | None]:
    """Some flags of a command with their values, and its switches with None."""
    try:
        words = [part for word in shlex.split(command) for part in word.split("=", 1)]
    except ValueError:  # an unclosed quotation mark: not a command of this project
        return {}
    flags: dict[str, str | None] = {name: words[words.index(name) + 1] for name in names if name in words[:-1]}
    if (prompts := flags.get("--prompts")) is not None and not Path(prompts).exists():
        flags["--prompts"] = f"path/to/{prompts}"  # provenance keeps the names of files without their folders
    return flags | {switch: None for switch in _SWITCHES if switch in words}


def _words(flags: Mapping[str, str | None]) -> list[str]:
    return [word for flag, value in flags.items() for word in (flag, value) if word is not None]
