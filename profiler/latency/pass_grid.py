"""Choose the passes to time, and a grid of policies that run them.

A pass is timed inside real rounds, after the passes that precede it in use. A small draft timed alone would find its weights in
caches that the target evicts in use. A grid is therefore a set of policies, spread over exit subsets, draft lengths and
thresholds. Together they run every pass shape of a plan with up to `draft_cap` drafted tokens.
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
"""A deeper segment processes up to draft_cap tokens of its round and two left over from a fully accepted round."""
MAX_SUBSETS = 31
"""All subsets of five exits. With more exits, the grid takes only subsets of neighbouring exits."""
LEAVE_FRACS = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
"""Shares of tokens that leave at a gated exit. High shares make long backlogs at later exits."""
FLOOR_FRACS = (0.05, 0.15, 0.3)
"""Shares of tokens at which the stop rule ends the block."""
RUNS_PER_SUBSET = 5
RUN_TOKENS: Tokens = 128
"""The length of a real output. The first rounds after a prompt run with cold caches, and get the same share as in use."""
BACKLOG_FRACS = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Backlogs wanted from long runs, as shares of the longest. Under a plan, tokens may leave early for a whole page."""
MAX_PUSHED = 8
"""The maximum number of tokens in a long run that continue past the first exit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilingRun:
    """One entry of the grid: a policy, and the tokens to decode under it."""

    policy: Policy
    new_tokens: Tokens
    text: int | None
    """The zero-based index of the text to decode, from the end of its prompt; None for any text, from any position."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PassKey:
    """The shape of a pass without its cached tokens, which vary as the text grows."""

    kind: PassKind
    stage: int
    rows: int

    @property
    def label(self) -> str:
        """The pass in messages: `segment 2 of 5 rows`, `exit check 2 of 1 row`. Exits count from 1, as segments do."""
        stage = f" {self.stage + 1}" if PASS_MODEL[self.kind] == "draft" else ""
        kind = "exit check" if self.kind == "exit" else kind_label(self.kind)
        return f"{kind}{stage} of {self.rows} row{'s' if self.rows != 1 else ''}"


def needed_passes(num_exits: int, draft_cap: int, *, runs_ahead: bool) -> frozenset[PassKey]:
    """All passes needed to price plans with at most `draft_cap` drafted tokens.

    Verification has 1 to draft_cap + 1 rows, as the bonus token comes first. Segment 1 has one or two rows. Later segments have
    a backlog, or one or two rows where tokens catch up at once. The segment that runs ahead of an exit that all tokens reach
    has one or two rows too.

    Args:
        num_exits: exits of the draft.
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
    """The sets of active exits to run: all sets, or only neighbouring exits if there would be too many."""
    layers = tuple(exit_layers)
    if 2 ** len(layers) - 1 <= MAX_SUBSETS:
        return tuple(itertools.chain.from_iterable(itertools.combinations(layers, n + 1) for n in range(len(layers))))
    return tuple(layers[start:end] for start, end in itertools.combinations(range(len(layers) + 1), 2))


def run_grid(traces: Sequence[Trace], *, draft_cap: int, seed: int, runs_ahead: bool) -> tuple[ProfilingRun, ...]:
    """The runs of a measurement: long ones for long backlogs, then short ones spread over all policies of a plan.

    Args:
        traces: one trace per text; thresholds are quantiles of their confidences.
        draft_cap: the longest draft to cover.
        seed: the seed of the random choices.
        runs_ahead: whether every other policy with several exits runs ahead.
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
    """Runs in which all but a few tokens leave at one exit. These few push long backlogs through the later segments.

    The positions of the few tokens decide the length of the backlogs, so candidates are replayed. For each exit but the last,
    the candidate with the longest backlog is taken; for the first exit also those nearest to `BACKLOG_FRACS` of it. When
    running ahead, the segment before the next exit has the backlog, and the few tokens leave at that exit.
    """
    chosen: list[ProfilingRun] = []
    exit_layers = traces[0].header.exit_layers
    gates: list[tuple[tuple[int, ...], bool]] = [((gate, -1), False) for gate in range(len(exit_layers) - 1)]
    if runs_ahead:
        gates += [((gate, gate + 1, -1), True) for gate in range(len(exit_layers) - 2)]
    for exits, is_ahead in gates:
        layers, gate = tuple(exit_layers[index] for index in exits), exits[0]
        runs = [run for text, trace in enumerate(traces) for run in _gated_runs(trace, text, layers, runs_ahead=is_ahead)]
        backlogs = np.array([longest_backlog(traces[run.text or 0], run.policy) for run in runs])
        for frac in BACKLOG_FRACS if gate == 0 and not is_ahead else (1.0,):
            chosen.append(runs[int(np.abs(backlogs - frac * backlogs.max()).argmin())])
    return chosen


def _gated_runs(trace: Trace, text: int, layers: tuple[int, ...], *, runs_ahead: bool) -> Iterator[ProfilingRun]:
    """Candidates for long runs: 1 to `MAX_PUSHED` tokens of the text continue past the first of these exits."""
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
    """Rows of the widest pass through a later segment, from a replay; 0 without such a pass."""
    passes = itertools.chain.from_iterable(rounds.passes for rounds in replay_prompts(trace, policy))
    return max((count.rows for count in passes if count.kind in SEGMENT_KINDS and count.stage > 0), default=0)


def _short_policies(
    exit_layers: Sequence[int], confidence: NDArray[np.float32], draft_cap: int, measure: Confidence, rng: np.random.Generator
) -> Iterator[Policy]:
    """`RUNS_PER_SUBSET` policies for each set of exits, with all lengths, gates and stop rules equally often."""
    caps = _permutations(rng, tuple(range(1, draft_cap + 1)))
    leaves = _permutations(rng, LEAVE_FRACS)
    floors = _permutations(rng, (None, None, *FLOOR_FRACS))
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
    """A threshold that about this share of the confidences reaches.

    It lies midway between two neighbouring distinct values, so rounding in the last bit cannot change a decision.
    """
    distinct = np.unique(confidence.astype(np.float64))
    if len(distinct) < 2:
        return 0.0
    quantile = np.quantile(confidence.astype(np.float64), 1 - leave_frac)
    upper = int(np.clip(np.searchsorted(distinct, quantile), 1, len(distinct) - 1))
    return float((distinct[upper - 1] + distinct[upper]) / 2)


def _stop_rule(confidence: NDArray[np.float32], stop_frac: float | None) -> ConfidenceFloor | None:
    return None if stop_frac is None else ConfidenceFloor(floor=threshold_leaving(confidence, 1 - stop_frac))


def _permutations(rng: np.random.Generator, choices: Sequence[T]) -> Iterator[T]:
    """Endless random permutations of the choices."""
    while True:
        for index in rng.permutation(len(choices)):
            yield choices[index]
