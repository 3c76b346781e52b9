"""A plan held against a run: Plan + RunReport -> Residuals, acceptance error and latency error apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from calibrate.inputs.requests import DeviceRequest
from calibrate.planning.suggest_after_compare import ComparedFiles, Errors, next_step
from calibrate.pricing.datasheet import PairWeights, Pricing, key_text, price_by_datasheet, same_device
from calibrate.pricing.measured import price_by_profiles
from perfmodel.core.errors import Mismatch, UnknownName, UserInputError
from perfmodel.core.files import Stored
from perfmodel.core.units import Seconds, Tokens
from perfmodel.passes.passes import PASS_KINDS, PassKind
from perfmodel.passes.pauses import without_pauses
from perfmodel.replay.estimate import pass_seconds
from perfmodel.replay.round_stats import RoundStats, sum_rounds
from perfmodel.results.plan import Candidate, Evidence, Plan
from perfmodel.results.report import Arm, RunReport
from perfmodel.results.residuals import PassResidual, Residuals

FILES_UNKNOWN = ComparedFiles()
"""Commands name the usual places."""


def load_pricing(plan: Plan, profiles: Sequence[Path], fit_path: Path | None) -> Pricing | None:
    """The prices a plan was made with: a datasheet's from the plan alone, measured and fitted ones from its files.

    Returns None where the plan's files were not given: its mean seconds per pass have to do.

    Raises:
        Mismatch: the profiles or the fit are not those of the plan.
    """
    latency: dict[str, Evidence] = {part.role: part for part in plan.evidence if part.role.endswith(" latency")}
    key, context_tokens = plan.device, plan.workload.prompt_tokens + plan.workload.output_tokens
    request = DeviceRequest(
        device=key.device,
        num_devices=key.num_devices,
        draft_num_devices=plan.draft_num_devices,
        dtype=key.dtype,
        engine=key.engine,
    )
    has_files = bool(profiles) or fit_path is not None
    if all(part.level == "roofline" for part in latency.values()) and not has_files:
        return _price_by_its_name(plan, request, context_tokens=context_tokens)
    if not has_files:
        return None
    sampling = plan.workload.sampling
    pricing = price_by_profiles(plan, profiles, request, sampling=sampling, context_tokens=context_tokens, fit_path=fit_path)
    for part in pricing.evidence:
        if part.sha256 != latency[part.role].sha256:
            made_for, given = _evidence_text(latency[part.role]), _evidence_text(part)
            fix = "Give the profiles and the fit the plan was made with, or plan again with these: s2d-plan --profile, --fit"
            raise Mismatch("the plan", made_for=made_for, given=given, fix=fix)
    return pricing


def _price_by_its_name(plan: Plan, request: DeviceRequest, *, context_tokens: Tokens) -> Pricing | None:
    """The prices of the plan's device; None where that was described in a file, which the plan only names."""
    try:
        weights = PairWeights(draft=plan.draft_weights, target=plan.target_weights)
        return price_by_datasheet(plan, request, context_tokens=context_tokens, stored=weights)
    except UnknownName:
        return None


def _evidence_text(part: Evidence) -> str:
    return f"{part.role} {part.level}" + (f" {part.sha256[:12]}" if part.sha256 else "")


def compare(
    plan: Stored[Plan], report: Stored[RunReport], pricing: Pricing | None, files: ComparedFiles = FILES_UNKNOWN
) -> Residuals:
    """Split the error of a plan's speedup.

    Args:
        plan: as it was written.
        report: what running it measured, plain decoding included.
        pricing: prices each measured pass; when None, the plan's own mean seconds per pass of a kind do.
        files: where all of these are, for the command that is next.

    Raises:
        Mismatch: the report is of another plan or device.
        UserInputError: the report has no plain arm.
    """
    plain_arm = _check(plan, report)
    measured, chosen = report.record.measured, plan.record.chosen
    assert measured is not None
    rounds, plain = _arm_rounds(report.record.plan_arm), _arm_rounds(plain_arm)
    priced, plain_priced = _price(plan.record, rounds, pricing), _price_plain(plan.record, plain, pricing)
    total_s, plain_total_s = math.fsum(priced.values()), math.fsum(plain_priced.values())
    passes = (
        *_pass_residuals("plan", report.record.plan_arm, rounds, priced),
        *_pass_residuals("plain", plain_arm, plain, plain_priced),
    )
    predicted, repriced = chosen.speedup.speedup.value, rounds.num_tokens / total_s * plain_total_s / plain.num_tokens
    errors = Errors(
        acceptance_frac=(predicted - repriced) / measured.speedup.value,
        latency_frac=(repriced - measured.speedup.value) / measured.speedup.value,
        passes=passes,
        predicted=chosen.speedup.speedup,
        measured=measured.speedup,
    )
    return Residuals(
        plan_sha256=plan.sha256,
        report_sha256=report.sha256,
        device=report.record.device,
        pricing="plan" if pricing is None else "evidence",
        predicted_prompts=chosen.rounds.num_prompts,
        measured_prompts=rounds.num_prompts,
        predicted_speedup=predicted,
        repriced_speedup=repriced,
        measured_speedup=measured.speedup,
        predicted_tokens_per_round=chosen.rounds.tokens_per_round,
        measured_tokens_per_round=rounds.tokens_per_round,
        repriced_round_s=total_s / rounds.num_rounds,
        measured_round_s=math.fsum(run.decode_s for run in report.record.plan_arm.runs) / rounds.num_rounds,
        passes=passes,
        next_step=next_step(errors, plan.record, report.record, replace(files, run_command=report.provenance.command)),
    )


