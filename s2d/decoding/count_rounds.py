"""From a run's blocks and laps to the record that replay predicts."""

from collections import Counter
from collections.abc import Sequence

from perfmodel.passes.passes import PREFILL_KINDS, PassName, is_cold, places, weights_key
from perfmodel.replay.round_stats import RoundStats, cold_counts, pass_counts
from s2d.decoding.clock import LapTag


def count_rounds(
    blocks: Sequence[tuple[int, int]], tags: Sequence[LapTag], *, num_tokens: int, exits_taken: Sequence[int]
) -> RoundStats:
    """What happened in the rounds of one prompt.

    Args:
        blocks: drafted and accepted tokens of every round.
        tags: kind, stage, rows and cached tokens of every lap; those over the prompt are in no round.
        num_tokens: emitted in all.
        exits_taken: drafted tokens by exit, over all exits there are.
    """
    counts: Counter[PassName] = Counter()
    cached: Counter[PassName] = Counter()
    cold: Counter[PassName] = Counter()
    for (kind, stage, rows, cached_tokens), place in zip(tags, places(tag[:2] for tag in tags), strict=True):
        if kind in PREFILL_KINDS:
            continue
        counts[kind, stage, rows] += 1
        cached[kind, stage, rows] += cached_tokens
        if is_cold(kind, place):
            cold[*weights_key(kind, stage), place] += 1
    positions = range(1, max(drafted for drafted, _ in blocks) + 1)
    return RoundStats(
        num_prompts=1,
        num_rounds=len(blocks),
        num_tokens=num_tokens,
        num_drafted=sum(drafted for drafted, _ in blocks),
        num_accepted=float(sum(accepted for _, accepted in blocks)),
        drafted_by_position=tuple(sum(drafted >= place for drafted, _ in blocks) for place in positions),
        accepted_by_position=tuple(float(sum(accepted >= place for _, accepted in blocks)) for place in positions),
        exits_taken=tuple(exits_taken),
        passes=pass_counts(counts, cached),
        cold_passes=cold_counts(cold),
    )
