"""From counts and prices to tokens per second: RoundStats + LatencyModels -> Speedup."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfmodel.core.stats import INTERVAL_FRAC, NORMAL_QUANTILE, Interval, ratio_interval, resample_counts
from perfmodel.core.units import Frac, Seconds, TokensPerS
from perfmodel.latency.latency_model import LatencyModel
from perfmodel.passes.passes import PASS_KINDS, PASS_MODEL, PREFILL_KINDS, PassKind
from perfmodel.replay.round_stats import RoundStats


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCost:
    """Where the time of one mean round goes."""

    segment_s: Seconds
    exit_s: Seconds
    ahead_s: Seconds
    """Exit checks together with what ran ahead of their answers."""
    verify_s: Seconds
    round_s: Seconds

    @property
    def total_s(self) -> Seconds:
        """One round."""
        return math.fsum(self.by_kind.values())

    @property
    def by_kind(self) -> dict[PassKind, Seconds]:
        """The parts, in the order of a round."""
        return {
            "segment": self.segment_s,
            "exit": self.exit_s,
            "ahead": self.ahead_s,
            "verify": self.verify_s,
            "round": self.round_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """How fast a configuration decodes, predicted or measured. Prefill is apart: it is paid once, before the rounds."""

    tokens_per_s: TokensPerS
    plain_tokens_per_s: TokensPerS
    speedup: Interval
    """tokens_per_s / plain_tokens_per_s, as a ratio of totals."""
    round_cost: RoundCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """One prompt's rounds as a total: tokens emitted and seconds taken, prefill apart."""

    num_tokens: int
    decode_s: Seconds

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or self.decode_s <= 0:
            raise ValueError(f"a decoded prompt has at least one token and takes more than 0 s, got {self!r}")


def estimate(
    draft: LatencyModel | None, target: LatencyModel, rounds: Sequence[RoundStats], plain: Sequence[RoundStats]
) -> Speedup:
    """Price one configuration.

    Args:
        draft: prices segment and exit passes; None when nothing is drafted.
        target: prices verify and round passes.
        rounds: one entry per prompt, under the configuration.
        plain: the same prompts, without speculation.

    The interval joins a bootstrap over prompts (how acceptance varies) with the latency models' own relative errors.
    """
    by_prompt = [pass_seconds(draft, target, one) for one in rounds]
    totals = {kind: math.fsum(seconds.get(kind, 0.0) for seconds in by_prompt) for kind in PASS_KINDS}
    runs = [_decoded(one, seconds) for one, seconds in zip(rounds, by_prompt, strict=True)]
    plain_runs = [_decoded(one, pass_seconds(draft, target, one)) for one in plain]
    is_plain = all(one.passes == other.passes for one, other in zip(rounds, plain, strict=True))
    error_frac = 0.0 if is_plain else _speedup_error_frac(draft, target, totals)
    cost = mean_round_cost(totals, num_rounds=sum(one.num_rounds for one in rounds))
    return _speedup(runs, plain_runs, cost, error_frac)


def measured_speedup(runs: Sequence[Decoded], plain: Sequence[Decoded], round_cost: RoundCost) -> Speedup:
    """What a run measured, in the record of a prediction.

    Args:
        runs: one entry per prompt, under the configuration.
        plain: the same prompts in the same order, without speculation.
        round_cost: from the run's own pass samples (`mean_round_cost`).

    The interval is a bootstrap over prompts, a prompt's two arms drawn together.
    """
    return _speedup(runs, plain, round_cost, 0.0)


def pass_seconds(draft: LatencyModel | None, target: LatencyModel, rounds: RoundStats) -> dict[PassKind, Seconds]:
    """Predicted seconds of all passes of a kind; the prefill is left out, as everywhere in a speedup."""
    seconds: dict[PassKind, Seconds] = {}

    def model_of(kind: PassKind) -> LatencyModel:
        return draft if draft is not None and PASS_MODEL[kind] == "draft" else target

    for count in rounds.passes:
        if count.kind in PREFILL_KINDS:
            continue
        model = model_of(count.kind)
        base_s, per_token_s = model.line(count.kind, count.stage, count.rows)
        cost_s = base_s * count.num_passes + per_token_s * count.cached_tokens_sum
        seconds[count.kind] = seconds.get(count.kind, 0.0) + cost_s
    for early in rounds.cold_passes:
        seconds[early.kind] += early.num_passes * model_of(early.kind).cold_s(early.kind, early.stage, early.place)
    return seconds


