"""Which passes to time, and which policies make the runtime run them.

A pass is timed where it runs: inside real rounds, after the passes that really come before it (a small draft timed alone
sits in caches that the target empties in use). So a grid is a set of policies, spread over exit subsets, draft lengths
and thresholds, such that together they run every shape a plan up to `draft_cap` can ask for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from perfmodel.acceptance.trace import Trace
from perfmodel.core.units import Tokens
from perfmodel.passes.passes import PASS_MODEL, SEGMENT_KINDS, PassKind, kind_label
from perfmodel.policies.policy import Confidence, ConfidenceFloor, Policy
from perfmodel.replay.replay import replay_prompts

T = TypeVar("T")

BACKLOG_MARGIN = 2
"""A deeper segment meets up to draft_cap tokens of this round and the two that a fully accepted round leaves."""
MAX_SUBSETS = 31
"""All subsets of up to five exits; a draft with more is covered by runs of neighbouring exits."""
LEAVE_FRACS = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
"""Shares of tokens that leave at a gated exit: high ones make the long backlogs of the exits below."""
FLOOR_FRACS = (0.05, 0.15, 0.3)
"""Shares of tokens after which a stop rule ends the block."""
RUNS_PER_SUBSET = 5
RUN_TOKENS: Tokens = 128
"""As long as a real output: the first rounds after a prompt run with cold caches, and must weigh in the mean as much as they do
in use."""
BACKLOG_FRACS = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Backlogs that long runs aim at, as shares of the longest: nothing forbids a plan that leaves early for a whole page."""
MAX_PUSHED = 8
"""Most tokens of a long run that do not leave at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilingRun:
    """One entry of the grid: decode so many new tokens under a policy."""

    policy: Policy
    new_tokens: Tokens
    text: int | None
    """The text to decode, zero-based, from its prompt's end; None is any, from anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PassKey:
    """A pass but for its cached tokens, which vary by themselves as text grows."""

    kind: PassKind
    stage: int
    rows: int

    @property
    def label(self) -> str:
        """`segment 2 of 5 rows`, `verify of 4 rows`: as messages name it."""
        stage = f" {self.stage + 1}" if PASS_MODEL[self.kind] == "draft" else ""
        return f"{kind_label(self.kind)}{stage} of {self.rows} row{'s' if self.rows != 1 else ''}"


def needed_passes(num_exits: int, draft_cap: int, *, runs_ahead: bool) -> frozenset[PassKey]:
    """Every pass that a plan of at most `draft_cap` drafted tokens is priced from.

    Verify rows run to draft_cap + 1 (the lead comes first), segment 1 has one or two rows, later segments a backlog, or one or
    two rows where tokens catch up at once. What runs ahead of an exit that every token comes to has one or two rows too.

    Args:
        num_exits: of the draft.
        draft_cap: the longest draft to cover.
        runs_ahead: whether plans may run ahead.
    """
    deepest = draft_cap + BACKLOG_MARGIN
    kinds: tuple[PassKind, ...] = SEGMENT_KINDS if runs_ahead else ("segment",)
    segments = {
        PassKey(kind=kind, stage=stage, rows=rows)
        for first, kind in enumerate(kinds)
        for stage in range(first, num_exits)
        for rows in range(1, 1 + (2 if stage == first else deepest))
    }
    exits = {PassKey(kind="exit", stage=stage, rows=1) for stage in range(num_exits)}
    verifies = {PassKey(kind="verify", stage=0, rows=rows) for rows in range(1, draft_cap + 2)}
    rounds = {PassKey(kind="round", stage=0, rows=rows) for rows in range(draft_cap + 1)}
    return frozenset(segments | exits | verifies | rounds)


