"""Up to how many sequences at a time speculation pays, and how long to draft until then: what serving engines are told.

In a batch every weight is read once for all sequences, so verifying k + 1 rows of each soon costs arithmetic that plain
decoding does not do, while reading their caches is shared by the rows and keeps paying: the longer the context, the larger
the batch at which speculation stops. Sequences are accepted each at its own length, but draft in step, so a schedule is told
for one exit that always answers and a fixed draft length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

from calibrate.pricing.datasheet_pricing import Pricing, memory_needed
from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from perfmodel.acceptance.trace import Trace
from perfmodel.core.units import Seconds, Tokens
from perfmodel.hardware.hardware import MEMORY_HEADROOM_FRAC
from perfmodel.latency.latency_model import LatencyModel
from perfmodel.passes.passes import PassKind
from perfmodel.policies.policy import Policy
from perfmodel.replay.replay import replay_batch
from perfmodel.results.plan import BatchPoint, BatchSchedule

MAX_BATCH = 1024
LONG_CONTEXT_RATIO = 8
"""The second context over the first, as far as the models reach."""

AtBatch = Callable[[int], tuple[LatencyModel, LatencyModel]]
"""Draft and target with so many sequences in every pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One exit that always answers, at one draft length."""

    stage: int
    exit_layer: int
    draft_tokens: Tokens
    tokens_per_round: float


def batch_schedules(trace: Trace, pricing: Pricing, *, context_tokens: Tokens) -> tuple[BatchSchedule, ...]:
    """Schedules at a context and at a long one; none where batches have no price."""
    if pricing.at_batch is None:
        return ()
    header = trace.header
    reach = min(header.target.max_context_tokens, header.draft.model.max_context_tokens)
    options = list(_options(trace))
    return tuple(
        batch_schedule(
            options,
            partial(_at_context, pricing.at_batch, context),
            context_tokens=context,
            fitting_batch=_fitting_batch(trace, pricing, context),
        )
        for context in dict.fromkeys((context_tokens, min(reach, LONG_CONTEXT_RATIO * context_tokens)))
    )


def _at_context(
    price: Callable[[int, Tokens], tuple[LatencyModel, LatencyModel]], context_tokens: Tokens, batch: int
) -> tuple[LatencyModel, LatencyModel]:
    return price(batch, context_tokens)


def _fitting_batch(trace: Trace, pricing: Pricing, context_tokens: Tokens) -> int | None:
    """The most sequences whose caches fit beside the weights; the plan's own always does."""
    header, capacity_bytes = trace.header, pricing.memory.capacity_bytes
    if capacity_bytes is None:
        return None
    weights = pricing.weights
    one = memory_needed(header.draft, header.target, weights, context_tokens=context_tokens, capacity_bytes=capacity_bytes)
    left = capacity_bytes * (1 - MEMORY_HEADROOM_FRAC) - one.target_weight_bytes - one.draft_weight_bytes
    return max(1, int(left // (one.target_kv_bytes + one.draft_kv_bytes)))


def batch_schedule(
    options: Sequence[Option],
    at_batch: AtBatch,
    *,
    context_tokens: Tokens,
    fitting_batch: int | None,
    max_batch: int = MAX_BATCH,
) -> BatchSchedule:
    """What to draft at batches of 1, 2, 4, ..., and where speculation stops paying.

    Args:
        options: what can be drafted.
        at_batch: prices.
        context_tokens: in the cache of every sequence.
        fitting_batch: the most sequences whose caches fit, told and not held to: more devices hold more.
        max_batch: where to end.
    """
    points: list[BatchPoint] = []
    for batch in _doublings(max_batch):
        points.append(_best(options, at_batch, batch, context_tokens))
        if not points[-1].draft_tokens:
            break
    stops = None if points[-1].draft_tokens else _first_without(options, at_batch, points, context_tokens)
    return BatchSchedule(
        context_tokens=context_tokens,
        points=tuple(points),
        max_batch=max_batch,
        stops_at_batch=stops,
        fitting_batch=fitting_batch,
    )


def _options(trace: Trace) -> Iterator[Option]:
    """Every exit at every length, with the tokens a round gives."""
    cells = [
        (stage, layer, length)
        for stage, layer in enumerate(trace.header.exit_layers)
        for length in range(1, MAX_DRAFT_TOKENS + 1)
    ]
    confidence = trace.header.confidence
    batch = replay_batch(
        trace,
        [Policy(exits=(layer,), tokens=length, confidence=confidence) for _, layer, length in cells],
    )
    rates = batch.num_tokens / batch.num_rounds
    for (stage, layer, length), rate in zip(cells, rates.tolist(), strict=True):
        yield Option(stage=stage, exit_layer=layer, draft_tokens=length, tokens_per_round=rate)


def _doublings(most: int) -> Iterator[int]:
    batch = 1
    while batch <= most:
        yield batch
        batch *= 2


def _speedups(at_batch: AtBatch, batch: int, context_tokens: Tokens) -> Callable[[Option], float]:
    """What an option gives at a batch, over plain decoding."""
    draft, target = at_batch(batch)

    def pass_s(model: LatencyModel, kind: PassKind, stage: int, rows: int) -> Seconds:
        return model.line(kind, stage, rows).at(context_tokens)

    @cache
    def token_s(last: int) -> Seconds:
        return sum(pass_s(draft, "segment", stage, 1) for stage in range(last + 1)) + pass_s(draft, "exit", last, 1)

    @cache
    def verify_s(draft_tokens: Tokens) -> Seconds:
        return pass_s(target, "verify", 0, draft_tokens + 1) + pass_s(target, "round", 0, draft_tokens)

    def speedup(option: Option) -> float:
        round_s = option.draft_tokens * token_s(option.stage) + verify_s(option.draft_tokens)
        return option.tokens_per_round * verify_s(0) / round_s

    return speedup


def _best(options: Sequence[Option], at_batch: AtBatch, batch: int, context_tokens: Tokens) -> BatchPoint:
    """The fastest option at a batch, or none of them."""
    gain = _speedups(at_batch, batch, context_tokens)
    best = max(options, key=gain)
    if gain(best) <= 1:
        return BatchPoint(batch=batch, exit_layer=None, draft_tokens=0, speedup=1.0)
    return BatchPoint(batch=batch, exit_layer=best.exit_layer, draft_tokens=best.draft_tokens, speedup=gain(best))


def _first_without(options: Sequence[Option], at_batch: AtBatch, points: list[BatchPoint], context_tokens: Tokens) -> int:
    """The smallest batch at which nothing pays, between the last two points, by bisection."""
    high, (low, last) = points[-1].batch, (points[-2].batch, points[-2].draft_tokens) if len(points) > 1 else (0, 0)
    likely = sorted(options, key=lambda one: abs(one.draft_tokens - last))
    while high - low > 1:
        middle = (low + high) // 2
        gain = _speedups(at_batch, middle, context_tokens)
        if any(gain(option) > 1 for option in likely):
            low = middle
        else:
            high = middle
    return high
