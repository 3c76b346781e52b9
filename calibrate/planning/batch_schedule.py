"""Draft length by batch size, and the batch at which speculation stops paying.

In a batch, every weight is read once for all sequences. From some batch size on, verifying K + 1 rows per sequence is limited
by arithmetic that plain decoding does not need. A KV cache is read once for all rows of its sequence, which saves reads at any
batch size: the longer the context, the larger the batch at which speculation stops paying. Sequences draft in step, although
their accepted lengths differ. A schedule is therefore for one exit alone and a fixed draft length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from calibrate.pricing.draft_placement import drafted_token_s
from calibrate.pricing.pricing import Pricing, memory_needed
from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from perfmodel.acceptance.trace import Trace
from perfmodel.core.units import Frac, Seconds, Tokens
from perfmodel.engines.engine import RoundShape
from perfmodel.engines.round_shape import DEFAULT_SHAPE
from perfmodel.hardware.hardware import MEMORY_HEADROOM_FRAC
from perfmodel.latency.latency_model import LatencyModel
from perfmodel.policies.policy import Policy
from perfmodel.replay.replay import replay_batch
from perfmodel.results.plan import BatchPoint, BatchSchedule

MAX_BATCH = 1024
LONG_CONTEXT_RATIO = 8
"""Ratio of the second context to the first, as far as the models' maximum context allows."""