def mean_round_cost(seconds: Mapping[PassKind, Seconds], *, num_rounds: int) -> RoundCost:
    """Seconds of one mean round by kind, from the seconds of many."""
    return RoundCost(
        segment_s=seconds.get("segment", 0.0) / num_rounds,
        exit_s=seconds.get("exit", 0.0) / num_rounds,
        ahead_s=seconds.get("ahead", 0.0) / num_rounds,
        verify_s=seconds.get("verify", 0.0) / num_rounds,
        round_s=seconds.get("round", 0.0) / num_rounds,
    )


def _decoded(rounds: RoundStats, seconds: Mapping[PassKind, Seconds]) -> Decoded:
    return Decoded(num_tokens=rounds.num_tokens, decode_s=math.fsum(seconds.values()))


def _speedup_error_frac(draft: LatencyModel | None, target: LatencyModel, seconds: Mapping[PassKind, Seconds]) -> Frac:
    """Relative error of the speedup that the seconds bring in.

    Draft, target and the plain target's one-row passes are taken to err independently: wide, since what draft and target
    share would cancel. The host's error they do share: it cancels as far as launches bind both models alike.
    """
    draft_share = math.fsum(total_s for kind, total_s in seconds.items() if PASS_MODEL[kind] == "draft") / math.fsum(
        seconds.values()
    )
    drafting = draft if draft is not None else target
    host_error = draft_share * (drafting.host_error_frac - target.host_error_frac)
    return math.hypot(draft_share * drafting.error_frac, (1 - draft_share) * target.error_frac, target.error_frac, host_error)


def _speedup(runs: Sequence[Decoded], plain: Sequence[Decoded], cost: RoundCost, error_frac: Frac) -> Speedup:
    if not runs or len(runs) != len(plain):
        raise ValueError(f"a speedup needs the same prompts in both arms, got {len(runs)} and {len(plain)}")
    every = (1,) * len(runs)
    return Speedup(
        tokens_per_s=_rate(runs, every),
        plain_tokens_per_s=_rate(plain, every),
        speedup=_interval(runs, plain, error_frac),
        round_cost=cost,
    )


def _rate(runs: Sequence[Decoded], weights: Sequence[int]) -> TokensPerS:
    """Total tokens over total seconds, each prompt counted as often as its weight says."""
    tokens = sum(weight * run.num_tokens for weight, run in zip(weights, runs, strict=True))
    return tokens / math.fsum(weight * run.decode_s for weight, run in zip(weights, runs, strict=True))


def _interval(runs: Sequence[Decoded], plain: Sequence[Decoded], error_frac: Frac) -> Interval:
    """The ratio of totals; a bootstrap over prompts and a lognormal error, joined in quadrature on each side."""
    value = _rate(runs, (1,) * len(runs)) / _rate(plain, (1,) * len(plain))
    resampled = _resampled_ratios(runs, plain)
    outside = round((1 - INTERVAL_FRAC) / 2 * (len(resampled) - 1))
    error = NORMAL_QUANTILE * error_frac
    below = math.hypot(min(0.0, math.log(resampled[outside] / value)), error)
    above = math.hypot(max(0.0, math.log(resampled[-1 - outside] / value)), error)
    return ratio_interval(value, below=below, above=above)


def _resampled_ratios(runs: Sequence[Decoded], plain: Sequence[Decoded]) -> list[float]:
    """Rising ratios of totals over prompts drawn with replacement, both arms of a prompt together."""
    import numpy as np

    columns = [(one.num_tokens, one.decode_s, other.num_tokens, other.decode_s) for one, other in zip(runs, plain, strict=True)]
    tokens, seconds, plain_tokens, plain_s = (resample_counts(len(runs)) @ np.array(columns)).T
    ratios: list[float] = np.sort(tokens / seconds * plain_s / plain_tokens).tolist()
    return ratios
