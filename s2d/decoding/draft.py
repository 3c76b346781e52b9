"""One drafted block under an exit policy: the ladder of segments, the gates, the stop rule."""

from collections.abc import Iterable
from dataclasses import dataclass

from perfmodel.core.errors import BadPolicy
from perfmodel.policies.policy import Policy
from s2d.decoding.clock import Clock
from s2d.decoding.verify import Verifier
from s2d.model.cache import Cache, Segment
from s2d.model.decoder import Decoder, SegmentRun
from s2d.model.finite import check_confidence

_ALWAYS = -1.0
"""The threshold of the last looked-at exit: no confidence lies below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The ladder up to one looked-at exit, and what happens there. Exits passed on the way are disabled, and cost nothing."""

    run: SegmentRun
    """Segments since the exit before, less one that was launched before the answer of that exit was read."""
    exit_number: int
    """Zero-based, among all exits of the draft."""
    threshold: float
    place: int
    """Zero-based, among the policy's active exits."""
    ahead: Segment | None
    """What is launched before the exit's answer is read."""
    behind: SegmentRun
    """What catches up at once with a token that leaves here."""


class Ladder:
    """A decoder and its cache, segment by segment; policies may take turns on it, as no segment forgets what it has not seen.

    Args:
        decoder: the draft, or the target of a self draft.
        cache: its segments end at the draft's exits.
        prompt_rows: tokens of the prompt but its last, which leads the first round.
    """

    def __init__(self, decoder: Decoder, cache: Cache, prompt_rows: int) -> None:
        self.decoder = decoder
        self.cache = cache
        self._prompt_rows = prompt_rows

    def run(self, run: SegmentRun, tokens: list[int], clock: Clock) -> None:
        """Push everything that segments have not seen through them: the prompt in passes of its own, the backlog in others.

        Where one launch goes through several segments, each has its part of the time by its number of layers.
        """
        for launched in self.decoder.split_run(run, self.cache):
            for segment in launched:
                self.take_prompt(segment, tokens, clock)
            cached = self.push(launched, tokens, len(tokens))
            rows, depth = len(tokens) - cached, launched[-1].end - launched[0].start
            clock.shared_lap(
                [("segment", segment.index, rows, cached) for segment in launched],
                [(segment.end - segment.start) / depth for segment in launched],
            )

    def take_prompt(self, segment: Segment, tokens: list[int], clock: Clock) -> None:
        """Push the prompt through a segment that has not seen it yet."""
        if self.cache.lengths[segment.index] < self._prompt_rows:
            self.push((segment,), tokens, self._prompt_rows)
            clock.lap("draft_prefill", segment.index, self._prompt_rows, 0)

    def push(self, run: SegmentRun, tokens: list[int], end: int) -> int:
        """One causal pass over what segments have not seen of the first `end` tokens; returns how many they had seen."""
        first = run[0].index
        seen = self.cache.lengths[first]
        states = self.decoder.embed(tokens[seen:end]) if first == 0 else self.cache.backlog(first, end)
        self.decoder.forward_run(states, run, self.cache)
        return seen


