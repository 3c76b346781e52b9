"""Predicted speed: counts of rounds and latency models -> tokens/s and speedup."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from perfmodel.core.errors import OutOfDomain
from perfmodel.core.stats import INTERVAL_FRAC, NORMAL_QUANTILE, Interval, ratio_interval, resample_counts
from perfmodel.core.units import Frac, Seconds, TokensPerS
from perfmodel.latency.latency_model import LatencyModel
from perfmodel.passes.passes import PASS_KINDS, PASS_MODEL, PREFILL_KINDS, Line, PassKind
from perfmodel.replay.round_stats import RoundStats


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCost:
    """Seconds of one mean round, by kind of pass."""

    segment_s: Seconds
    exit_s: Seconds
    ahead_s: Seconds
    """Exit checks and the segments that ran ahead of their answers."""
    verify_s: Seconds
    round_s: Seconds

    @property
    def total_s(self) -> Seconds:
        """Seconds of the whole round."""
        return math.fsum(self.by_kind.values())

    @property
    def by_kind(self) -> dict[PassKind, Seconds]:
        """Seconds by kind, in the order of a round."""
        return {
            "segment": self.segment_s,
            "exit": self.exit_s,
            "ahead": self.ahead_s,
            "verify": self.verify_s,
            "round": self.round_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """Speed of a configuration, predicted or measured, without prefill, which runs once before the rounds."""

    tokens_per_s: TokensPerS
    plain_tokens_per_s: TokensPerS
    speedup: Interval
    """tokens_per_s / plain_tokens_per_s, as a ratio of totals over the prompts."""
    round_cost: RoundCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Totals of one prompt: emitted tokens, and seconds without prefill."""

    num_tokens: int
    decode_s: Seconds

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or self.decode_s <= 0:
            raise ValueError(f"a decoded prompt has at least one token and takes more than 0 s, got {self!r}")


