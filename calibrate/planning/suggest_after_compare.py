"""The step after a comparison: nothing, or which part of the prediction to measure again and by which command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calibrate.planning.suggest_after_plan import PLAN_FILE, PROFILE_FOLDER, profile_command, run_text
from perfmodel.core.cpu_contention import BUSY_FRAC
from perfmodel.core.files import Stored
from perfmodel.core.stats import Interval
from perfmodel.core.units import Frac, Tokens, format_frac, format_signed_frac
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.results.plan import Plan
from perfmodel.results.report import RunReport
from perfmodel.results.residuals import PassResidual

GOOD_ERROR_FRAC: Frac = 0.02
"""The aim of this project: below it there is nothing to measure again, however narrow the intervals."""

_TEXTS = ("--prompts", "--prompt-format", "--prompt-column", "--special-tokens", "--split", "--num-prompts", "--max-new-tokens")
_PROFILE_FLAGS = (*_TEXTS, "--draft-cap", "--budget", "--off-path", "--kernels")
_RUN_FLAGS = (*_TEXTS, "--stop")
"""Flags of `s2d-profile` and `s2d-run` that a plan does not hold, and that a second measurement repeats."""
_SWITCHES = ("--chat", "--adapt")
"""The same without a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedFiles:
    """Where plan, report and profiles are, so that commands name them."""

    plan: Path = PLAN_FILE
    report: Path = Path("report.json")
    profiles: Mapping[Path, Stored[LatencyProfile]] = field(default_factory=dict)
    """Those that the plan was made with; empty where they were not given."""
    run_command: str = ""
    """The command that made the report, as its provenance keeps it; empty where that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How a prediction was off: the two parts as fractions of the measured speedup, and both intervals."""

    acceptance_frac: Frac
    latency_frac: Frac
    passes: tuple[PassResidual, ...]
    predicted: Interval
    measured: Interval

    @property
    def larger_frac(self) -> Frac:
        """The size of the larger part."""
        return max(abs(self.acceptance_frac), abs(self.latency_frac))

    @property
    def is_in_interval(self) -> bool:
        """Whether the measured speedup lies in the predicted interval."""
        return self.predicted.low <= self.measured.value <= self.predicted.high


def next_step(errors: Errors, plan: Plan, report: RunReport, files: ComparedFiles) -> str:
    """What to do, and the command that does it; nothing where the intervals explain the errors, or they are small."""
    if errors.larger_frac <= GOOD_ERROR_FRAC:
        return f"nothing: both errors are within {format_frac(GOOD_ERROR_FRAC)}"
    explained = explained_frac(errors.predicted, errors.measured)
    if errors.is_in_interval and errors.larger_frac <= explained:
        return f"nothing: both errors are within {format_frac(explained)}, which the intervals of plan and run explain"
    if abs(errors.acceptance_frac) >= abs(errors.latency_frac):
        return f"most of the error is in the acceptance: {_acceptance_again(plan, report.max_new_tokens, files)}"
    return _disturbed(plan, report, files) or _latency_again(errors, plan, files)


def explained_frac(predicted: Interval, measured: Interval) -> Frac:
    """How far a predicted speedup may be off the measured one for no other reason than their intervals.

    Half of each, added in quadrature, as a fraction of the measured speedup: the two err apart from one another.
    """
    return math.hypot(predicted.high - predicted.low, measured.high - measured.low) / 2 / measured.value


def worst_pass(passes: Sequence[PassResidual]) -> PassResidual | None:
    """The kind whose predicted seconds are furthest from the measured ones, as a share of its arm's seconds."""
    arm_s = {arm: math.fsum(part.measured_s for part in passes if part.arm == arm) for arm in ("plan", "plain")}
    return max(passes, key=lambda part: abs(part.predicted_s - part.measured_s) / arm_s[part.arm], default=None)