class Drafter:
    """Drafts blocks under one policy.

    Args:
        ladder: what drafts.
        exit_layers: all of the draft's exits.
        policy: which of them are looked at.
        verifier: how an exit answers.
        eos_token_id: ends a block.
    """

    def __init__(
        self,
        ladder: Ladder,
        exit_layers: tuple[int, ...],
        policy: Policy,
        verifier: Verifier,
        eos_token_id: int | None,
    ) -> None:
        self._ladder = ladder
        self._judge = verifier
        self._eos_token_id = eos_token_id
        self._policy = policy
        self._steps = steps_of(ladder.cache, exit_layers, policy)
        self.exits_taken = [0] * len(exit_layers)
        self.cap = policy.first_cap

    @property
    def runs(self) -> set[SegmentRun]:
        """All that its passes go through."""
        return runs_of(self._steps)

    def draft(self, tokens: list[int], cap: int, clock: Clock) -> list[int]:
        """Draft at most `cap` tokens, appending them to the text so far.

        Args:
            tokens: everything known, the lead last; grows by what is drafted.
            cap: the most that may be drafted now.
            clock: gets a lap per segment pass and per exit check.
        """
        known = len(tokens)
        survival = 1.0
        for _ in range(cap):
            token, confidence, step = self._next(tokens, known, clock)
            self._ladder.run(step.behind, tokens, clock)
            tokens.append(token)
            self.exits_taken[step.exit_number] += 1
            survival = self._policy.next_survival(survival, place=step.place, confidence=confidence)
            if token == self._eos_token_id or self._policy.stops(confidence=confidence, survival=survival):
                break
        return tokens[known:]

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Let the length rule learn from a round."""
        self.cap = self._policy.next_cap(self.cap, num_drafted=num_drafted, num_accepted=num_accepted)

    def _next(self, tokens: list[int], known: int, clock: Clock) -> tuple[int, float, Step]:
        """Climb until an exit is sure enough: the token, its confidence and the step it left at; `known` tokens are certain."""
        for step in self._steps:
            self._ladder.run(step.run, tokens, clock)
            token, confidence = self._answer(step, tokens, known, clock)
            if check_confidence(confidence, self._ladder.decoder) >= step.threshold:
                return token, confidence, step
        raise AssertionError("the last looked-at exit always answers")

    def _answer(self, step: Step, tokens: list[int], known: int, clock: Clock) -> tuple[int, float]:
        """What the exit after a step says, the segment that runs ahead of it launched in between."""
        ladder, number, ahead, end = self._ladder, step.exit_number, step.ahead, len(tokens)
        if ahead is not None:
            ladder.take_prompt(ahead, tokens, clock)
        read = self._judge.ask(ladder.decoder, ladder.cache.states[number][end - 1 : end], tokens, known, number)
        if ahead is None:
            answer = read()
            clock.lap("exit", number, 1, 0)
        else:
            cached = ladder.push((ahead,), tokens, end)
            answer = read()
            clock.lap("ahead", ahead.index, end - cached, cached)
        return answer


def steps_of(cache: Cache, exit_layers: tuple[int, ...], policy: Policy) -> tuple[Step, ...]:
    """The ladder up to the deepest looked-at exit, a step for each of these exits.

    Raises:
        BadPolicy: the draft has no such exit.
    """
    check_exits(exit_layers, policy)
    segments = cache.segments
    deepest = exit_layers.index(policy.exits[-1])
    steps: list[Step] = []
    first = 0
    for place, (layer, threshold) in enumerate(zip(policy.exits, (*policy.thresholds, _ALWAYS), strict=True)):
        number = exit_layers.index(layer)
        has_ahead = policy.runs_ahead and number < deepest
        steps.append(
            Step(
                run=segments[first : number + 1],
                exit_number=number,
                threshold=threshold,
                place=place,
                ahead=segments[number + 1] if has_ahead else None,
                behind=segments[number + 1 : deepest + 1] if policy.catches_up_at_once else (),
            )
        )
        first = number + 1 + has_ahead
    return tuple(steps)


def runs_of(steps: Iterable[Step]) -> set[SegmentRun]:
    """All that the passes of some steps go through."""
    runs = {run for step in steps for run in (step.run, step.behind) if run}
    # By itself: what runs ahead, and what has seen less than the segments before it, as after a turn of another policy.
    return runs | {(segment,) for run in runs for segment in run} | {(step.ahead,) for step in steps if step.ahead}


def check_exits(exit_layers: tuple[int, ...], policy: Policy) -> None:
    """Refuse a policy that looks at exits the draft does not have.

    Raises:
        BadPolicy: says which, and which there are.
    """
    for layer in policy.exits:
        if layer not in exit_layers:
            deeper = exit_layers and layer > exit_layers[-1]
            problem = f"exit {layer} {'lies deeper than the draft' if deeper else 'is none of the draft’s'}"
            raise BadPolicy(problem, f"exits among {', '.join(map(str, exit_layers)) or 'none'}")
