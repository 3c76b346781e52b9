"""Compare a plan with a run of it: acceptance error and latency error apart."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from calibrate.engine_metrics.read_engine_metrics import read_engine_metrics
from calibrate.inputs.device import resolve_device
from calibrate.inputs.requests import DeviceRequest
from calibrate.planning.compare_engine import compare_engine
from calibrate.planning.suggest_after_compare import DEFAULT_REPORT_PATH, ComparedFiles, Errors, next_step
from calibrate.planning.suggest_after_plan import DEFAULT_PLAN_PATH
from calibrate.pricing.datasheet import price_by_datasheet
from calibrate.pricing.measured import price_by_profiles
from calibrate.pricing.pricing import PairWeights, Pricing
from perfmodel.core.disk import PathLike, as_paths
from perfmodel.core.errors import Mismatch, UnknownName, UserInputError
from perfmodel.core.files import Stored, record_sha256
from perfmodel.core.units import Seconds
from perfmodel.engines.python_engines import S2D
from perfmodel.hardware.find_device import same_device
from perfmodel.passes.latency_profile import PROFILE_FILE
from perfmodel.passes.passes import PASS_KINDS, PassKind
from perfmodel.passes.pauses import without_pauses
from perfmodel.replay.estimate import pass_seconds
from perfmodel.replay.round_stats import RoundStats
from perfmodel.results.engine_report import EngineReport
from perfmodel.results.plan import PLAN_FILE, Candidate, Evidence, Plan
from perfmodel.results.report import REPORT_FILE, Arm, RunReport
from perfmodel.results.residuals import PassResidual, Residuals

T = TypeVar("T")
Given: TypeAlias = T | Stored[T] | PathLike
"""A record, a record as read from its file, or the path of the file."""


def compare(
    plan: Given[Plan],
    report: Given[RunReport] | None = None,
    profiles: PathLike | Sequence[PathLike] = (),
    fit: PathLike | None = None,
    engine_metrics: EngineReport | PathLike | Sequence[PathLike] | None = None,
) -> Residuals:
    """Split the error of a plan's speedup into the error of its acceptance and the error of its seconds.

    `s2d-compare` calls the same function.

    Args:
        plan: a path or a record.
        report: of a run of this plan with plain decoding beside it; a path or a record. None compares with `engine_metrics`.
        profiles: paths of the profiles that the plan was made with. They price every measured pass by its shape. Without
            them, measured and fitted plans are priced by their own mean seconds per pass of a kind.
        fit: path of the fit that the plan was made with, if any.
        engine_metrics: what the engine that served the plan reports: paths of its files, or a report by
            `read_engine_metrics`, which also reads plain decoding. It replaces `report`, `profiles` and `fit`.

    Returns:
        Both errors as fractions of the measured speedup, the passes of each kind in seconds, and the next step.

    Raises:
        Mismatch: the report is from another plan, engine or device, or the plan was not made with these profiles or this fit.
        UserInputError: the report has no plain decoding, or not exactly one of report and engine metrics was given.
        BadFile: a file cannot be read.

    Example:
        >>> residuals = s2d.compare("plan.json", "report.json")
        >>> residuals.predicted_prompts, residuals.measured_prompts
        (2, 2)
    """
    if (report is None) == (engine_metrics is None):
        raise UserInputError("expected either --report or --engine-metrics. Give the one that was measured.")
    plan_record, plan_sha256, _ = _load(plan, PLAN_FILE.read)
    if engine_metrics is not None:
        if as_paths(profiles) or fit is not None:
            raise UserInputError(
                "--profile and --fit price the passes of a report, expected neither with --engine-metrics. Leave them out."
            )
        if not isinstance(engine_metrics, EngineReport):
            engine_metrics = read_engine_metrics(engine_metrics, policy=plan_record.policy)
        return compare_engine(plan_record, plan_sha256, engine_metrics)
    assert report is not None
    return _compare_run(plan, report, as_paths(profiles), None if fit is None else Path(fit))


def _compare_run(plan: Given[Plan], report: Given[RunReport], profile_paths: tuple[Path, ...], fit: Path | None) -> Residuals:
    """Compare a plan with a run in the bundled runtime."""
    plan_record, plan_sha256, _ = _load(plan, PLAN_FILE.read)
    report_record, report_sha256, run_command = _load(report, REPORT_FILE.read)
    pricing = load_pricing(plan_record, profile_paths, fit)
    plain_arm = _check(plan_record, plan_sha256, report_record)
    rounds, plain = report_record.plan_arm.rounds, plain_arm.rounds
    priced, plain_priced = _price(plan_record, rounds, pricing), _price_plain(plan_record, plain, pricing)
    total_s, plain_total_s = math.fsum(priced.values()), math.fsum(plain_priced.values())
    passes = (
        *_pass_residuals("plan", report_record.plan_arm, rounds, priced),
        *_pass_residuals("plain", plain_arm, plain, plain_priced),
    )
    chosen, measured = plan_record.chosen, report_record.measured
    assert measured is not None
    predicted = chosen.speedup.speedup.value
    repriced = rounds.num_tokens / total_s * plain_total_s / plain.num_tokens
    errors = Errors(
        acceptance_frac=(predicted - repriced) / measured.speedup.value,
        latency_frac=(repriced - measured.speedup.value) / measured.speedup.value,
        passes=passes,
        predicted=chosen.speedup.speedup,
        measured=measured.speedup,
    )
    files = ComparedFiles(
        plan=Path(plan) if isinstance(plan, (str, os.PathLike)) else DEFAULT_PLAN_PATH,
        report=Path(report) if isinstance(report, (str, os.PathLike)) else DEFAULT_REPORT_PATH,
        profiles={path: PROFILE_FILE.read(path) for path in profile_paths},
        run_command=run_command,
    )
    return Residuals(
        plan_sha256=plan_sha256,
        report_sha256=report_sha256,
        engine=S2D.name,
        device=report_record.device,
        pricing="plan" if pricing is None else "evidence",
        predicted_prompts=chosen.rounds.num_prompts,
        measured_prompts=rounds.num_prompts,
        predicted_speedup=predicted,
        repriced_speedup=repriced,
        measured_speedup=measured.speedup.value,
        measured_interval=measured.speedup,
        predicted_tokens_per_round=chosen.rounds.tokens_per_round,
        measured_tokens_per_round=rounds.tokens_per_round,
        repriced_round_s=total_s / rounds.num_rounds,
        measured_round_s=math.fsum(run.decode_s for run in report_record.plan_arm.runs) / rounds.num_rounds,
        passes=passes,
        next_step=next_step(errors, plan_record, report_record, files),
    )


def _load(given: Given[T], read: Callable[[PathLike], Stored[T]]) -> tuple[T, str, str]:
    """A record, the hash that names it, and the command that made it; no command if it was never in a file."""
    stored = read(given) if isinstance(given, (str, os.PathLike)) else given
    if isinstance(stored, Stored):
        return stored.record, stored.sha256, stored.provenance.command
    return stored, record_sha256(stored), ""


def load_pricing(plan: Plan, profiles: Sequence[Path], fit: Path | None) -> Pricing | None:
    """The prices that a plan was made with: by datasheet from the plan alone, measured and fitted ones from their files.

    Returns:
        None if those files were not given, or if the plan's device was described in a file, which a plan only names. The
        plan's own mean seconds per pass are used instead.

    Raises:
        Mismatch: the plan was not made with these profiles or this fit.
    """
    latency: dict[str, Evidence] = {part.role: part for part in plan.evidence if part.role.endswith(" latency")}
    context_tokens = plan.workload.prompt_tokens + plan.workload.output_tokens
    request = DeviceRequest(
        device=plan.device.device,
        num_devices=plan.device.num_devices,
        draft_num_devices=plan.draft_num_devices,
        dtype=plan.device.dtype,
        mode=plan.device.mode,
    )
    if not profiles and fit is None:
        if any(part.level != "roofline" for part in latency.values()):
            return None
        try:
            device = resolve_device(request)
        except UnknownName:
            return None
        weights = PairWeights(draft=plan.draft_weights, target=plan.target_weights)
        return price_by_datasheet(plan, device, weights, context_tokens=context_tokens)
    pricing = price_by_profiles(plan, profiles, fit, request, sampling=plan.workload.sampling, context_tokens=context_tokens)
    for part in pricing.evidence:
        if part.sha256 != latency[part.role].sha256:
            made_for, given = _evidence_text(latency[part.role]), _evidence_text(part)
            fix = "Give the profiles and the fit the plan was made with, or plan again with these: s2d-plan --profile, --fit"
            raise Mismatch("the plan", made_for=made_for, given=given, fix=fix)
    return pricing


def _evidence_text(part: Evidence) -> str:
    return f"{part.role} {part.level}" + (f" {part.sha256[:12]}" if part.sha256 else "")


def _check(plan: Plan, plan_sha256: str, report: RunReport) -> Arm:
    """Refuse a report of another plan, of another device or without plain decoding; returns the plain arm."""
    if report.plan_sha256 != plan_sha256:
        made_for = "no plan" if report.plan_sha256 is None else f"plan {report.plan_sha256[:12]}"
        fix = "Give the plan that was run, or run this one: s2d-run --plan PLAN --check -o REPORT"
        raise Mismatch("the report", made_for=made_for, given=f"plan {plan_sha256[:12]}", fix=fix)
    if report.adaptation is not None:
        fix = "Run the plan again without --adapt"
        raise Mismatch("the plan", made_for="one policy throughout", given="a run that moved along its frontier", fix=fix)
    planned, measured_on = plan.device, report.device
    is_same_setting = replace(measured_on, device="") == replace(planned, device="")
    if not is_same_setting or not same_device(measured_on.device, planned.device):
        fix = "Profile the device of the run and plan again: a plan's seconds hold on its own device only"
        raise Mismatch("the plan", made_for=planned.label, given=f"the run's {measured_on.label}", fix=fix)
    if report.plain_arm is None or report.measured is None:
        fix = "Run the plan again with s2d-run --check, which decodes plainly beside it"
        if report.sampling.rule == "ratio":
            fix = "s2d-run measures none under the ratio test: plan and run with greedy or shared-noise sampling"
        raise UserInputError(
            f"the report has no plain decoding, expected both arms: a speedup is a ratio to plain decoding. {fix}."
        )
    return report.plain_arm


def _price(plan: Plan, rounds: RoundStats, pricing: Pricing | None) -> dict[PassKind, Seconds]:
    """Seconds of the measured rounds at the plan's prices."""
    if pricing is not None:
        return pass_seconds(pricing.draft, pricing.target, rounds)
    return _price_by_means(plan.chosen, rounds)


