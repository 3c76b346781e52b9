"""Replay: count the rounds of a policy along a recorded acceptance trace.

Greedy decoding and shared noise are replayed exactly, block by block. Under the ratio test, acceptance is drawn once per
position and shared by all policies. That is right in expectation, and noise does not hide differences between policies. After
a block's first rejected token, confidences are those off the text's path (`perfmodel.acceptance.off_path_trace`), or those on
it where too few were recorded. They affect the draft's cost only.

Letters: G replays (one per policy, or one per policy and prompt), N entries, S different passes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import BadPolicy, BadValue, quoted
from perfmodel.core.units import Floats
from perfmodel.passes.passes import ColdCount, Line, PassCount, PassKind
from perfmodel.policies.policy import Policy
from perfmodel.replay import reference
from perfmodel.replay.estimate import PassLatency, line_or_infinity, model_for
from perfmodel.replay.reference import COLD_KINDS, ENTRY_KINDS, ROUND_PASS_KINDS, Entry, EntryKind
from perfmodel.replay.round_stats import RoundStats

try:
    from perfmodel.replay import compiled
except ImportError:  # s2d was installed without a C compiler, or the compiled module belongs to another version
    compiled = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

Counts: TypeAlias = NDArray[np.int64]
Entries: TypeAlias = NDArray[Any]
"""[N]; the fields of `perfmodel.replay.reference.Entry`, a kind by its index in `ENTRY_KINDS`, group after group."""

_ENTRY = np.dtype([(name, np.int64) for name in Entry._fields])
_KIND_NUMBER: dict[EntryKind, int] = {kind: number for number, kind in enumerate(ENTRY_KINDS)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplayBatch:
    """Counts of G replays."""

    num_exits: int
    num_prompts: int
    """Prompts of each replay."""
    num_tokens: Counts  # [G]
    entries: Entries  # [N]

    @property
    def num_rounds(self) -> Counts:
        """Rounds of each replay. [G]."""
        rounds = self.entries[self.entries["kind"] == _KIND_NUMBER["round"]]
        summed: Counts = np.bincount(rounds["group"], rounds["number"], len(self.num_tokens)).astype(np.int64)
        return summed

    def seconds(self, draft: PassLatency | None, target: PassLatency) -> Floats:
        """Predicted seconds of each replay, without prefill; infinity where a pass has no evidence. [G].

        Args:
            draft: prices the draft's passes; None where nothing is drafted.
            target: prices all other passes.
        """
        warm = {_KIND_NUMBER[kind]: _warm_line(kind, draft, target) for kind in ROUND_PASS_KINDS}
        cold = {_KIND_NUMBER[cold_kind]: _cold_line(kind, draft, target) for kind, cold_kind in COLD_KINDS.items()}
        return self._seconds(warm) + self._seconds(cold)

    def _seconds(self, lines: Mapping[int, Callable[[int, int], Line]]) -> Floats:
        """Seconds of the entries of some kinds. The line of each different pass is looked up once. [G].

        Args:
            lines: by kind of entry, (stage, size) -> seconds by cached tokens.
        """
        is_priced = np.isin(np.arange(len(ENTRY_KINDS)), list(lines))
        entries = self.entries[is_priced[self.entries["kind"]]]
        num_sizes = int(entries["size"].max(initial=0)) + 1
        passes = (entries["kind"] * self.num_exits + entries["stage"]) * num_sizes + entries["size"]  # [N]; numbers each pass
        is_present = np.zeros(int(passes.max(initial=0)) + 1, np.bool_)
        is_present[passes] = True
        base_s, per_token_s = np.zeros((2, len(is_present)))
        for pass_number in np.flatnonzero(is_present).tolist():
            kind_and_stage, size = divmod(pass_number, num_sizes)
            kind, stage = divmod(kind_and_stage, self.num_exits)
            base_s[pass_number], per_token_s[pass_number] = lines[kind](stage, size)
        cost_s = entries["number"] * base_s[passes] + entries["cached"] * per_token_s[passes]
        total_s: Floats = np.bincount(entries["group"], cost_s, len(self.num_tokens)).astype(np.float64)
        return total_s

    def stats(self) -> tuple[RoundStats, ...]:
        """The record of each replay."""
        bounds = np.searchsorted(self.entries["group"], np.arange(len(self.num_tokens) + 1))
        return tuple(
            self._record(int(num_tokens), self.entries[first:past])
            for num_tokens, (first, past) in zip(self.num_tokens, pairwise(bounds.tolist()), strict=True)
        )

    def _record(self, num_tokens: int, entries: Entries) -> RoundStats:
        rows: dict[EntryKind, list[tuple[int, int, int, int]]] = {kind: [] for kind in ENTRY_KINDS}
        columns = (entries[name].tolist() for name in ("kind", "stage", "size", "number", "cached"))
        for kind_number, *row in zip(*columns, strict=True):
            rows[ENTRY_KINDS[kind_number]].append(tuple(row))
        drafted, accepted = ([(size, number) for _, size, number, _ in rows[kind]] for kind in ("round", "accepted"))
        taken = {stage: number for stage, _, number, _ in rows["taken"]}
        return RoundStats(
            num_prompts=self.num_prompts,
            num_rounds=sum(number for _, number in drafted),
            num_tokens=num_tokens,
            num_drafted=sum(size * number for size, number in drafted),
            num_accepted=float(sum(size * number for size, number in accepted)),
            drafted_by_position=_by_position(drafted, drafted),
            accepted_by_position=tuple(map(float, _by_position(accepted, drafted))),
            exits_taken=tuple(taken.get(stage, 0) for stage in range(self.num_exits)),
            passes=tuple(
                PassCount(kind=kind, stage=stage, rows=size, num_passes=number, cached_tokens_sum=cached)
                for kind in ROUND_PASS_KINDS
                for stage, size, number, cached in rows[kind]
            ),
            cold_passes=tuple(
                ColdCount(kind=kind, stage=stage, place=size, num_passes=number)
                for kind, cold_kind in COLD_KINDS.items()
                for stage, size, number, _ in rows[cold_kind]
            ),
        )


def replay(trace: Trace, policy: Policy | None) -> RoundStats:
    """Counts of a policy's rounds over all prompts of a trace, as one record.

    Args:
        trace: predictions of every exit along the target's text: `Trace.from_arrays`, `Trace.load` or `Profile.trace`.
        policy: which exits draft how many tokens. None is plain decoding.

    Returns:
        Tokens, rounds, accepted tokens and passes; `tokens_per_round` is their ratio.

    Raises:
        BadPolicy: the policy uses an exit that the traced draft does not have, or another confidence measure.

    Example:
        >>> trace = s2d.Trace.from_arrays([[0.9], [0.8], [0.7], [0.6]], [[1], [1], [0], [1]], exits=(6,))
        >>> print(s2d.replay(trace, s2d.Policy(exits=(6,), tokens=2)))
        2.00 tokens per round: 4 tokens in 2 rounds; 2 of 2 drafted tokens accepted (100.0 %)
    """
    [stats] = replay_batch(trace, [policy]).stats()
    return stats


def replay_prompts(trace: Trace, policy: Policy | None) -> tuple[RoundStats, ...]:
    """Counts of a policy's rounds by prompt: one record for each, in the order of the trace.

    Args:
        trace: as for `replay`.
        policy: as for `replay`.

    Raises:
        BadPolicy: the policy uses an exit that the traced draft does not have, or another confidence measure.

    Example:
        >>> trace = s2d.Trace.from_arrays([[0.9], [0.8], [0.7], [0.6]], [[1], [1], [0], [1]], exits=(6,), prompts=[3, 1])
        >>> [rounds.num_rounds for rounds in s2d.replay_prompts(trace, s2d.Policy(exits=(6,), tokens=2))]
        [1, 1]
    """
    return replay_batch(trace, [policy], by_prompt=True).stats()


def replay_batch(trace: Trace, policies: Sequence[Policy | None], *, by_prompt: bool = False) -> ReplayBatch:
    """Counts of many policies' rounds, thousands of policies a second.

    Args:
        trace: predictions of every exit along the target's text.
        policies: None is plain decoding.
        by_prompt: one replay for each prompt of each policy, policy after policy, instead of one for each policy.

    Raises:
        BadPolicy: a policy uses an exit that the traced draft does not have, or another confidence measure.
    """
    if not isinstance(trace, Trace):
        raise BadValue(f"trace is {quoted(trace)}: expected a Trace, such as Trace.load('trace.npz')")
    num_tokens = [prompt.num_positions for prompt in trace.header.prompts]
    by_group = num_tokens if by_prompt else [sum(num_tokens)]
    return ReplayBatch(
        num_exits=len(trace.header.exit_layers),
        num_prompts=1 if by_prompt else len(num_tokens),
        num_tokens=np.array(by_group * len(policies), np.int64),
        entries=_count(trace, policies, by_prompt=by_prompt, keep_blocks=False),
    )


def block_lengths(trace: Trace, policy: Policy | None) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Drafted and accepted tokens of every round, by prompt: what a run must reproduce block by block."""
    entries = _count(trace, [policy], by_prompt=True, keep_blocks=True)
    blocks = entries[entries["kind"] == _KIND_NUMBER["block"]]
    lengths = list(zip(blocks["size"].tolist(), blocks["number"].tolist(), strict=True))
    bounds = np.searchsorted(blocks["group"], np.arange(len(trace.header.prompts) + 1)).tolist()
    return tuple(tuple(lengths[first:past]) for first, past in pairwise(bounds))


