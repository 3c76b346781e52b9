"""Measured speedups of the configurations of one engine, and their noise."""

import math
from dataclasses import replace
from statistics import fmean

from perfmodel.core.units import Frac, Seconds
from perfmodel.engines.engine_profile import EngineCall, EngineProfile, EngineRun
from profiler.engines.engine_request import Arm

DISTURBED_FRAC: Frac = 0.15
"""A call in which other programs had the processor for a larger share is left out where another of its prompt remains."""


def run_of(profile: EngineProfile, arm: Arm) -> EngineRun:
    """The calls of a configuration."""
    return next(run for run in profile.runs if Arm.of(run) == arm)


def measured_speedup(plain: EngineRun, run: EngineRun, half: int | None = None) -> float:
    """Plain seconds of a token over those of a run, totals over the same visits to the same prompts.

    Where memory does not hold all processes at once, plain decoding had other visits: then over all of them.

    Args:
        plain: plain decoding.
        run: another configuration.
        half: 0 takes the first half of the calls of each prompt, 1 the second, both without the middle one of an odd number;
            None takes all.
    """
    visits = {call.visit for calls in _calls_by_prompt(run, half) for call in calls}
    beside = tuple(call for call in plain.calls if call.visit in visits)
    if None in visits or not beside:
        return token_s(plain, half) / token_s(run, half)
    return token_s(replace(plain, calls=beside)) / token_s(run, half)


def token_s(run: EngineRun, half: int | None = None) -> Seconds:
    """Seconds of a token: total seconds over total tokens of all prompts, each with the mean of its calls."""
    prompts = _calls_by_prompt(run, half)
    decode_s = math.fsum(fmean(call.decode_s for call in calls) for calls in prompts)
    return decode_s / math.fsum(fmean(call.num_tokens - call.untimed_tokens for call in calls) for calls in prompts)


def half_difference_frac(plain: EngineRun, run: EngineRun) -> Frac:
    """Speedup of the first half of the repeats over that of the second, minus one: twice the error of their mean."""
    return measured_speedup(plain, run, 0) / measured_speedup(plain, run, 1) - 1


def plain_noise_frac(plain: EngineRun) -> Frac:
    """Plain decoding of the first half of the repeats against that of the second, minus one."""
    return token_s(plain, 0) / token_s(plain, 1) - 1


def disturbed_frac(profile: EngineProfile) -> Frac:
    """Share of the calls in which other programs had the processor."""
    calls = [call for run in profile.runs for call in run.calls]
    return sum(_is_disturbed(call) for call in calls) / len(calls)


def _calls_by_prompt(run: EngineRun, half: int | None) -> list[list[EngineCall]]:
    """The calls of each prompt, without disturbed ones where others remain."""
    prompts: dict[str, list[EngineCall]] = {}
    for call in run.calls:
        prompts.setdefault(call.prompt, []).append(call)
    cuts = [max(1, len(calls) // 2) for calls in prompts.values()]
    halves = [(calls[:cut], calls[-cut:]) for cut, calls in zip(cuts, prompts.values(), strict=True)]
    chosen = prompts.values() if half is None else [pair[half] for pair in halves]
    return [[call for call in calls if not _is_disturbed(call)] or calls for calls in chosen]


def _is_disturbed(call: EngineCall) -> bool:
    return (call.waited_frac or 0.0) > DISTURBED_FRAC
