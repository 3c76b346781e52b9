"""Compare a plan with what an engine reports: its rounds at the plan's prices, and its seconds if it has them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from calibrate.planning.suggest_after_compare import next_engine_step
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.core.files import record_sha256
from perfmodel.core.units import Frac, Seconds
from perfmodel.engines.python_engines import S2D
from perfmodel.passes.passes import PassKind
from perfmodel.policies.policy import Policy
from perfmodel.replay.round_stats import RoundStats
from perfmodel.results.engine_report import EngineCounts, EngineReport, sum_counts
from perfmodel.results.plan import Plan
from perfmodel.results.residuals import PassResidual, Residuals

MAX_CUT_FRAC: Frac = 0.1
"""Largest share of the drafted tokens that length limits are assumed to cut where the requests are not counted."""
GUIDE = "docs/guide/compare-with-your-engine.md"


def compare_engine(plan: Plan, plan_sha256: str, report: EngineReport) -> Residuals:
    """Split the error of a plan's speedup in an engine into the error of its acceptance and the error of its seconds.

    Without plain decoding or seconds in the report, only the acceptance is compared.

    Raises:
        Mismatch: the report is of another engine, storage of weights, model, exit or draft length than the plan.
        UserInputError: the report has no acceptance.
    """
    policy, total, chosen = _check(plan, report), report.total, plan.chosen
    tokens_per_round = _tokens_per_round(policy, total)
    prices = _prices(plan, total)
    round_s = math.fsum(prices.values())
    residuals = Residuals(
        plan_sha256=plan_sha256,
        report_sha256=record_sha256(report),
        engine=report.engine,
        device=plan.device,
        pricing="counters",
        predicted_prompts=chosen.rounds.num_prompts,
        measured_prompts=report.num_prompts,
        predicted_speedup=chosen.speedup.speedup.value,
        repriced_speedup=tokens_per_round / round_s / chosen.speedup.plain_tokens_per_s,
        measured_speedup=report.speedup_value,
        measured_interval=report.speedup,
        predicted_tokens_per_round=chosen.rounds.tokens_per_round,
        measured_tokens_per_round=tokens_per_round,
        repriced_round_s=round_s,
        measured_round_s=_round_s(total),
        passes=tuple(_passes(plan, report, prices)),
        next_step="",
        predicted_by_position=_by_position(chosen.rounds) if total.accepted_by_position else (),
        measured_by_position=_by_position(total),
        notes=(*_notes(plan, report), *report.notes),
    )
    return replace(residuals, next_step=next_engine_step(residuals, plan))


def _check(plan: Plan, report: EngineReport) -> Policy:
    """Refuse a report of another engine, storage of weights, model, exit or draft length; returns the plan's policy."""
    policy = plan.policy
    if policy is None:
        fix = "Plan again with the draft that was served, or compare plain decoding by its speed alone"
        raise Mismatch("the plan", made_for="plain decoding", given="a run with a draft", fix=fix)
    if len(policy.exits) > 1:
        fix = "Plan for the engine: s2d-plan --engine NAME"
        raise Mismatch("the plan", made_for=policy.label, given="an engine, which drafts with one exit alone", fix=fix)
    setting = plan.engine_setting
    pairs = (
        ("engine", plan.engine if plan.engine != S2D.name else None, report.engine),
        ("weights", None if setting is None else setting.weights, report.weights),
        ("target", plan.target_sha256, report.target_sha256),
        ("draft", plan.draft_sha256, report.draft_sha256),
        ("exit", policy.exits[-1], report.exit_layer),
        ("draft length", policy.tokens if policy.stop is None else None, report.draft_tokens),
    )
    for what, planned, measured in pairs:
        if planned is not None and measured is not None and planned != measured:
            fix = "Give the metrics of the plan's run, or plan again for what was served"
            names = (f"{what} {str(value)[:12]}" for value in (planned, measured))
            raise Mismatch("the plan", made_for=next(names), given=next(names), fix=fix)
    return policy


def _tokens_per_round(policy: Policy, total: EngineCounts) -> float:
    """The measured tokens per round, which must be possible under the plan's draft length."""
    tokens_per_round = total.tokens_per_round
    if tokens_per_round is None:
        raise UserInputError(
            "the engine's metrics have no acceptance, expected rounds and tokens, or a mean acceptance length. "
            f"Save the metrics that {GUIDE} names for this engine."
        )
    drafted = total.drafted_per_round
    is_too_long = tokens_per_round > policy.tokens + 1 or (drafted is not None and drafted > policy.tokens)
    is_too_short = policy.stop is None and drafted is not None and drafted < policy.tokens * (1 - _max_cut_frac(total))
    if is_too_long or is_too_short:
        drafts = "" if drafted is None else f"{drafted:.2f} drafted and "
        fix = "Give the metrics of the plan's run, or plan again with the draft length that was served"
        given = f"a run with {drafts}{tokens_per_round:.2f} emitted tokens per round"
        raise Mismatch("the plan", made_for=f"{policy.tokens} drafted tokens per round", given=given, fix=fix)
    return tokens_per_round