def _disturbed(plan: Plan, report: RunReport, files: ComparedFiles) -> str | None:
    """What to repeat on a quiet machine: of profile and run, what other programs disturbed most; None where neither was."""
    waits = [stored.record.waited_frac for stored in files.profiles.values()]
    of_profile = max((frac for frac in waits if frac is not None), default=0.0)
    of_run = report.waited_frac or 0.0
    if max(of_profile, of_run) < BUSY_FRAC:
        return None
    what, command = ("profile", _profile_again(plan, files)) if of_profile >= of_run else ("run", _run_again(plan, files))
    share = format_frac(max(of_profile, of_run))
    return f"{what} again on a quiet machine, as {share} of the {what}'s processor time went to other programs: {command}"


def _latency_again(errors: Errors, plan: Plan, files: ComparedFiles) -> str:
    worst = worst_pass(errors.passes)
    kind = "" if worst is None else f", {worst.arm} {worst.kind} passes most of all ({format_signed_frac(worst.error_frac)})"
    is_measured = any(part.level == "measured" for part in plan.evidence)
    unknown = " (give --profile to see whether the profile was disturbed)" if is_measured and not files.profiles else ""
    return f"most of the error is in the seconds{kind}{unknown}: {_profile_again(plan, files)}"


def _acceptance_again(plan: Plan, ran: Tokens, files: ComparedFiles) -> str:
    """How to come to an acceptance like that of a run's texts: the longer they are, the more they repeat themselves.

    A recorded trace holds what shorter texts would have given; published evidence does not.
    """
    planned, is_traced = plan.workload.output_tokens, any(part.level == "traced" for part in plan.evidence)
    if ran < planned and is_traced:
        profiles = [word for path in files.profiles for word in ("--profile", str(path))]
        words = ["s2d-plan", *profiles, "--trace", str(_trace(files)), "--output-tokens", str(ran), "-o", str(files.plan)]
        return f"plan for texts as long as those that were run: {shlex.join(words)}"
    more = _repeated_flags(files)
    if ran != planned:
        more = {**more, "--max-new-tokens": str(ran)}
    command = profile_command(plan, latency=False, acceptance=True, folder=_folder(files), more=_words(more))
    length = f" and as long as those that were run ({ran} tokens)" if ran != planned else ""
    return f"record it on prompts like those that were run{length}: {command}"


def _profile_again(plan: Plan, files: ComparedFiles) -> str:
    more = _words(_repeated_flags(files))
    return profile_command(plan, latency=True, acceptance=False, folder=_folder(files), more=more)


def _run_again(plan: Plan, files: ComparedFiles) -> str:
    return run_text(plan, files.plan, files.report, more=_words(_flags_of(files.run_command, _RUN_FLAGS)))


def _folder(files: ComparedFiles) -> Path:
    return next((path.parent for path in files.profiles), PROFILE_FOLDER)


def _trace(files: ComparedFiles) -> Path:
    """Where `s2d-profile` puts a trace beside its profiles; a place to fill in where there is none."""
    beside = _folder(files) / "trace.npz"
    return beside if beside.exists() else Path("path/to/trace.npz")


def _repeated_flags(files: ComparedFiles) -> dict[str, str | None]:
    """The flags of the commands that made the profiles, in so far as a plan does not hold them."""
    found: dict[str, str | None] = {}
    for stored in files.profiles.values():
        found |= _flags_of(stored.provenance.command, _PROFILE_FLAGS)
    return found


def _flags_of(command: str, flags: Sequence[str]) -> dict[str, str | None]:
    """Some flags of a command with their values, and its switches with None."""
    try:
        words = [part for word in shlex.split(command) for part in word.split("=", 1)]
    except ValueError:  # an unfinished quotation: no command of ours
        return {}
    found: dict[str, str | None] = {flag: words[words.index(flag) + 1] for flag in flags if flag in words[:-1]}
    if (prompts := found.get("--prompts")) is not None and not Path(prompts).exists():
        found["--prompts"] = f"path/to/{prompts}"  # provenance keeps the names of files, and no folders
    return found | {switch: None for switch in _SWITCHES if switch in words}


def _words(flags: Mapping[str, str | None]) -> list[str]:
    return [word for flag, value in flags.items() for word in (flag, value) if word is not None]