def _count(trace: Trace, policies: Sequence[Policy | None], *, by_prompt: bool, keep_blocks: bool) -> Entries:
    for policy in filter(None, policies):
        _check(trace, policy)
    if compiled is not None:
        return compiled.count_entries(trace, policies, by_prompt=by_prompt, keep_blocks=keep_blocks)
    _warn_not_compiled()
    return as_array(reference.count_entries(trace, policies, by_prompt=by_prompt, keep_blocks=keep_blocks))


def as_array(entries: Iterable[Entry]) -> Entries:
    """Entries of the reference implementation as an array."""
    return np.array([entry._replace(kind=_KIND_NUMBER[entry.kind]) for entry in entries], _ENTRY)  # type: ignore[arg-type]


@cache
def _warn_not_compiled() -> None:
    if find_spec("perfmodel.replay._native"):
        problem, fix = "the compiled replay belongs to another version of s2d", "Install s2d again"
    else:
        problem, fix = "replay was not compiled when s2d was installed", "Install a C compiler, then install s2d again"
    log.warning("%s: the reference implementation runs, which takes hundreds of times as long. %s.", problem, fix)


def _check(trace: Trace, policy: Policy) -> None:
    if not isinstance(policy, Policy):
        raise BadPolicy(f"a {type(policy).__name__}", "a Policy, such as plan.policy, or None for plain decoding")
    header = trace.header
    unknown = [layer for layer in policy.exits if layer not in header.exit_layers]
    if unknown:
        raise BadPolicy(f"the traced draft has no exit {unknown[0]}", f"exits among {header.exit_layers!r}")
    if policy.confidence != header.confidence:
        raise BadPolicy(f"confidence {policy.confidence!r}", f"{header.confidence!r}, which the trace holds")


def _warm_line(kind: PassKind, draft: PassLatency | None, target: PassLatency) -> Callable[[int, int], Line]:
    """(stage, rows) -> seconds of a warm pass."""
    model = model_for(kind, draft, target)
    return lambda stage, rows: line_or_infinity(model, kind, stage, rows)


def _cold_line(kind: PassKind, draft: PassLatency | None, target: PassLatency) -> Callable[[int, int], Line]:
    """(stage, place) -> extra seconds of a cold pass."""
    model = model_for(kind, draft, target)
    return lambda stage, place: Line(model.cold_s(kind, stage, place), 0.0)


def _by_position(rounds: Sequence[tuple[int, int]], drafted: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Entry i: rounds of at least i + 1 tokens, from (tokens, rounds) pairs; as long as the longest draft."""
    longest = max((tokens for tokens, _ in drafted), default=0)
    return tuple(sum(number for tokens, number in rounds if tokens > position) for position in range(longest))
