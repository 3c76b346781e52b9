"""Agreement that is left in an engine: its rounds on some prompts against those of a trace of the same prompts.

A trace in fp32 agrees more often than an engine in bf16 or with quantised weights: 0 to 9 % in rounds. The same share of the
agreed positions, drawn from a fixed seed, is then turned into mistakes of all exits.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from calibrate.engines.observations import call_rounds, replayed_rounds
from perfmodel.acceptance.trace import Trace
from perfmodel.core.units import Floats, Frac
from perfmodel.engines.engine_profile import EngineProfile, EngineRun

TOLERANCE_FRAC: Frac = 0.01
"""Rounds that differ by less are equal: engines count the first or the last round of a text in different ways."""
LOWEST_KEPT_FRAC: Frac = 0.02
_NUM_BISECTIONS = 12


def agreement_kept(profile: EngineProfile, trace: Trace) -> Frac | None:
    """The share of a trace's agreement at which its replay has as many rounds as the engine had.

    Runs count by the inverse variance of their prompts. An engine with quantised weights writes other texts than the trace
    holds, so that rounds of a prompt differ by a factor of up to two. Shallow exits scatter most, and have most rounds.

    Returns:
        1 if the engine has no more rounds than the replay; None if they share no prompt, or the engine reports no counts.
    """
    runs = [run for run in profile.runs if run.draft_tokens and run.floor is None]
    counted = {run: rounds for run in runs if (rounds := _reported_rounds(run))}
    ratios = _rounds_ratios(counted, profile, trace)
    if not ratios:
        return None
    weights = {run: 1 / (ratio.error_frac**2 + TOLERANCE_FRAC**2) for run, ratio in ratios.items()}

    def excess(thinned: Trace) -> float:
        """Mean logarithm of the engine's rounds over the replayed ones."""
        logs = {run: math.log(ratio.ratio) for run, ratio in _rounds_ratios(counted, profile, thinned).items()}
        return math.fsum(weights[run] * log for run, log in logs.items()) / math.fsum(weights.values())

    if excess(trace) <= TOLERANCE_FRAC:
        return 1.0
    low, high = LOWEST_KEPT_FRAC, 1.0
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        if excess(thin_agreement(trace, middle)) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def thin_agreement(trace: Trace, kept_frac: Frac) -> Trace:
    """The trace with a share of its agreement; the same positions for all exits, and for all smaller shares.

    Args:
        trace: to change.
        kept_frac: 1 returns the trace unchanged.
    """
    if kept_frac >= 1:
        return trace
    if trace.header.sampling.rule == "ratio":
        return replace(trace, accept_prob=(trace.accept_prob * kept_frac).astype(np.float32))
    is_lost = _draws(trace) >= kept_frac  # [P]
    is_right = (trace.accept_prob > 0.5) & ~is_lost[:, None]
    wrong = trace.target_token + 1
    wrong = np.where(wrong == trace.header.eos_token_id, wrong + 1, wrong)[:, None]
    was_lost = (trace.accept_prob > 0.5) & is_lost[:, None]
    return replace(
        trace,
        draft_token=np.where(was_lost, wrong, trace.draft_token).astype(np.int32),
        accept_prob=is_right.astype(np.float32),
    )


def _draws(trace: Trace) -> Floats:
    """A number from 0 to 1 for each position, which depends on the prompt's name only. [P]."""
    prompts = trace.header.prompts
    draws: Floats = np.concatenate(
        [np.random.default_rng(zlib.crc32(prompt.name.encode())).random(prompt.num_positions) for prompt in prompts]
    )
    return draws


def _reported_rounds(run: EngineRun) -> dict[str, float]:
    """Mean rounds of each prompt of a run, as the engine reports them; empty if it does not."""
    rounds: dict[str, list[int]] = {}
    for call in run.calls:
        if (number := call_rounds(call)) is not None:
            rounds.setdefault(call.prompt, []).append(number)
    return {name: fmean(numbers) for name, numbers in rounds.items()}


@dataclass(frozen=True, slots=True)
class _RoundsRatio:
    """Rounds in the engine over replayed rounds: the ratio of their totals over prompts, and its relative standard error."""

    ratio: float
    error_frac: Frac


def _rounds_ratios(
    counted: dict[EngineRun, dict[str, float]], profile: EngineProfile, trace: Trace
) -> dict[EngineRun, _RoundsRatio]:
    """By run, if it shares a prompt with the trace."""
    ratios: dict[EngineRun, _RoundsRatio] = {}
    for run, rounds in counted.items():
        replayed = replayed_rounds(run, profile, trace)
        pairs = [(rounds[name], stats.num_rounds) for name, stats in replayed.items() if name in rounds]
        if pairs:
            ratios[run] = _ratio_of_totals(pairs)
    return ratios


def _ratio_of_totals(pairs: list[tuple[float, int]]) -> _RoundsRatio:
    """Cochran 1977, equation 6.13, without the correction for a finite population. One prompt alone has an error of 1."""
    total = math.fsum(replayed for _, replayed in pairs)
    ratio = math.fsum(counted for counted, _ in pairs) / total
    if len(pairs) == 1:
        return _RoundsRatio(ratio, 1.0)
    squares = math.fsum((counted - ratio * replayed) ** 2 for counted, replayed in pairs)
    error = math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / total
    return _RoundsRatio(ratio, error / ratio)