AtBatch = Callable[[int], tuple[LatencyModel, LatencyModel]]
"""Batch -> latency models of draft and target with this number of sequences in every pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One exit alone at one draft length."""

    stage: int
    exit_layer: int
    draft_tokens: Tokens
    tokens_per_round: float
    round_shape: RoundShape = DEFAULT_SHAPE
    """Passes of a round of the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleLimits:
    """What an engine executes of a schedule."""

    exits: tuple[int, ...]
    """Exits to choose from: an engine has loaded one of them."""
    lengths: range
    """Draft lengths to choose from."""
    max_batch: int | None
    """Sequences that it decodes together with a draft; None: no limit."""
    tie_frac: Frac = 0.0
    """Two lengths count as equally fast if their speedups differ by at most this share. The shortest is taken."""


def batch_schedules(
    trace: Trace, pricing: Pricing, *, context_tokens: Tokens, limits: ScheduleLimits | None = None
) -> tuple[BatchSchedule, ...]:
    """Schedules at a context and at a long one; empty if larger batches have no price.

    Args:
        trace: acceptance.
        pricing: of larger batches too.
        context_tokens: in the cache of every sequence.
        limits: of an engine; None takes every exit and every length of the search.
    """
    price_at = pricing.at_batch
    if price_at is None:
        return ()
    header = trace.header
    max_context = min(header.target.max_context_tokens, header.draft.model.max_context_tokens)
    if limits is None:
        limits = ScheduleLimits(exits=header.exit_layers, lengths=range(1, MAX_DRAFT_TOKENS + 1), max_batch=None)
    options = [replace(option, round_shape=pricing.round_shape) for option in _options(trace, limits)]
    return tuple(
        batch_schedule(
            options,
            partial(price_at, context_tokens=context),
            context_tokens=context,
            fitting_batch=_fitting_batch(trace, pricing, context),
            max_batch=limits.max_batch or MAX_BATCH,
            tie_frac=limits.tie_frac,
        )
        for context in dict.fromkeys((context_tokens, min(max_context, LONG_CONTEXT_RATIO * context_tokens)))
    )


def _fitting_batch(trace: Trace, pricing: Pricing, context_tokens: Tokens) -> int | None:
    """Largest batch whose caches fit beside the weights, at least the plan's 1; None if the memory is unknown."""
    header, capacity_bytes = trace.header, pricing.memory.capacity_bytes
    if capacity_bytes is None:
        return None
    single = memory_needed(
        header.draft, header.target, pricing.weights, context_tokens=context_tokens, capacity_bytes=capacity_bytes
    )
    free_bytes = capacity_bytes * (1 - MEMORY_HEADROOM_FRAC) - single.target_weight_bytes - single.draft_weight_bytes
    return max(1, int(free_bytes // (single.target_kv_bytes + single.draft_kv_bytes)))


def batch_schedule(
    options: Sequence[Option],
    at_batch: AtBatch,
    *,
    context_tokens: Tokens,
    fitting_batch: int | None,
    max_batch: int = MAX_BATCH,
    tie_frac: Frac = 0.0,
) -> BatchSchedule:
    """The fastest option at batches of 1, 2, 4, … and at the largest one, up to the first at which speculation does not pay.

    Args:
        options: exits and draft lengths to choose from.
        at_batch: prices.
        context_tokens: in the cache of every sequence.
        fitting_batch: largest batch whose caches fit in memory; larger batches are left out. None: unknown.
        max_batch: the largest batch to price if memory allows.
        tie_frac: see `ScheduleLimits`.
    """
    largest = max_batch if fitting_batch is None else min(max_batch, fitting_batch)
    points: list[BatchPoint] = []
    for batch in _batches_up_to(largest):
        points.append(_best_point(options, _speedups(at_batch, batch, context_tokens), batch, tie_frac))
        if not points[-1].draft_tokens:
            break
    stops = None if points[-1].draft_tokens else _break_even_batch(options, at_batch, points, context_tokens)
    return BatchSchedule(
        context_tokens=context_tokens,
        points=tuple(points),
        max_batch=largest,
        stops_at_batch=stops,
        fitting_batch=fitting_batch,
    )


def _options(trace: Trace, limits: ScheduleLimits) -> Iterator[Option]:
    """Every exit alone at every draft length, with its tokens per round."""
    cells = [
        (stage, layer, length)
        for stage, layer in enumerate(trace.header.exit_layers)
        if layer in limits.exits
        for length in limits.lengths
    ]
    confidence = trace.header.confidence
    batch = replay_batch(trace, [Policy(exits=(layer,), tokens=length, confidence=confidence) for _, layer, length in cells])
    rates = batch.num_tokens / batch.num_rounds
    for (stage, layer, length), rate in zip(cells, rates.tolist(), strict=True):
        yield Option(stage=stage, exit_layer=layer, draft_tokens=length, tokens_per_round=rate)


def _batches_up_to(largest: int) -> Iterator[int]:
    """1, 2, 4, … below the largest batch, and the largest batch."""
    batch = 1
    while batch < largest:
        yield batch
        batch *= 2
    yield largest


def _speedups(at_batch: AtBatch, batch: int, context_tokens: Tokens) -> Callable[[Option], float]:
    """Option -> its speedup over plain decoding of the same batch."""
    draft, target = at_batch(batch)

    @cache
    def token_s(last: int) -> Seconds:
        return drafted_token_s(draft, last + 1, context_tokens)

    @cache
    def verify_s(draft_tokens: Tokens) -> Seconds:
        verify, host = target.line("verify", 0, draft_tokens + 1), target.line("round", 0, draft_tokens)
        return verify.at(context_tokens) + host.at(context_tokens)

    def speedup(option: Option) -> float:
        round_s = option.draft_tokens * token_s(option.stage) + verify_s(option.draft_tokens)
        round_s += block_s(draft, option, context_tokens)
        return option.tokens_per_round * verify_s(0) / round_s

    return speedup


def block_s(draft: LatencyModel, option: Option, context_tokens: Tokens) -> Seconds:
    """What a round takes longer because the draft reads the verified block again; 0 where it does not."""
    stages, shape = range(option.stage + 1), option.round_shape
    if shape.rereads_block:
        rows = option.draft_tokens + 1
        segments_s = sum(draft.line("segment", stage, rows).at(context_tokens) for stage in stages)
        return segments_s + draft.line("exit", option.stage, rows).at(0)
    if not shape.starts_with_block:
        return 0.0
    wide, narrow = (
        sum(draft.line("segment", stage, rows).at(context_tokens) for stage in stages) for rows in (option.draft_tokens + 2, 1)
    )
    return wide - narrow


def _best_point(options: Sequence[Option], speedup: Callable[[Option], float], batch: int, tie_frac: Frac) -> BatchPoint:
    """The fastest option at a batch, or the shortest that is as fast; plain decoding if none pays."""
    fastest = max(options, key=speedup)
    if speedup(fastest) <= 1:
        return BatchPoint(batch=batch, exit_layer=None, draft_tokens=0, speedup=1.0)
    least = max(1.0, (1 - tie_frac) * speedup(fastest))
    equal = [option for option in options if option.exit_layer == fastest.exit_layer and speedup(option) >= least]
    best = min(equal, key=lambda option: option.draft_tokens)
    return BatchPoint(batch=batch, exit_layer=best.exit_layer, draft_tokens=best.draft_tokens, speedup=speedup(best))


def _break_even_batch(options: Sequence[Option], at_batch: AtBatch, points: list[BatchPoint], context_tokens: Tokens) -> int:
    """The smallest batch at which no option pays, by bisection between the last two points."""
    high, (low, length) = points[-1].batch, (points[-2].batch, points[-2].draft_tokens) if len(points) > 1 else (0, 0)
    likely_first = sorted(options, key=lambda option: abs(option.draft_tokens - length))
    while high - low > 1:
        middle = (low + high) // 2
        speedup = _speedups(at_batch, middle, context_tokens)
        if any(speedup(option) > 1 for option in likely_first):
            low = middle
        else:
            high = middle
    return high