class PassLatency(Protocol):
    """The part of a latency model that prices rounds."""

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of a warm pass, by its cached tokens."""
        ...

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        """Extra seconds of a pass at a cold place."""
        ...


def model_for(kind: PassKind, draft: PassLatency | None, target: PassLatency) -> PassLatency:
    """The latency model that prices passes of a kind."""
    return draft if draft is not None and PASS_MODEL[kind] == "draft" else target


def line_or_infinity(model: PassLatency, kind: PassKind, stage: int, rows: int) -> Line:
    """Seconds of a warm pass; infinity without evidence, which excludes policies that need the pass."""
    try:
        return model.line(kind, stage, rows)
    except OutOfDomain:
        return Line(math.inf, 0.0)


def estimate(
    draft: LatencyModel | None, target: LatencyModel, rounds: Sequence[RoundStats], plain: Sequence[RoundStats]
) -> Speedup:
    """Predict the speed of one configuration.

    The interval combines a bootstrap over prompts, for the variation of acceptance, with the errors of the latency models.

    Args:
        draft: prices the draft's passes; None where nothing is drafted.
        target: prices all other passes.
        rounds: one record per prompt, under the configuration.
        plain: the same prompts, decoded without speculation.

    Raises:
        OutOfDomain: a pass has no evidence.
    """
    by_prompt = [pass_seconds(draft, target, stats) for stats in rounds]
    totals = {kind: math.fsum(seconds.get(kind, 0.0) for seconds in by_prompt) for kind in PASS_KINDS}
    runs = [_decoded(stats, seconds) for stats, seconds in zip(rounds, by_prompt, strict=True)]
    plain_runs = [_decoded(stats, pass_seconds(draft, target, stats)) for stats in plain]
    is_plain = all(stats.passes == plain_stats.passes for stats, plain_stats in zip(rounds, plain, strict=True))
    error_frac = 0.0 if is_plain else _speedup_error_frac(draft, target, totals)
    cost = mean_round_cost(totals, num_rounds=sum(stats.num_rounds for stats in rounds))
    return _speedup(runs, plain_runs, cost, error_frac)


def measured_speedup(runs: Sequence[Decoded], plain: Sequence[Decoded], round_cost: RoundCost) -> Speedup:
    """The measured speed of a run, in the record of a prediction.

    The interval is a bootstrap over prompts. Both arms of a prompt are drawn together.

    Args:
        runs: totals of each prompt, under the configuration.
        plain: totals of the same prompts in the same order, decoded without speculation.
        round_cost: from the run's own pass times (`mean_round_cost`).
    """
    return _speedup(runs, plain, round_cost, 0.0)


def pass_seconds(draft: PassLatency | None, target: PassLatency, rounds: RoundStats) -> dict[PassKind, Seconds]:
    """Predicted seconds of all passes, summed by kind, without prefill.

    Raises:
        OutOfDomain: a pass has no evidence.
    """
    seconds: dict[PassKind, Seconds] = {}
    for count in rounds.passes:
        if count.kind in PREFILL_KINDS:
            continue
        model = model_for(count.kind, draft, target)
        base_s, per_token_s = model.line(count.kind, count.stage, count.rows)
        cost_s = base_s * count.num_passes + per_token_s * count.cached_tokens_sum
        seconds[count.kind] = seconds.get(count.kind, 0.0) + cost_s
    for cold in rounds.cold_passes:
        model = model_for(cold.kind, draft, target)
        seconds[cold.kind] += cold.num_passes * model.cold_s(cold.kind, cold.stage, cold.place)
    return seconds


def mean_round_cost(seconds: Mapping[PassKind, Seconds], *, num_rounds: int) -> RoundCost:
    """Seconds of one mean round, from the summed seconds of many rounds by kind."""
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
    """Relative error of the speedup that comes from the latency models.

    The errors of the draft, of the target and of plain decoding are treated as independent. That makes the interval wide,
    because the part that draft and target share would cancel. The host's error is shared: it cancels where launches limit both
    models equally.
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
    once = (1,) * len(runs)
    return Speedup(
        tokens_per_s=_rate(runs, once),
        plain_tokens_per_s=_rate(plain, once),
        speedup=_interval(runs, plain, error_frac),
        round_cost=cost,
    )


def _rate(runs: Sequence[Decoded], weights: Sequence[int]) -> TokensPerS:
    """Total tokens over total seconds, each prompt counted with its weight."""
    tokens = sum(weight * run.num_tokens for weight, run in zip(weights, runs, strict=True))
    return tokens / math.fsum(weight * run.decode_s for weight, run in zip(weights, runs, strict=True))


def _interval(runs: Sequence[Decoded], plain: Sequence[Decoded], error_frac: Frac) -> Interval:
    """The ratio of totals, with a bootstrap over prompts and a lognormal error added in quadrature on each side."""
    value = _rate(runs, (1,) * len(runs)) / _rate(plain, (1,) * len(plain))
    resampled = _resampled_ratios(runs, plain)
    outside = round((1 - INTERVAL_FRAC) / 2 * (len(resampled) - 1))
    error = NORMAL_QUANTILE * error_frac
    below = math.hypot(min(0.0, math.log(resampled[outside] / value)), error)
    above = math.hypot(max(0.0, math.log(resampled[-1 - outside] / value)), error)
    return ratio_interval(value, below=below, above=above)


def _resampled_ratios(runs: Sequence[Decoded], plain: Sequence[Decoded]) -> list[float]:
    """Ratios of totals over resampled prompts, rising. Both arms of a prompt are drawn together."""
    import numpy as np

    pairs = zip(runs, plain, strict=True)
    columns = [(run.num_tokens, run.decode_s, plain_run.num_tokens, plain_run.decode_s) for run, plain_run in pairs]
    tokens, seconds, plain_tokens, plain_s = (resample_counts(len(runs)) @ np.array(columns)).T
    ratios: list[float] = np.sort(tokens / seconds * plain_s / plain_tokens).tolist()
    return ratios
