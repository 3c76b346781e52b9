"""Counts of rounds, predicted by replay or measured by a run.

Both use the same record, so an error is a difference.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from perfmodel.core.units import format_frac
from perfmodel.passes.passes import ColdCount, PassCount, PassKind, PassName


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStats:
    """Counts over the rounds of one prompt or of several.

    A round emits its accepted tokens and the bonus. Tokens cut off by an end-of-text token or the length limit are not
    counted anywhere.
    """

    num_prompts: int
    num_rounds: int
    num_tokens: int
    """Emitted tokens, the bonus of every round included."""
    num_drafted: int
    num_accepted: float
    """Drafted tokens that were accepted, without the bonus."""
    drafted_by_position: tuple[int, ...]
    """Entry i: rounds that drafted at least i + 1 tokens; as long as the longest draft."""
    accepted_by_position: tuple[float, ...]
    """Entry i: rounds that accepted at least i + 1 tokens; as long as the longest draft."""
    exits_taken: tuple[int, ...]
    """Drafted tokens by the exit where they left, for every exit of the draft."""
    passes: tuple[PassCount, ...]
    cold_passes: tuple[ColdCount, ...]
    """Passes whose place in the round makes them cold: they find few of their weights in the processor's caches."""

    @property
    def tokens_per_round(self) -> float:
        """Emitted tokens per round, bonus included: the engines' *acceptance length*, the papers' *mean accepted tokens*."""
        return self.num_tokens / self.num_rounds

    @property
    def accepted_per_round(self) -> float:
        """Accepted drafted tokens per round, without the bonus."""
        return self.num_accepted / self.num_rounds

    @property
    def accepted_frac(self) -> float | None:
        """Share of the drafted tokens that was accepted; None when nothing was drafted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else None

    def num_passes(self, kind: PassKind) -> int:
        """Passes of a kind, of all stages and rows."""
        return sum(count.num_passes for count in self.passes if count.kind == kind)

    def __str__(self) -> str:
        share = "" if self.accepted_frac is None else f" ({format_frac(self.accepted_frac)})"
        return (
            f"{self.tokens_per_round:.2f} tokens per round: {self.num_tokens} tokens in {self.num_rounds} rounds; "
            f"{self.num_accepted:g} of {self.num_drafted} drafted tokens accepted{share}"
        )


def sum_rounds(stats: Iterable[RoundStats]) -> RoundStats:
    """Add up the counts of several prompts."""
    parts = list(stats)
    if len(parts) == 1:
        return parts[0]
    counts: Counter[PassName] = Counter()
    cached: Counter[PassName] = Counter()
    cold: Counter[PassName] = Counter()
    for part in parts:
        for passes in part.passes:
            key = (passes.kind, passes.stage, passes.rows)
            counts[key] += passes.num_passes
            cached[key] += passes.cached_tokens_sum
        for count in part.cold_passes:
            cold[count.kind, count.stage, count.place] += count.num_passes
    return RoundStats(
        num_prompts=sum(part.num_prompts for part in parts),
        num_rounds=sum(part.num_rounds for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        num_drafted=sum(part.num_drafted for part in parts),
        num_accepted=sum(part.num_accepted for part in parts),
        drafted_by_position=_sum_columns(part.drafted_by_position for part in parts),
        accepted_by_position=_sum_columns(part.accepted_by_position for part in parts),
        exits_taken=_sum_columns(part.exits_taken for part in parts),
        passes=pass_counts(counts, cached),
        cold_passes=cold_counts(cold),
    )


def pass_counts(counts: Counter[PassName], cached: Counter[PassName]) -> tuple[PassCount, ...]:
    """Sorted records from counters keyed by (kind, stage, rows)."""
    return tuple(
        PassCount(kind=kind, stage=stage, rows=rows, num_passes=number, cached_tokens_sum=cached[kind, stage, rows])
        for (kind, stage, rows), number in sorted(counts.items())
    )


def cold_counts(counts: Counter[PassName]) -> tuple[ColdCount, ...]:
    """Sorted records from a counter keyed by (kind, stage, place)."""
    return tuple(
        ColdCount(kind=kind, stage=stage, place=place, num_passes=number)
        for (kind, stage, place), number in sorted(counts.items())
    )


def _sum_columns(rows: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(sum(column) for column in zip_longest(*rows, fillvalue=0))