def _check(plan: Stored[Plan], report: Stored[RunReport]) -> Arm:
    """The report is of this plan on its device, and has a plain arm, which is returned."""
    ran, device = report.record.plan_sha256, report.record.device
    if ran != plan.sha256:
        made_for = "no plan" if ran is None else f"plan {ran[:12]}"
        fix = "Give the plan that was run, or run this one: s2d-run --plan PLAN --check -o REPORT"
        raise Mismatch("the report", made_for=made_for, given=f"plan {plan.sha256[:12]}", fix=fix)
    if report.record.adaptation is not None:
        fix = "Run the plan again without --adapt"
        raise Mismatch("the plan", made_for="one policy throughout", given="a run that moved along its frontier", fix=fix)
    planned = plan.record.device
    if replace(device, device="") != replace(planned, device="") or not same_device(device.device, planned.device):
        fix = "Profile the device of the run and plan again: a plan's seconds hold on its own device only"
        raise Mismatch("the plan", made_for=key_text(planned), given=f"the run's {key_text(device)}", fix=fix)
    if report.record.plain_arm is None or report.record.measured is None:
        fix = "Run the plan again with s2d-run --check, which decodes plainly beside it"
        if report.record.sampling.rule == "ratio":
            fix = "s2d-run measures none under the ratio test: plan and run with greedy or shared-noise sampling"
        raise UserInputError(
            f"the report has no plain decoding, expected both arms: a speedup is a ratio to plain decoding. {fix}."
        )
    return report.record.plain_arm


def _arm_rounds(arm: Arm) -> RoundStats:
    return sum_rounds(run.rounds for run in arm.runs)


def _price(plan: Plan, rounds: RoundStats, pricing: Pricing | None) -> dict[PassKind, Seconds]:
    """Seconds of the measured rounds as the plan would have them."""
    if pricing is not None:
        return pass_seconds(pricing.draft, pricing.target, rounds)
    return _price_by_means(plan.chosen, rounds)


def _price_plain(plan: Plan, plain: RoundStats, pricing: Pricing | None) -> dict[PassKind, Seconds]:
    """Seconds of measured plain decoding as the plan would have them."""
    if pricing is not None:
        return pass_seconds(None, pricing.target, plain)
    for candidate in (plan.chosen, *plan.runners_up):
        if candidate.policy is None:
            return _price_by_means(candidate, plain)
    return {"verify": plain.num_tokens / plan.chosen.speedup.plain_tokens_per_s}


def _price_by_means(candidate: Candidate, rounds: RoundStats) -> dict[PassKind, Seconds]:
    """Measured passes of each kind times the predicted mean seconds of a pass of that kind."""
    predicted = candidate.rounds
    priced: dict[PassKind, Seconds] = {}
    for kind, round_s in candidate.speedup.round_cost.by_kind.items():
        measured_passes, predicted_passes = num_passes(rounds, kind), num_passes(predicted, kind)
        if measured_passes and predicted_passes:
            priced[kind] = measured_passes * round_s * predicted.num_rounds / predicted_passes
    return priced


def num_passes(rounds: RoundStats, kind: PassKind) -> int:
    """Passes of a kind, of all stages and widths."""
    return sum(count.num_passes for count in rounds.passes if count.kind == kind)


def _pass_residuals(
    name: Literal["plan", "plain"], arm: Arm, rounds: RoundStats, priced: Mapping[PassKind, Seconds]
) -> list[PassResidual]:
    """One line per kind that was both measured and priced, in the order of a round.

    The arm may have been repeated: its samples are scaled to one repetition by their number.
    """
    residuals, samples = [], without_pauses(arm.samples)
    for kind in PASS_KINDS:
        measured = [seconds for sample, seconds in zip(samples.kind, samples.seconds, strict=True) if sample == kind]
        passes = num_passes(rounds, kind)
        if measured and kind in priced:
            measured_s = math.fsum(measured) / len(measured) * passes
            part = PassResidual(arm=name, kind=kind, num_passes=passes, predicted_s=priced[kind], measured_s=measured_s)
            residuals.append(part)
    return residuals