def _price_plain(plan: Plan, plain: RoundStats, pricing: Pricing | None) -> dict[PassKind, Seconds]:
    """Seconds of measured plain decoding at the plan's prices."""
    if pricing is not None:
        return pass_seconds(None, pricing.target, plain)
    for candidate in (plan.chosen, *plan.runners_up):
        if candidate.policy is None:
            return _price_by_means(candidate, plain)
    return {"verify": plain.num_tokens / plan.chosen.speedup.plain_tokens_per_s}


def _price_by_means(candidate: Candidate, rounds: RoundStats) -> dict[PassKind, Seconds]:
    """Number of measured passes of each kind times the predicted mean seconds of such a pass."""
    predicted = candidate.rounds
    priced: dict[PassKind, Seconds] = {}
    for kind, round_s in candidate.speedup.round_cost.by_kind.items():
        measured_passes, predicted_passes = rounds.num_passes(kind), predicted.num_passes(kind)
        if measured_passes and predicted_passes:
            priced[kind] = measured_passes * round_s * predicted.num_rounds / predicted_passes
    return priced


def _pass_residuals(
    name: Literal["plan", "plain"], arm: Arm, rounds: RoundStats, priced: Mapping[PassKind, Seconds]
) -> list[PassResidual]:
    """One residual for each kind that was both measured and priced, in the order of a round.

    The arm may have been repeated. Mean seconds per sample times passes per repetition scale it to one repetition.
    """
    residuals, samples = [], without_pauses(arm.samples)
    for kind in PASS_KINDS:
        measured = [seconds for sample, seconds in zip(samples.kind, samples.seconds, strict=True) if sample == kind]
        passes = rounds.num_passes(kind)
        if measured and kind in priced:
            measured_s = math.fsum(measured) / len(measured) * passes
            part = PassResidual(arm=name, kind=kind, num_passes=passes, predicted_s=priced[kind], measured_s=measured_s)
            residuals.append(part)
    return residuals
