"""Reference implementation of replay, token by token.

The compiled version is tested against it. The reference runs where s2d was
installed without a C compiler, hundreds of times slower.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from perfmodel.acceptance.off_path_trace import off_path_confidence
from perfmodel.acceptance.trace import Trace
from perfmodel.passes.passes import SEGMENT_KINDS, PassKind, is_cold, weights_key
from perfmodel.policies.policy import Policy

RoundPassKind = Literal["ahead", "exit", "round", "segment", "verify"]
ColdKind = Literal["cold ahead", "cold exit", "cold segment", "cold verify"]
EntryKind = Literal[RoundPassKind, "accepted", "taken", "block", ColdKind]
ROUND_PASS_KINDS: tuple[RoundPassKind, ...] = get_args(RoundPassKind)
"""Kinds of passes in rounds."""
COLD_KINDS: dict[PassKind, ColdKind] = {
    "ahead": "cold ahead",
    "exit": "cold exit",
    "segment": "cold segment",
    "verify": "cold verify",
}
"""By kind of pass, the kind of entry that counts its cold passes."""
ENTRY_KINDS: tuple[EntryKind, ...] = (*ROUND_PASS_KINDS, "accepted", "taken", "block", *COLD_KINDS.values())


class Entry(NamedTuple):
    """A count of equal events in a group, which is all rounds of one policy, or those of one policy and prompt."""

    group: int
    kind: EntryKind
    """Passes by their kind, cold passes once more, and three other events: `accepted` counts rounds by accepted tokens,
    `taken` counts drafted tokens by the exit where they left, `block` is a single round."""
    stage: int
    """Zero-based segment or exit; 0 for the target's passes."""
    size: int
    """Rows of a pass, tokens of a round, accepted tokens, drafted tokens of a block, or the place of a cold pass."""
    number: int
    """Number of events; accepted tokens of a block."""
    cached: int
    """Cached tokens of the passes, in sum."""


def count_entries(trace: Trace, policies: Sequence[Policy | None], *, by_prompt: bool, keep_blocks: bool) -> Iterator[Entry]:
    """Replay policies along a trace and count all events, group after group.

    Args:
        trace: predictions of every exit along the target's text.
        policies: None is plain decoding.
        by_prompt: groups hold one prompt each, policy after policy.
        keep_blocks: every round is also an entry of its own, in order.
    """
    predictions, num_prompts, group = _Predictions(trace), len(trace.header.prompts), 0
    for policy in policies:
        counter, blocks = _Counter(), []
        for prompt in range(num_prompts):
            blocks += _run_prompt(predictions, prompt, policy, counter)
            if by_prompt or prompt == num_prompts - 1:
                yield from counter.entries(group, blocks if keep_blocks else [])
                counter, blocks, group = _Counter(), [], group + 1


class _Predictions:
    """The predictions of a trace at a step of a prompt.

    A draft can run past the end of the text, after it missed an end-of-text token. Confidences of the last position are
    repeated there, and nothing is accepted.
    """

    def __init__(self, trace: Trace) -> None:
        off_path = off_path_confidence(trace.confidence, trace.off_path)
        self.header = trace.header
        self.confidence_on_path = trace.confidence.tolist()
        self.confidence_off_path = self.confidence_on_path if off_path is None else off_path.tolist()
        self.accepted = trace.accepted.tolist()
        self.drafted, self.truth = trace.draft_token.tolist(), trace.target_token.tolist()
        self.prompt_tokens = [prompt.prompt_tokens for prompt in trace.header.prompts]
        self.num_positions = [prompt.num_positions for prompt in trace.header.prompts]
        self.first_row = [sum(self.num_positions[:prompt]) for prompt in range(len(trace.header.prompts))]

    def confidence(self, prompt: int, step: int, exit_id: int, *, is_on_path: bool) -> float:
        """Confidence of an exit; on the path, all earlier tokens of the block are accepted."""
        row = self.first_row[prompt] + min(step, self.num_positions[prompt] - 1)
        confidence: float = (self.confidence_on_path if is_on_path else self.confidence_off_path)[row][exit_id]
        return confidence

    def is_accepted(self, prompt: int, step: int, exit_id: int) -> bool:
        """Whether the target accepts an exit's token."""
        return step < self.num_positions[prompt] and self.accepted[self.first_row[prompt] + step][exit_id]

    def ends_text(self, prompt: int, step: int, exit_id: int) -> bool:
        """Whether an exit's token is an end-of-text token."""
        eos = self.header.eos_token_id
        if step >= self.num_positions[prompt] or eos is None:
            return False
        row = self.first_row[prompt] + step
        is_truth = self.truth[row] == eos
        if self.is_accepted(prompt, step, exit_id):
            return bool(is_truth)
        return bool(self.drafted[row][exit_id] == eos and not is_truth)