def exit_subsets(exit_layers: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The sets of active exits to run: all of them, or every run of neighbours where there would be too many."""
    layers = tuple(exit_layers)
    if 2 ** len(layers) - 1 <= MAX_SUBSETS:
        return tuple(itertools.chain.from_iterable(itertools.combinations(layers, n + 1) for n in range(len(layers))))
    return tuple(layers[start:end] for start, end in itertools.combinations(range(len(layers) + 1), 2))


def run_grid(traces: Sequence[Trace], *, draft_cap: int, seed: int, runs_ahead: bool) -> tuple[ProfilingRun, ...]:
    """The runs to take: one per text for long backlogs, then short ones spread over all a plan may ask for.

    Args:
        traces: one per text, of that text alone; thresholds lie on the quantiles of their confidences.
        draft_cap: the longest draft to cover.
        seed: of the spread.
        runs_ahead: whether every other policy of several exits is to run ahead.
    """
    header = traces[0].header
    run_tokens = min(RUN_TOKENS, header.max_new_tokens)
    confidence = np.concatenate([trace.confidence for trace in traces])
    rng = np.random.default_rng(seed)
    policies = list(_short_policies(header.exit_layers, confidence, draft_cap, header.confidence, rng))
    if runs_ahead:
        policies[1::2] = [replace(policy, runs_ahead=bool(policy.thresholds)) for policy in policies[1::2]]
    short = [ProfilingRun(policy=policy, new_tokens=run_tokens, text=None) for policy in policies]
    return (*_long_runs(traces, runs_ahead=runs_ahead), *short)


def _long_runs(traces: Sequence[Trace], *, runs_ahead: bool) -> list[ProfilingRun]:
    """ProfilingRuns in which all but a few tokens leave at one exit, so that these few push long backlogs through the later ones.

    Where the few lie decides how long a backlog grows, so candidates are replayed: for every exit but the last the one of
    the longest backlog is taken, and for the first exit also those that come nearest to `BACKLOG_FRACS` of it. Running ahead,
    the segment with the backlog is the one below the next exit, at which the few leave.
    """
    chosen: list[ProfilingRun] = []
    exit_layers = traces[0].header.exit_layers
    gates: list[tuple[tuple[int, ...], bool]] = [((gate, -1), False) for gate in range(len(exit_layers) - 1)]
    if runs_ahead:
        gates += [((gate, gate + 1, -1), True) for gate in range(len(exit_layers) - 2)]
    for exits, is_ahead in gates:
        layers, gate = tuple(exit_layers[place] for place in exits), exits[0]
        runs = [run for text, trace in enumerate(traces) for run in _gated_runs(trace, text, layers, runs_ahead=is_ahead)]
        backlogs = np.array([longest_backlog(traces[run.text or 0], run.policy) for run in runs])
        for frac in BACKLOG_FRACS if gate == 0 and not is_ahead else (1.0,):
            chosen.append(runs[int(np.abs(backlogs - frac * backlogs.max()).argmin())])
    return chosen


def _gated_runs(trace: Trace, text: int, layers: tuple[int, ...], *, runs_ahead: bool) -> Iterator[ProfilingRun]:
    """Candidates: of the text's tokens, one to `MAX_PUSHED` do not leave at the first of some exits."""
    num_tokens, gate = len(trace.target_token), trace.header.exit_layers.index(layers[0])
    for num_pushed in range(1, min(MAX_PUSHED, num_tokens) + 1):
        for draft_cap in (1, 2, 4):
            policy = Policy(
                exits=layers,
                thresholds=(threshold_leaving(trace.confidence[:, gate], 1 - num_pushed / num_tokens), 0.0)[: len(layers) - 1],
                tokens=draft_cap,
                confidence=trace.header.confidence,
                runs_ahead=runs_ahead,
            )
            yield ProfilingRun(policy=policy, new_tokens=num_tokens, text=text)


def longest_backlog(trace: Trace, policy: Policy) -> Tokens:
    """Rows of the widest pass through a later segment, by replay; 0 where there is none."""
    passes = itertools.chain.from_iterable(rounds.passes for rounds in replay_prompts(trace, policy))
    return max((count.rows for count in passes if count.kind in SEGMENT_KINDS and count.stage > 0), default=0)


def _short_policies(
    exit_layers: Sequence[int], confidence: NDArray[np.float32], draft_cap: int, measure: Confidence, rng: np.random.Generator
) -> Iterator[Policy]:
    """`RUNS_PER_SUBSET` policies for every set of exits, each length, gate and stop rule as often as any other."""
    caps = _in_turn(rng, tuple(range(1, draft_cap + 1)))
    leaves = _in_turn(rng, LEAVE_FRACS)
    floors = _in_turn(rng, (None, None, *FLOOR_FRACS))
    columns = {layer: confidence[:, column] for column, layer in enumerate(exit_layers)}
    for subset in exit_subsets(exit_layers):
        for _ in range(RUNS_PER_SUBSET):
            yield Policy(
                exits=subset,
                thresholds=tuple(threshold_leaving(columns[layer], next(leaves)) for layer in subset[:-1]),
                tokens=next(caps),
                stop=_stop_rule(columns[subset[-1]], next(floors)),
                confidence=measure,
            )


def threshold_leaving(confidence: NDArray[np.float32], leave_frac: float) -> float:
    """A threshold that about this share of the confidences reaches: midway between two neighbouring distinct ones.

    Midway, so that rounding in the last bit cannot flip a decision.
    """
    distinct = np.unique(confidence.astype(np.float64))
    if len(distinct) < 2:
        return 0.0
    wanted = np.quantile(confidence.astype(np.float64), 1 - leave_frac)
    upper = int(np.clip(np.searchsorted(distinct, wanted), 1, len(distinct) - 1))
    return float((distinct[upper - 1] + distinct[upper]) / 2)


def _stop_rule(confidence: NDArray[np.float32], stop_frac: float | None) -> ConfidenceFloor | None:
    return None if stop_frac is None else ConfidenceFloor(floor=threshold_leaving(confidence, 1 - stop_frac))


def _in_turn(rng: np.random.Generator, choices: Sequence[T]) -> Iterator[T]:
    """The choices for ever, each once before any comes again, every time in another order."""
    while True:
        for place in rng.permutation(len(choices)):
            yield choices[place]
