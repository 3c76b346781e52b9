"""What a metrics file yields, whatever its format, and the arithmetic that several formats share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from calibrate.engine_metrics.fields import FIX, Fields
from perfmodel.core.errors import BadFile
from perfmodel.core.units import Seconds, Tokens
from perfmodel.results.engine_report import EngineCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Counters of one run of one engine. The fields are those of `EngineReport`."""

    engine: str | None
    version: str | None = None
    model: str | None = None
    weights: str | None = None
    target_sha256: str | None = None
    draft_sha256: str | None = None
    exit_layer: int | None = None
    draft_tokens: Tokens | None = None
    concurrency: int | None = None
    runs: tuple[EngineCounts, ...]
    plain_runs: tuple[EngineCounts, ...] = ()
    plain_token_s: Seconds | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCounts:
    """Counters of verifications, checked against each other."""

    num_rounds: int
    num_drafted: int
    num_accepted: int
    accepted_by_position: tuple[int, ...] = ()


def checked_rounds(path: Path, where: str, counts: RoundCounts) -> RoundCounts:
    """The same counts.

    Raises:
        BadFile: more tokens accepted than drafted, drafted without a round, or positions that do not add up.
    """
    place = f"{where}: " if where else ""
    if counts.num_accepted > counts.num_drafted:
        problem = f"{counts.num_accepted} accepted of {counts.num_drafted} drafted tokens, expected at most as many"
        raise BadFile(path, f"{place}{problem}", FIX)
    if counts.num_drafted and not counts.num_rounds:
        raise BadFile(path, f"{place}{counts.num_drafted} drafted tokens in 0 rounds, expected at least one round", FIX)
    if counts.accepted_by_position and sum(counts.accepted_by_position) != counts.num_accepted:
        total = sum(counts.accepted_by_position)
        raise BadFile(path, f"{place}{total} accepted by position, {counts.num_accepted} in all, expected equal counts", FIX)
    return counts


def plain_steps(num_tokens: Tokens | None, counts: RoundCounts) -> int:
    """Steps without a draft, which some engines leave out of their rounds: tokens that no verification emitted.

    Accepted tokens beyond the length limit hide as many plain steps.
    """
    return max(0, num_tokens - counts.num_rounds - counts.num_accepted) if num_tokens is not None else 0


def beyond_limit_note(num_tokens: Tokens | None, counts: RoundCounts, engine: str) -> tuple[str, ...]:
    """Says how many of the counted tokens were not delivered, or that the engine may count such tokens."""
    if num_tokens is None:
        return (f"{engine} counts accepted tokens beyond the length limit, and the files do not say how many were delivered",)
    excess = counts.num_rounds + counts.num_accepted - num_tokens
    if excess <= 0:
        return ()
    return (f"{engine} counts {excess} tokens beyond the length limit: tokens per round are of delivered tokens",)


def plain_steps_note(steps: int, engine: str) -> tuple[str, ...]:
    """Says how many steps without a draft were added to the rounds."""
    return (f"{engine} leaves out rounds without a draft: {steps} were added from the tokens",) if steps else ()


def by_position(histogram: Sequence[int]) -> tuple[int, ...]:
    """Rounds that accepted at least i + 1 tokens, from the rounds that accepted exactly j."""
    return tuple(accumulate(reversed(histogram[1:])))[::-1]


def without_first_token(fields: Fields, key: str, num_tokens: int) -> Tokens:
    """Tokens of a request without the first, which the pass over the prompt emits.

    Raises:
        BadFile: the request emitted no token.
    """
    if num_tokens < 1:
        raise fields.error(key, "at least 1 token", num_tokens)
    return num_tokens - 1


def merged(parts: Sequence[Metrics]) -> Metrics:
    """Several files of one format and one run: their requests together, and each note once."""
    first = parts[0]
    return Metrics(
        engine=first.engine,
        version=first.version,
        model=first.model,
        weights=first.weights,
        target_sha256=first.target_sha256,
        draft_sha256=first.draft_sha256,
        exit_layer=first.exit_layer,
        draft_tokens=first.draft_tokens,
        concurrency=max((part.concurrency for part in parts if part.concurrency is not None), default=None),
        runs=tuple(run for part in parts for run in part.runs),
        plain_runs=tuple(run for part in parts for run in part.plain_runs),
        plain_token_s=first.plain_token_s,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )
