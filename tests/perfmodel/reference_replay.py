"""Replay one prompt token by token, the way the algorithm is told: slow, and meant to be read beside the vectorised one."""

import zlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from perfmodel.off_path import stand_in
from perfmodel.passes import COLD_PLACES
from perfmodel.policy import ExitPolicy, FloorStop, HeuristicLength, SurvivalStop
from perfmodel.rounds import RoundStats, cold_counts, pass_counts
from perfmodel.trace import AcceptanceTrace


@dataclass
class Draft:
    """A draft's processed tokens by segment, and a log of everything it ran."""

    processed: list[int]
    counts: Counter = field(default_factory=Counter)
    cached: Counter = field(default_factory=Counter)
    cold: Counter = field(default_factory=Counter)
    in_round: Counter = field(default_factory=Counter)

    def log(self, kind: str, stage: int, rows: int, cached_tokens: int) -> None:
        self.counts[kind, stage, rows] += 1
        self.cached[kind, stage, rows] += cached_tokens
        if kind == "verify":
            depth = len({stage for ran, stage in self.in_round if ran in ("segment", "ahead")})
            if depth > 1:
                self.cold["verify", 0, depth] += 1
        if kind in ("segment", "exit", "ahead"):
            weights = (kind, 0 if kind == "exit" else stage)
            self.in_round[weights] += 1
            if self.in_round[weights] <= COLD_PLACES:
                self.cold[*weights, self.in_round[weights]] += 1
        if kind == "round":
            self.in_round.clear()

    def run_segment(self, segment: int, known: int, kind: str = "segment") -> None:
        """Run a segment over everything known that it has not processed."""
        if self.processed[segment] < known:
            self.log(kind, segment, known - self.processed[segment], self.processed[segment])
            self.processed[segment] = known


class Prompt:
    """One prompt of a trace, asked one position at a time."""

    def __init__(self, trace: AcceptanceTrace, number: int) -> None:
        header = trace.header
        self.record = header.prompts[number]
        self.first_row = sum(prompt.num_positions for prompt in header.prompts[:number])
        self.trace, self.eos = trace, header.eos_token_id
        seed = (header.sampling.seed or 0, zlib.crc32(self.record.name.encode()))
        self.draws = np.random.default_rng(seed).random(self.record.num_positions)
        self.off_path = stand_in(trace.confidence, trace.off_path)

    def row(self, step: int) -> int:
        return self.first_row + min(step, self.record.num_positions - 1)

    def confidence(self, step: int, exit_id: int, *, is_true: bool) -> float:
        said = self.trace.confidence if is_true or self.off_path is None else self.off_path
        return float(said[self.row(step), exit_id])

    def is_accepted(self, step: int, exit_id: int) -> bool:
        if step >= self.record.num_positions:
            return False
        row = self.row(step)
        if self.trace.header.sampling.rule == "ratio":
            return bool(self.draws[step] < self.trace.accept_prob[row, exit_id])
        return bool(self.trace.draft_token[row, exit_id] == self.trace.target_token[row])

    def is_end(self, step: int, exit_id: int) -> bool:
        if step >= self.record.num_positions or self.eos is None:
            return False
        row = self.row(step)
        truth = self.trace.target_token[row] == self.eos
        if self.is_accepted(step, exit_id):
            return bool(truth)
        return bool(self.trace.draft_token[row, exit_id] == self.eos and not truth)


def draft_block(prompt: Prompt, draft: Draft, policy: ExitPolicy, emitted: int, cap: int) -> list[int]:
    """The exits at which the tokens of one block leave."""
    exits = prompt.trace.header.draft.exit_layers
    looked = [exits.index(layer) for layer in policy.exit_layers]
    known = prompt.record.prompt_tokens + emitted
    survival, left_at, is_true = 1.0, [], True
    for i in range(cap):
        step, segment = emitted + i, 0
        for place, exit_id in enumerate(looked):
            while segment <= exit_id:
                draft.run_segment(segment, known + i)
                segment += 1
            if policy.runs_ahead and exit_id != looked[-1]:
                draft.run_segment(segment, known + i, "ahead")
                segment += 1
            else:
                draft.log("exit", exit_id, 1, 0)
            confidence = prompt.confidence(step, exit_id, is_true=is_true)
            if exit_id == looked[-1] or confidence >= policy.thresholds[place]:
                break
        if policy.catches_up_at_once:
            for behind in range(segment, looked[-1] + 1):
                draft.run_segment(behind, known + i)
        left_at.append(exit_id)
        is_true &= prompt.is_accepted(step, exit_id)
        if prompt.is_end(step, exit_id):
            break
        if isinstance(policy.length, FloorStop) and confidence < policy.length.floor:
            break
        if isinstance(policy.length, SurvivalStop):
            survival *= policy.length.calibration[place](confidence)
            if survival < policy.length.floor:
                break
    return left_at


def replay_prompt(trace: AcceptanceTrace, number: int, policy: ExitPolicy | None) -> tuple[RoundStats, list[tuple[int, int]]]:
    """The record of one prompt, and its blocks as (drafted, accepted)."""
    prompt, header = Prompt(trace, number), trace.header
    num_exits, prompt_tokens = len(header.draft.exit_layers), prompt.record.prompt_tokens
    draft = Draft(processed=[prompt_tokens - 1] * num_exits)
    exits_taken, blocks, emitted = [0] * num_exits, [], 0
    cap = 0
    if policy:
        cap = policy.length.start if isinstance(policy.length, HeuristicLength) else policy.length.draft_cap
    while emitted < prompt.record.num_positions:
        remaining = header.max_new_tokens - emitted
        left_at = draft_block(prompt, draft, policy, emitted, min(cap, remaining - 1)) if policy else []
        known = prompt_tokens + emitted
        if policy and header.draft.kind == "self":
            for segment in range(num_exits):
                draft.run_segment(segment, known + len(left_at))
        draft.log("verify", 0, len(left_at) + 1, known - 1)
        accepted = 0
        while accepted < len(left_at) and prompt.is_accepted(emitted + accepted, left_at[accepted]):
            accepted += 1
        draft.log("round", 0, len(left_at), 0)
        blocks.append((len(left_at), accepted))
        for exit_id in left_at:
            exits_taken[exit_id] += 1
        emitted = min(emitted + accepted + 1, prompt.record.num_positions)
        draft.processed = [min(n, known + accepted) for n in draft.processed]
        if policy and isinstance(policy.length, HeuristicLength) and left_at:
            cap = min(cap + 2, policy.length.draft_cap) if accepted == len(left_at) else max(cap - 1, 1)
    return record(blocks, exits_taken, emitted, draft), blocks


def record(blocks: list[tuple[int, int]], exits_taken: list[int], emitted: int, draft: Draft) -> RoundStats:
    longest = max(drafted for drafted, _ in blocks)
    return RoundStats(
        num_prompts=1,
        num_rounds=len(blocks),
        num_tokens=emitted,
        num_drafted=sum(drafted for drafted, _ in blocks),
        num_accepted=float(sum(accepted for _, accepted in blocks)),
        drafted_by_position=tuple(sum(drafted > i for drafted, _ in blocks) for i in range(longest)),
        accepted_by_position=tuple(float(sum(accepted > i for _, accepted in blocks)) for i in range(longest)),
        exits_taken=tuple(exits_taken),
        passes=pass_counts(draft.counts, draft.cached),
        cold_passes=cold_counts(draft.cold),
    )
