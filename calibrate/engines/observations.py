"""Observations: each speculative run of an engine profile as the mean seconds and passes of one round.

Seconds are divided by those of a step of plain decoding in the same visits to the same prompts, so the drift of the machine
cancels. Both are totals: a mean of single ratios would be too high by the squared noise of a plain call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Frac, Seconds, Tokens
from perfmodel.engines.engine_profile import EngineCall, EngineProfile, EngineRun
from perfmodel.engines.leviathan import acceptance_rate
from perfmodel.policies.policy import Policy
from perfmodel.replay.replay import replay_prompts
from perfmodel.replay.round_stats import RoundStats

DISTURBED_FRAC: Frac = 0.15
"""A call in which other programs had the processor for a larger share is left out."""
ASSUMED_NOISE_FRAC: Frac = 0.01
"""Noise of a call if no configuration was repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A mean round of one exit at one draft length. Seconds are in steps of plain decoding."""

    exit_layer: int
    draft_tokens: Tokens
    num_rounds: float
    tokens_per_round: float
    drafted_per_round: float
    full_frac: Frac
    """Share of the rounds in which the whole block was accepted."""
    round_steps: float
    draft_steps: float | None
    """By the engine's own timers; None if it reports none."""
    verify_steps: float | None
    noise_frac: Frac
    """Standard error of `round_steps`, relative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """All that a fit uses of a profile."""

    plain_s: Seconds
    """A step of plain decoding."""
    runs: tuple[Observation, ...]
    alone_steps: Mapping[int, float]
    """By exit: a token of the exit decoded alone, in steps of plain decoding."""
    noise_frac: Frac
    """Plain decoding against itself: one standard deviation of a repeat."""


def observe(profile: EngineProfile, trace: Trace | None) -> Observations:
    """The observations of a profile. Calls during which other programs had the processor are left out where others remain.

    Args:
        profile: of an engine.
        trace: acceptance of the profile's prompts; counts the rounds of an engine that reports neither rounds nor accepted
            tokens.

    Raises:
        UserInputError: the rounds of a run are unknown.
    """
    plain = _PlainSteps(profile.plain)
    runs = [run for run in profile.runs if run.draft_tokens and run.floor is None]
    return Observations(
        plain_s=plain.mean_s(_by_prompt(profile.plain)),
        runs=tuple(_observation(run, plain, _replayed(run, profile, trace)) for run in runs),
        alone_steps={
            run.exit_layer: _token_s(_by_prompt(run)) / plain.mean_s(_by_prompt(run))
            for run in profile.runs
            if run.is_draft_alone and run.exit_layer is not None
        },
        noise_frac=_repeat_noise(profile.plain),
    )


def call_rounds(call: EngineCall) -> int | None:
    """Rounds of a call: as reported, or from accepted tokens, as each round adds one of its own; None if both are unknown."""
    if call.num_rounds is not None:
        return max(1, call.num_rounds)
    return None if call.num_accepted is None else max(1, timed_tokens(call) - call.num_accepted)


def timed_tokens(call: EngineCall) -> Tokens:
    """Tokens that the seconds of a call cover, at least 1."""
    return max(1, call.num_tokens - call.untimed_tokens)


def replayed_rounds(run: EngineRun, profile: EngineProfile, trace: Trace) -> dict[str, RoundStats]:
    """Replayed rounds of a run's exit and length, by the names of the prompts that both the run and the trace have.

    Rounds begin after the tokens that come with the pass over the prompt.
    """
    assert run.exit_layer is not None
    header, calls = trace.header, {call.prompt: call for call in run.calls}
    if run.exit_layer not in header.exit_layers:
        return {}
    policy = Policy(exits=(run.exit_layer,), tokens=run.draft_tokens, confidence=header.confidence)
    by_start: dict[Tokens, list[int]] = {}
    for number, prompt in enumerate(header.prompts):
        call = calls.get(prompt.name)
        if call is not None and call.untimed_tokens < call.num_tokens == min(prompt.num_positions, profile.max_new_tokens):
            by_start.setdefault(call.untimed_tokens, []).append(number)
    rounds: dict[str, RoundStats] = {}
    for first, numbers in by_start.items():
        timed = trace.subset(numbers).shortened(profile.max_new_tokens).without_first(first)
        names = [prompt.name for prompt in timed.header.prompts]
        rounds |= dict(zip(names, replay_prompts(timed, policy), strict=True))
    return rounds


def _replayed(run: EngineRun, profile: EngineProfile, trace: Trace | None) -> dict[str, RoundStats]:
    return {} if trace is None else replayed_rounds(run, profile, trace)


def _by_prompt(run: EngineRun) -> dict[str, list[EngineCall]]:
    """Calls by prompt, without disturbed ones; the least disturbed ones where all are."""
    prompts: dict[str, list[EngineCall]] = {}
    for call in run.calls:
        prompts.setdefault(call.prompt, []).append(call)
    kept = {}
    for name, calls in prompts.items():
        limit = max(DISTURBED_FRAC, min(call.waited_frac or 0.0 for call in calls))
        kept[name] = [call for call in calls if (call.waited_frac or 0.0) <= limit]
    return kept


class _PlainSteps:
    """Seconds of a step of plain decoding, beside any calls.

    Args:
        plain: plain decoding.
    """

    def __init__(self, plain: EngineRun) -> None:
        visits: dict[tuple[str, int | None], list[EngineCall]] = {}
        by_prompt = _by_prompt(plain)
        for name, calls in by_prompt.items():
            for call in calls:
                visits.setdefault((name, call.visit), []).append(call)
        self._by_visit = {visit: _token_s({"": calls}) for visit, calls in visits.items() if visit[1] is not None}
        self._by_prompt = {name: _token_s({name: calls}) for name, calls in by_prompt.items()}
        self._mean_s = fmean(self._by_prompt.values())

    def mean_s(self, prompts: Mapping[str, Sequence[EngineCall]]) -> Seconds:
        """Mean over the tokens of some calls, with the plain calls of the same visit, prompt, or profile."""
        seconds = math.fsum(fmean(self._step_s(call) * timed_tokens(call) for call in calls) for calls in prompts.values())
        return seconds / _num_tokens(prompts)

    def _step_s(self, call: EngineCall) -> Seconds:
        of_prompt_s = self._by_prompt.get(call.prompt, self._mean_s)
        return self._by_visit.get((call.prompt, call.visit), of_prompt_s)


def _token_s(prompts: Mapping[str, Sequence[EngineCall]]) -> Seconds:
    """Seconds of a token: total seconds over total tokens of all prompts, each with the mean of its calls."""
    return math.fsum(fmean(call.decode_s for call in calls) for calls in prompts.values()) / _num_tokens(prompts)


def _num_tokens(prompts: Mapping[str, Sequence[EngineCall]]) -> float:
    """Timed tokens of all prompts, each with the mean of its calls."""
    return math.fsum(fmean(map(timed_tokens, calls)) for calls in prompts.values())


def _observation(run: EngineRun, plain: _PlainSteps, replayed: Mapping[str, RoundStats]) -> Observation:
    prompts = _by_prompt(run)
    rounds = {name: _prompt_rounds(run, calls, replayed.get(name)) for name, calls in prompts.items()}
    num_rounds = math.fsum(rounds.values())
    per_round = 1 / (num_rounds * plain.mean_s(prompts))
    decode_s = math.fsum(fmean(call.decode_s for call in calls) for calls in prompts.values())
    tokens_per_round = _num_tokens(prompts) / num_rounds
    draft_s, verify_s = (_timer_s(prompts.values(), timer) for timer in ("draft_s", "verify_s"))
    assert run.exit_layer is not None
    return Observation(
        exit_layer=run.exit_layer,
        draft_tokens=run.draft_tokens,
        num_rounds=num_rounds,
        tokens_per_round=tokens_per_round,
        drafted_per_round=_drafted_per_round(run, prompts.values(), num_rounds, list(replayed.values())),
        full_frac=_full_frac(run.draft_tokens, tokens_per_round, list(replayed.values())),
        round_steps=decode_s * per_round,
        draft_steps=None if draft_s is None else draft_s * per_round,
        verify_steps=None if verify_s is None else verify_s * per_round,
        noise_frac=_scatter(prompts.values()),
    )


def _prompt_rounds(run: EngineRun, calls: Iterable[EngineCall], replayed: RoundStats | None) -> float:
    """Mean rounds of the calls of one prompt."""
    reported = [call_rounds(call) for call in calls]
    known = [rounds for rounds in reported if rounds is not None]
    if known:
        return fmean(known)
    if replayed is None:
        raise UserInputError(
            f"exit {run.exit_layer} with {run.draft_tokens} tokens: the engine reports neither rounds nor accepted tokens, and "
            "no trace of these prompts counts them. Give --trace, recorded on the profile's prompts: s2d-profile acceptance."
        )
    return float(replayed.num_rounds)


def _drafted_per_round(
    run: EngineRun, prompts: Iterable[list[EngineCall]], num_rounds: float, replayed: list[RoundStats]
) -> float:
    """Mean drafted tokens of a round: as reported if that is possible, else as replayed, else the draft length."""
    drafted = [[call.num_drafted for call in calls if call.num_drafted is not None] for calls in prompts]
    mean = math.fsum(map(fmean, drafted)) / num_rounds if all(drafted) else 0.0
    if run.draft_tokens / 2 <= mean <= run.draft_tokens:
        return mean
    if replayed:
        return sum(stats.num_drafted for stats in replayed) / sum(stats.num_rounds for stats in replayed)
    return float(run.draft_tokens)


def _full_frac(draft_tokens: Tokens, tokens_per_round: float, replayed: list[RoundStats]) -> Frac:
    """Share of fully accepted blocks: replayed, or at the constant acceptance rate that gives as many tokens a round."""
    if replayed:
        full = [stats.accepted_by_position[-1] for stats in replayed if len(stats.accepted_by_position) == draft_tokens]
        return math.fsum(full) / sum(stats.num_rounds for stats in replayed)
    return acceptance_rate(tokens_per_round, draft_tokens) ** draft_tokens


def _timer_s(prompts: Iterable[list[EngineCall]], timer: str) -> Seconds | None:
    """Sum over the prompts of the mean over repeats; None if a call lacks it."""
    seconds = [[getattr(call, timer) for call in calls] for calls in prompts]
    if any(value is None for values in seconds for value in values):
        return None
    return math.fsum(map(fmean, seconds))


def _scatter(prompts: Iterable[list[EngineCall]]) -> Frac:
    """Relative standard error of a run's seconds, from the scatter of its repeats."""
    logs = [[math.log(call.decode_s) for call in calls] for calls in prompts]
    repeated = [values for values in logs if len(values) > 1]
    number = sum(map(len, logs))
    if not repeated:
        return ASSUMED_NOISE_FRAC
    variance = math.fsum((value - fmean(values)) ** 2 for values in repeated for value in values)
    return math.sqrt(variance / sum(len(values) - 1 for values in repeated) / number)


def _repeat_noise(run: EngineRun) -> Frac:
    """Standard deviation of the total seconds of a repeat of a run, relative."""
    prompts = [calls for calls in _by_prompt(run).values() if len(calls) > 1]
    repeats = min(map(len, prompts), default=0)
    if not repeats:
        return ASSUMED_NOISE_FRAC
    totals = [math.log(math.fsum(calls[number].decode_s for calls in prompts)) for number in range(repeats)]
    return pstdev(totals) * math.sqrt(repeats / (repeats - 1))
