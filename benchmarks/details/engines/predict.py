"""Predicted speedups of configurations in one engine, by the code behind `s2d-plan --engine`, and by two other estimates."""

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from calibrate.engines.agreement import agreement_kept, thin_agreement
from calibrate.engines.observations import call_rounds, replayed_rounds
from calibrate.planning.candidates import price_candidates
from calibrate.planning.make_plan import gather_evidence
from details.engines.measure import Measured, policy_of
from details.engines.timing import token_s
from perfmodel.core.errors import OutOfDomain
from perfmodel.core.units import Frac
from perfmodel.engines.engine_profile import EngineProfile, EngineRun
from perfmodel.engines.leviathan import acceptance_rate, leviathan_speedup
from perfmodel.results.plan import Candidate
from profiler.engines.engine_request import Arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """One configuration, predicted from two traces."""

    planned: Candidate
    """From the trace of the calibration prompts, as a plan predicts."""
    here: Candidate
    """From the trace of the evaluated prompts."""


def predict_setting(measured: Measured) -> dict[Arm, Predicted | str]:
    """Predictions of the held-out configurations; the reason where one has none.

    Nothing of the evaluation but its prompts' trace is used, and the trace only for `Predicted.here`.
    """
    acceptance, pricing = gather_evidence(measured.plan_request)
    kept_frac = agreement_kept(measured.profile, measured.evidence.calibration)
    recorded = measured.evidence.evaluation
    thinned = recorded if kept_frac is None else thin_agreement(recorded, kept_frac)
    predictions: dict[Arm, Predicted | str] = {}
    for arm in measured.held_out:
        policies = {arm.label: policy_of(arm)}
        try:
            [planned], [here] = (price_candidates(policies, trace, pricing) for trace in (acceptance.trace, thinned))
        except OutOfDomain as err:
            predictions[arm] = str(err)
            continue
        predictions[arm] = Predicted(planned=planned, here=here)
    return predictions


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsCheck:
    """Rounds of an engine against a replay of the trace as recorded in fp32, from the first token that the rounds emit."""

    num_prompts: int
    """With rounds in both."""
    num_equal: int
    """With the same number of rounds in every repeat."""
    rounds: float
    """Of the engine: totals of the mean over repeats."""
    replayed_rounds: int


def check_rounds(measured: Measured, run: EngineRun) -> RoundsCheck:
    """Compare the rounds of one configuration, prompt by prompt. None with a floor, or where the engine reports none."""
    is_fixed = run.floor is None
    replayed = replayed_rounds(run, measured.evaluation, measured.evidence.evaluation) if is_fixed else {}
    counted: dict[str, list[int]] = {}
    for call in run.calls:
        if call.prompt in replayed and (rounds := call_rounds(call)) is not None:
            counted.setdefault(call.prompt, []).append(rounds)
    return RoundsCheck(
        num_prompts=len(counted),
        num_equal=sum(set(rounds) == {replayed[name].num_rounds} for name, rounds in counted.items()),
        rounds=math.fsum(map(fmean, counted.values())),
        replayed_rounds=sum(replayed[name].num_rounds for name in counted),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Mean counts of an engine's rounds over the calls of a configuration."""

    rounds: float
    """Rounds a token."""
    accepted_frac: Frac
    """Accepted over drafted tokens: the mean acceptance that engines print."""


def engine_counts(run: EngineRun, predicted: Predicted) -> Counts:
    """What an engine counted; replayed where it reports neither rounds nor accepted tokens."""
    rounds = [call_rounds(call) for call in run.calls]
    tokens = run.decode_tokens
    known = [number for number in rounds if number is not None]
    num_rounds = math.fsum(known) if len(known) == len(rounds) else tokens / predicted.here.rounds.tokens_per_round
    drafted, accepted = (
        _total([getattr(call, name) for call in run.calls], otherwise)
        for name, otherwise in (("num_drafted", run.draft_tokens * num_rounds), ("num_accepted", tokens - num_rounds))
    )
    return Counts(rounds=num_rounds / tokens, accepted_frac=min(1.0, max(0.0, accepted / drafted)))


def leviathan_by_mean(arm: Arm, counts: Counts, cost_ratio: float) -> float:
    """Leviathan's speedup with the engine's mean acceptance as its rate. Leviathan et al. 2023, Theorem 3.8."""
    return leviathan_speedup(counts.accepted_frac, arm.draft_tokens, cost_ratio)


def leviathan_by_rounds(arm: Arm, counts: Counts, cost_ratio: float) -> float:
    """The same with the rate at which the formula has as many tokens a round as the engine had."""
    return leviathan_speedup(acceptance_rate(1 / counts.rounds, arm.draft_tokens), arm.draft_tokens, cost_ratio)


def cost_ratio(profile: EngineProfile, exit_layer: int) -> float:
    """Seconds of an exit decoded alone over those of the target: on a line between the exits that were."""
    plain_s = token_s(profile.plain)
    alone = sorted((run.exit_layer or 0, token_s(run) / plain_s) for run in profile.runs if run.is_draft_alone)
    for (low, ratio), (high, next_ratio) in pairwise(alone):
        if exit_layer <= high:
            return ratio + (next_ratio - ratio) * (exit_layer - low) / (high - low)
    return alone[-1][1]


def engine_estimate(plain: EngineRun, run: EngineRun) -> float | None:
    """The speedup by ONNX Runtime GenAI's own formula, from what it prints; None for engines that print no such figures.

    expected_tokens_per_round over the draft's and the target's seconds of a round, in single-token passes of the target. The
    engine times such passes only if it falls back to them, which it does not here: its `estimated_speedup` is then 0. The
    seconds of plain decoding take their place. Source: docs/SpeculativeDecoding.md of onnxruntime-genai 0.18.
    """
    calls = [(call, call.estimated_tokens_per_round, call.draft_s, call.verify_s) for call in run.calls]
    estimates = [
        tokens * call.num_rounds / (draft_s + verify_s)
        for call, tokens, draft_s, verify_s in calls
        if tokens is not None and draft_s is not None and verify_s is not None and call.num_rounds
    ]
    return fmean(estimates) * token_s(plain) if estimates else None


def _total(counts: list[int | None], otherwise: float) -> float:
    known = [count for count in counts if count is not None]
    return math.fsum(known) if len(known) == len(counts) and any(known) else otherwise