def _max_cut_frac(total: EngineCounts) -> Frac:
    """Share of the drafted tokens that length limits can cut: those of the last round of each request."""
    if total.num_requests is None or not total.num_rounds:
        return MAX_CUT_FRAC
    return max(MAX_CUT_FRAC, total.num_requests / total.num_rounds)


def _prices(plan: Plan, total: EngineCounts) -> dict[PassKind, Seconds]:
    """Seconds of a mean measured round at the plan's mean prices: drafting, verification and host.

    Drafting costs in proportion to the drafted tokens. An engine that does not count them is taken to draft as planned.
    """
    cost, predicted = plan.chosen.speedup.round_cost, plan.chosen.rounds
    planned = predicted.num_drafted / predicted.num_rounds
    drafted = total.drafted_per_round
    draft_s = (cost.segment_s + cost.exit_s + cost.ahead_s) * (1.0 if drafted is None else drafted / planned)
    return {"segment": draft_s, "verify": cost.verify_s, "round": cost.round_s}


def _by_position(counts: RoundStats | EngineCounts) -> tuple[Frac, ...]:
    """Share of the rounds that accept at least i + 1 tokens; empty if unknown."""
    return tuple(number / counts.num_rounds for number in counts.accepted_by_position) if counts.num_rounds else ()


def _round_s(total: EngineCounts) -> Seconds | None:
    """Measured seconds of a mean round."""
    if total.decode_s is None:
        return None
    if total.num_rounds:
        return total.decode_s / total.num_rounds
    if total.num_tokens and total.acceptance_length:
        return total.decode_s * total.acceptance_length / total.num_tokens
    return None


def _passes(plan: Plan, report: EngineReport, prices: Mapping[PassKind, Seconds]) -> Iterator[PassResidual]:
    """Predicted and measured seconds of drafting and verification, where the engine times them apart, and of plain decoding."""
    total = report.total
    numbers: dict[PassKind, int | None] = {"segment": total.num_drafted, "verify": total.num_rounds}
    measured: dict[PassKind, Seconds | None] = {"segment": total.draft_s, "verify": total.verify_s}
    for kind, number in numbers.items():
        measured_s = measured[kind]
        if number and measured_s and total.num_rounds:
            predicted_s = prices[kind] * total.num_rounds
            yield PassResidual(arm="plan", kind=kind, num_passes=number, predicted_s=predicted_s, measured_s=measured_s)
    plain = sum_counts(report.plain_runs)
    if plain.num_tokens and plain.decode_s:
        predicted_s = plain.num_tokens / plan.chosen.speedup.plain_tokens_per_s
        yield PassResidual(
            arm="plain", kind="verify", num_passes=plain.num_tokens, predicted_s=predicted_s, measured_s=plain.decode_s
        )


def _notes(plan: Plan, report: EngineReport) -> Iterator[str]:
    """What may not fit the plan, and what is missing for the speedup."""
    if report.engine not in (None, plan.engine):
        yield f"the plan prices the bundled runtime, the run was in {report.engine}: plan for it with --engine {report.engine}"
    profiled = None if plan.engine_setting is None else plan.engine_setting.version
    if None not in (profiled, report.version) and profiled != report.version:
        yield f"the plan's engine was profiled in version {profiled}, the run was in {report.version}"
    if report.model is not None and not _same_name(report.model, plan.target.name):
        yield f"the engine served {report.model!r}, the plan's target is {plan.target.name!r}: check that they are one model"
    if report.concurrency is not None and report.concurrency > plan.workload.batch:
        yield f"{report.concurrency} requests ran at a time, the plan is for a batch of {plan.workload.batch}"
    if report.speedup_value is None:
        missing = "seconds of the run" if report.total.tokens_per_s is None else "plain decoding (--plain-metrics)"
        yield f"no speedup was measured, because {missing} is missing: only the acceptance is compared"


def _same_name(served: str, planned: str) -> bool:
    """Whether one name contains the other, apart from folders, case and punctuation."""
    names = [re.sub(r"[^a-z0-9]", "", re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()) for name in (served, planned)]
    return names[0] in names[1] or names[1] in names[0]
