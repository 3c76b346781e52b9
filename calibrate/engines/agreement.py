"""Agreement that is left in an engine: its rounds on some prompts against those of a trace of the same prompts.

A trace in fp32 agrees more often than an engine in bf16 or with quantised weights: 0 to 9 % in rounds. The same share of the
agreed positions, drawn from a fixed seed, is then turned into mistakes of all exits.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
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

    Returns:
        1 if the engine has no more rounds than the replay; None if they share no prompt, or the engine reports no counts.
    """
    runs = [run for run in profile.runs if run.draft_tokens and run.floor is None]
    counted = {run: rounds for run in runs if (rounds := _reported_rounds(run))}
    ratio = _rounds_ratio(counted, profile, trace)
    if ratio is None:
        return None
    if ratio <= 1 + TOLERANCE_FRAC:
        return 1.0
    low, high = LOWEST_KEPT_FRAC, 1.0
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        thinned = _rounds_ratio(counted, profile, thin_agreement(trace, middle))
        if thinned is not None and thinned > 1:
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


def _rounds_ratio(counted: dict[EngineRun, dict[str, float]], profile: EngineProfile, trace: Trace) -> float | None:
    """Rounds in the engine over replayed rounds, of all runs; None if no prompt is in both."""
    in_engine, in_replay = 0.0, 0
    for run, rounds in counted.items():
        for name, stats in replayed_rounds(run, profile, trace).items():
            if name in rounds:
                in_engine, in_replay = in_engine + rounds[name], in_replay + stats.num_rounds
    return in_engine / in_replay if in_replay else None
