"""What replay is, told token by token, the way the algorithm goes: meant to be read, and what the fast one is held to.

`native/` tells the same hundreds of times faster; where it was not compiled, this is what runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from perfmodel.acceptance.off_path_trace import stand_in
from perfmodel.acceptance.trace import Trace
from perfmodel.passes.passes import COLD_PLACES
from perfmodel.policies.policy import Policy
from perfmodel.replay.counts import ACCEPTED, AHEAD, BLOCK, COLD, EXIT, ROUND, SEGMENT, TAKEN, VERIFY
from perfmodel.replay.layout import draws

Entry: TypeAlias = tuple[int, int, int, int, int, int]
"""The fields of `perfmodel.replay.counts.ENTRY`."""


def tell(trace: Trace, policies: Sequence[Policy | None], *, by_prompt: bool, keep_blocks: bool) -> Iterator[Entry]:
    """What each policy does: see `perfmodel.replay.compiled.count_replay`."""
    text, num_prompts, group = _Text(trace), len(trace.header.prompts), 0
    for policy in policies:
        log, blocks = _Log(), []
        for number in range(num_prompts):
            blocks += _run_prompt(text, number, policy, log)
            if by_prompt or number == num_prompts - 1:
                yield from log.entries(group, blocks if keep_blocks else [])
                log, blocks, group = _Log(), [], group + 1


class _Text:
    """A trace, asked one position at a time; past the end of a text its last position stands in, and nothing is right."""

    def __init__(self, trace: Trace) -> None:
        header, off_path = trace.header, stand_in(trace.confidence, trace.off_path)
        self.header = header
        self.eos = header.eos_token_id
        self.confidence_on_path = trace.confidence.tolist()
        self.confidence_off_path = self.confidence_on_path if off_path is None else off_path.tolist()
        self.accepted = (draws(trace)[:, None] < trace.accept_prob).tolist()
        self.drafted, self.truth = trace.draft_token.tolist(), trace.target_token.tolist()
        self.prompt_tokens = [prompt.prompt_tokens for prompt in header.prompts]
        self.num_positions = [prompt.num_positions for prompt in header.prompts]
        self.first_row = [sum(self.num_positions[:number]) for number in range(len(header.prompts))]

    def confidence(self, number: int, step: int, exit_id: int, *, is_true: bool) -> float:
        """What an exit says, where all of the block's tokens so far are right and where not."""
        row = self.first_row[number] + min(step, self.num_positions[number] - 1)
        said: float = (self.confidence_on_path if is_true else self.confidence_off_path)[row][exit_id]
        return said

    def is_accepted(self, number: int, step: int, exit_id: int) -> bool:
        """Whether the target takes an exit's token."""
        return step < self.num_positions[number] and self.accepted[self.first_row[number] + step][exit_id]

    def is_end(self, number: int, step: int, exit_id: int) -> bool:
        """Whether an exit's token ends the text."""
        if step >= self.num_positions[number] or self.eos is None:
            return False
        row = self.first_row[number] + step
        is_truth = self.truth[row] == self.eos
        if self.is_accepted(number, step, exit_id):
            return bool(is_truth)
        return bool(self.drafted[row][exit_id] == self.eos and not is_truth)


class _Log:
    """Everything that ran."""

    def __init__(self) -> None:
        self.counts: defaultdict[tuple[int, int, int], int] = defaultdict(int)
        self.cached: defaultdict[tuple[int, int, int], int] = defaultdict(int)
        self.in_round: defaultdict[tuple[int, int], int] = defaultdict(int)

    def add(self, what: int, stage: int, size: int, cached_tokens: int = 0) -> None:
        """A pass or anything else."""
        self.counts[what, stage, size] += 1
        self.cached[what, stage, size] += cached_tokens

    def run(self, kind: int, stage: int, rows: int, cached_tokens: int = 0) -> None:
        """A pass, and its place in its round."""
        self.add(kind, stage, rows, cached_tokens)
        if kind == VERIFY:
            depth = len({segment for ran, segment in self.in_round if ran in (SEGMENT, AHEAD)})
            if depth > 1:
                self.add(COLD + VERIFY, 0, depth)
        elif kind == ROUND:
            self.in_round.clear()
        else:
            weights = kind, 0 if kind == EXIT else stage
            self.in_round[weights] += 1
            if self.in_round[weights] <= COLD_PLACES:
                self.add(COLD + kind, weights[1], self.in_round[weights])

    def entries(self, group: int, blocks: Sequence[tuple[int, int]]) -> Iterator[Entry]:
        """All of it, in order."""
        for drafted, accepted in blocks:
            yield group, BLOCK, 0, drafted, accepted, 0
        for (what, stage, size), number in sorted(self.counts.items()):
            yield group, what, stage, size, number, self.cached[what, stage, size]