class _Counter:
    """Counts of all events of a group."""

    def __init__(self) -> None:
        self.counts: defaultdict[tuple[EntryKind, int, int], int] = defaultdict(int)
        self.cached: defaultdict[tuple[EntryKind, int, int], int] = defaultdict(int)
        self.passes_in_round: defaultdict[tuple[PassKind, int], int] = defaultdict(int)

    def add(self, kind: EntryKind, stage: int, size: int, cached_tokens: int = 0) -> None:
        """Count an event."""
        self.counts[kind, stage, size] += 1
        self.cached[kind, stage, size] += cached_tokens

    def run(self, kind: RoundPassKind, stage: int, rows: int, cached_tokens: int = 0) -> None:
        """Count a pass, once more where its place in the round makes it cold. A `round` pass ends the round."""
        self.add(kind, stage, rows, cached_tokens)
        if kind == "round":
            self.passes_in_round.clear()
            return
        weights = weights_key(kind, stage)
        if kind == "verify":
            place = len({segment for ran, segment in self.passes_in_round if ran in SEGMENT_KINDS})
        else:
            self.passes_in_round[weights] += 1
            place = self.passes_in_round[weights]
        if is_cold(kind, place):
            self.add(COLD_KINDS[kind], weights[1], place)

    def entries(self, group: int, blocks: Sequence[tuple[int, int]]) -> Iterator[Entry]:
        """All counts, in the order of `ENTRY_KINDS`; blocks first."""
        for drafted, accepted in blocks:
            yield Entry(group, "block", 0, drafted, accepted, 0)
        for kind, stage, size in sorted(self.counts, key=lambda key: (ENTRY_KINDS.index(key[0]), *key[1:])):
            yield Entry(group, kind, stage, size, self.counts[kind, stage, size], self.cached[kind, stage, size])


class _Segments:
    """The draft's segments: how many tokens each has processed."""

    def __init__(self, counter: _Counter, num_segments: int, prompt_tokens: int) -> None:
        self.counter, self.processed = counter, [prompt_tokens - 1] * num_segments

    def run(self, segment: int, known: int, kind: RoundPassKind = "segment") -> None:
        """Run a segment over all known tokens that it has not processed, if there are any."""
        cached = self.processed[segment]
        if cached < known:
            self.counter.run(kind, segment, known - cached, cached)
            self.processed[segment] = known

    def roll_back(self, known: int) -> None:
        """Forget rejected tokens."""
        self.processed = [min(tokens, known) for tokens in self.processed]


def _run_prompt(predictions: _Predictions, prompt: int, policy: Policy | None, counter: _Counter) -> list[tuple[int, int]]:
    """Run every round of one prompt; its blocks as (drafted, accepted) tokens."""
    header, num_positions = predictions.header, predictions.num_positions[prompt]
    prompt_tokens = predictions.prompt_tokens[prompt]
    num_segments = len(header.exit_layers)
    segments = _Segments(counter, num_segments, prompt_tokens)
    emitted, blocks, cap = 0, [], policy.first_cap if policy else 0
    while emitted < num_positions:
        known, room = prompt_tokens + emitted, header.max_new_tokens - emitted - 1
        exits_taken = _draft_block(predictions, prompt, policy, emitted, min(cap, room), segments) if policy else []
        num_drafted = len(exits_taken)
        if policy and header.draft_kind == "self":  # verification starts from the draft's deepest states
            for segment in range(num_segments):
                segments.run(segment, known + num_drafted)
        counter.run("verify", 0, num_drafted + 1, known - 1)
        accepted = 0
        while accepted < num_drafted and predictions.is_accepted(prompt, emitted + accepted, exits_taken[accepted]):
            accepted += 1
        counter.run("round", 0, num_drafted)
        counter.add("accepted", 0, accepted)
        for exit_id in exits_taken:
            counter.add("taken", exit_id, 1)
        blocks.append((num_drafted, accepted))
        emitted += accepted + 1
        segments.roll_back(known + accepted)
        if policy:
            cap = policy.next_cap(cap, num_drafted=num_drafted, num_accepted=accepted)
    return blocks


def _draft_block(
    predictions: _Predictions, prompt: int, policy: Policy, emitted: int, cap: int, segments: _Segments
) -> list[int]:
    """Draft one block of at most `cap` tokens; the exit of each token that is not dropped."""
    exit_layers, known = predictions.header.exit_layers, predictions.prompt_tokens[prompt] + emitted
    active = [exit_layers.index(layer) for layer in policy.exits]
    survival, exits_taken, is_on_path = 1.0, [], True
    for drafted in range(cap):
        step, segment = emitted + drafted, 0
        for active_index, exit_id in enumerate(active):
            while segment <= exit_id:
                segments.run(segment, known + drafted)
                segment += 1
            if policy.runs_ahead and exit_id != active[-1]:
                segments.run(segment, known + drafted, "ahead")
                segment += 1
            else:
                segments.counter.run("exit", exit_id, 1)
            confidence = predictions.confidence(prompt, step, exit_id, is_on_path=is_on_path)
            if exit_id == active[-1] or confidence >= policy.thresholds[active_index]:
                break
        if policy.catches_up_at_once:
            for deeper in range(segment, active[-1] + 1):
                segments.run(deeper, known + drafted)
        if policy.drops(confidence=confidence):
            break
        exits_taken.append(exit_id)
        is_on_path &= predictions.is_accepted(prompt, step, exit_id)
        survival = policy.next_survival(survival, active_index=active_index, confidence=confidence)
        if predictions.ends_text(prompt, step, exit_id) or policy.stops(confidence=confidence, survival=survival):
            break
    return exits_taken
