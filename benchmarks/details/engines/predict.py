"""Predicted speedups of configurations in one engine, by the code behind `s2d-plan --engine`, and by two other estimates."""

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from calibrate.engines.agreement import agreement_kept, thin_agreement
from calibrate.engines.observations import call_rounds
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
    replayed_rounds: float
    """Rounds a token on the evaluated prompts by the trace as recorded, without the engine's loss of agreement."""


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
            [planned], [here], [replayed] = (
                price_candidates(policies, trace, pricing) for trace in (acceptance.trace, thinned, recorded)
            )
        except OutOfDomain as err:
            predictions[arm] = str(err)
            continue
        rounds = replayed.rounds.num_rounds / replayed.rounds.num_tokens
        predictions[arm] = Predicted(planned=planned, here=here, replayed_rounds=rounds)
    return predictions


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Mean counts of an engine's rounds over the calls of a configuration."""

    rounds: float
    """Rounds a token."""
    accepted_frac: Frac
    """Accepted over drafted tokens: the mean acceptance that engines print."""


def engine_counts(run: EngineRun, replayed_rounds: float) -> Counts:
    """What an engine counted; replayed where it reports neither rounds nor accepted tokens."""
    rounds = [call_rounds(call) for call in run.calls]
    tokens = run.decode_tokens
    known = [number for number in rounds if number is not None]
    num_rounds = math.fsum(known) if len(known) == len(rounds) else replayed_rounds * tokens
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


def engine_estimate(run: EngineRun) -> float | None:
    """The speedup that the engine itself estimates, mean over the calls; None if it prints none."""
    estimates = [call.estimated_speedup for call in run.calls]
    known = [estimate for estimate in estimates if estimate is not None]
    return fmean(known) if known else None


def _total(counts: list[int | None], otherwise: float) -> float:
    known = [count for count in counts if count is not None]
    return math.fsum(known) if len(known) == len(counts) and any(known) else otherwise