class _Segments:
    """A draft's segments, and how many tokens each has processed."""

    def __init__(self, log: _Log, num_segments: int, prompt_tokens: int) -> None:
        self.log, self.processed = log, [prompt_tokens - 1] * num_segments

    def run(self, segment: int, known: int, kind: int = SEGMENT) -> None:
        """Run one over everything known that it has not processed."""
        cached = self.processed[segment]
        if cached < known:
            self.log.run(kind, segment, known - cached, cached)
            self.processed[segment] = known

    def roll_back(self, known: int) -> None:
        """Forget what was refused."""
        self.processed = [min(tokens, known) for tokens in self.processed]


def _run_prompt(text: _Text, number: int, policy: Policy | None, log: _Log) -> list[tuple[int, int]]:
    """Run every round of one prompt; their blocks as (drafted, accepted)."""
    header, num_positions, prompt_tokens = text.header, text.num_positions[number], text.prompt_tokens[number]
    segments = _Segments(log, len(header.draft.exit_layers), prompt_tokens)
    emitted, blocks, cap = 0, [], policy.first_cap if policy else 0
    while emitted < num_positions:
        known, room = prompt_tokens + emitted, header.max_new_tokens - emitted - 1
        left_at = _draft_block(text, number, policy, emitted, min(cap, room), segments) if policy else []
        if policy and header.draft.kind == "self":
            for segment in range(len(header.draft.exit_layers)):
                segments.run(segment, known + len(left_at))
        log.run(VERIFY, 0, len(left_at) + 1, known - 1)
        accepted = 0
        while accepted < len(left_at) and text.is_accepted(number, emitted + accepted, left_at[accepted]):
            accepted += 1
        log.run(ROUND, 0, len(left_at))
        log.add(ACCEPTED, 0, accepted)
        for exit_id in left_at:
            log.add(TAKEN, exit_id, 1)
        blocks.append((len(left_at), accepted))
        emitted += accepted + 1
        segments.roll_back(known + accepted)
        if policy:
            cap = policy.next_cap(cap, num_drafted=len(left_at), num_accepted=accepted)
    return blocks


def _draft_block(text: _Text, number: int, policy: Policy, emitted: int, most: int, segments: _Segments) -> list[int]:
    """The exits at which the tokens of one block leave."""
    exits, known = text.header.draft.exit_layers, text.prompt_tokens[number] + emitted
    looked = [exits.index(layer) for layer in policy.exits]
    survival, left_at, is_true = 1.0, [], True
    for drafted in range(most):
        step, segment = emitted + drafted, 0
        for place, exit_id in enumerate(looked):
            while segment <= exit_id:
                segments.run(segment, known + drafted)
                segment += 1
            if policy.runs_ahead and exit_id != looked[-1]:
                segments.run(segment, known + drafted, AHEAD)
                segment += 1
            else:
                segments.log.run(EXIT, exit_id, 1)
            confidence = text.confidence(number, step, exit_id, is_true=is_true)
            if exit_id == looked[-1] or confidence >= policy.thresholds[place]:
                break
        if policy.catches_up_at_once:
            for behind in range(segment, looked[-1] + 1):
                segments.run(behind, known + drafted)
        left_at.append(exit_id)
        is_true &= text.is_accepted(number, step, exit_id)
        survival = policy.next_survival(survival, place=place, confidence=confidence)
        if text.is_end(number, step, exit_id) or policy.stops(confidence=confidence, survival=survival):
            break
    return left_at
