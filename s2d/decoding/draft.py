"""Draft one block under a policy: run segments, check exits, stop."""

from dataclasses import dataclass

from perfmodel.core.errors import BadPolicy
from perfmodel.policies.policy import Policy
from s2d.decoding.clock import Clock
from s2d.decoding.verify import Verifier
from s2d.model.cache import Cache, Segment
from s2d.model.decoder import Decoder, SegmentRun
from s2d.model.finite import check_confidence

_NO_THRESHOLD = -1.0
"""The threshold of the last active exit. Every confidence reaches it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The segments up to one active exit, and the exit check after them. Inactive exits in between are not evaluated."""

    run: SegmentRun
    """The segments after the previous active exit, except one that was launched before that exit's prediction was read."""
    exit_index: int
    """Zero-based, among all exits of the draft."""
    active_index: int
    """Zero-based, among the active exits of the policy."""
    threshold: float
    ahead: Segment | None
    """The segment to launch before the exit's prediction is read; None launches nothing."""
    catch_up: SegmentRun
    """The deeper segments that a token leaving here runs through at once."""


class Ladder:
    """A decoder and its cache, run segment by segment.

    Each segment processes its backlog when it is next needed: the tokens that deeper segments have not seen yet. Several
    policies can therefore share one ladder, round by round.

    Args:
        decoder: the draft, or the target of a self-draft.
        cache: a cache whose segments end at the draft's exits.
        prompt_rows: the number of prompt tokens less 1. The last prompt token belongs to the first round.
    """

    def __init__(self, decoder: Decoder, cache: Cache, prompt_rows: int) -> None:
        self.decoder = decoder
        self.cache = cache
        self._prompt_rows = prompt_rows

    def run(self, run: SegmentRun, tokens: list[int], clock: Clock) -> None:
        """Bring segments up to date with the text: first the prompt, in passes of its own, then the backlog.

        When one launch covers several segments, its time is divided among them by their number of layers.
        """
        for launched in self.decoder.split_run(run, self.cache):
            for segment in launched:
                self.prefill(segment, tokens, clock)
            cached = self.push(launched, tokens, len(tokens))
            rows, depth = len(tokens) - cached, launched[-1].end - launched[0].start
            clock.shared_lap(
                [("segment", segment.index, rows, cached) for segment in launched],
                [(segment.end - segment.start) / depth for segment in launched],
            )

    def prefill(self, segment: Segment, tokens: list[int], clock: Clock) -> None:
        """Run the prompt through a segment that has not seen it yet."""
        if self.cache.lengths[segment.index] < self._prompt_rows:
            self.push((segment,), tokens, self._prompt_rows)
            clock.lap("draft_prefill", segment.index, self._prompt_rows, 0)

    def push(self, run: SegmentRun, tokens: list[int], end: int) -> int:
        """Run the uncached part of `tokens[:end]` through segments in one causal pass. Returns the number of cached tokens."""
        first = run[0].index
        cached = self.cache.lengths[first]
        states = self.decoder.embed(tokens[cached:end]) if first == 0 else self.cache.backlog(first, end)
        self.decoder.forward_run(states, run, self.cache)
        return cached


class Drafter:
    """Drafts blocks under one policy.

    Args:
        ladder: the draft and its cache.
        exit_layers: all exits of the draft.
        policy: which exits are active, and when a block ends.
        verifier: predicts a token and its confidence at an exit.
        eos_token_id: the token that ends a block; None for none.
    """

    def __init__(
        self, ladder: Ladder, exit_layers: tuple[int, ...], policy: Policy, verifier: Verifier, eos_token_id: int | None
    ) -> None:
        self._ladder = ladder
        self._verifier = verifier
        self._eos_token_id = eos_token_id
        self._policy = policy
        self._steps = policy_steps(ladder.cache, exit_layers, policy)
        self.exits_taken = [0] * len(exit_layers)
        self.cap = policy.first_cap

    @property
    def runs(self) -> set[SegmentRun]:
        """Every run of segments that may be launched as one pass."""
        runs = {run for step in self._steps for run in (step.run, step.catch_up) if run}
        # A segment runs alone if it is launched ahead, or if it is behind the segments before it after a change of policy.
        return runs | {(segment,) for run in runs for segment in run} | {(step.ahead,) for step in self._steps if step.ahead}

    def draft(self, tokens: list[int], cap: int, clock: Clock) -> list[int]:
        """Draft up to `cap` tokens and append them to `tokens`.

        Args:
            tokens: the known tokens.
            cap: the maximum number of tokens.
            clock: receives a lap for each segment pass and exit check.

        Returns:
            the drafted tokens, without one that the policy drops.
        """
        num_known = len(tokens)
        survival = 1.0
        for _ in range(cap):
            token, confidence, step = self._next_token(tokens, num_known, clock)
            self._ladder.run(step.catch_up, tokens, clock)
            if self._policy.drops(confidence=confidence):
                break
            tokens.append(token)
            self.exits_taken[step.exit_index] += 1
            survival = self._policy.next_survival(survival, active_index=step.active_index, confidence=confidence)
            if token == self._eos_token_id or self._policy.stops(confidence=confidence, survival=survival):
                break
        return tokens[num_known:]

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Update the cap after a round."""
        self.cap = self._policy.next_cap(self.cap, num_drafted=num_drafted, num_accepted=num_accepted)

    def _next_token(self, tokens: list[int], num_known: int, clock: Clock) -> tuple[int, float, Step]:
        """Check exits, shallowest first, until a confidence reaches its threshold: the token, its confidence and its step."""
        for step in self._steps:
            self._ladder.run(step.run, tokens, clock)
            token, confidence = self._check_exit(step, tokens, num_known, clock)
            if check_confidence(confidence, self._ladder.decoder) >= step.threshold:
                return token, confidence, step
        raise AssertionError("the last active exit always answers")

    def _check_exit(self, step: Step, tokens: list[int], num_known: int, clock: Clock) -> tuple[int, float]:
        """The token and confidence at a step's exit. The segment that runs ahead is launched before they are read."""
        ladder, index, ahead, end = self._ladder, step.exit_index, step.ahead, len(tokens)
        if ahead is not None:
            ladder.prefill(ahead, tokens, clock)
        states = ladder.cache.states[index][end - 1 : end]  # [1, D + PAD]
        read = self._verifier.check_exit(ladder.decoder, states, tokens, num_known, index)
        if ahead is None:
            prediction = read()
            clock.lap("exit", index, 1, 0)
        else:
            cached = ladder.push((ahead,), tokens, end)
            prediction = read()
            clock.lap("ahead", ahead.index, end - cached, cached)
        return prediction


def policy_steps(cache: Cache, exit_layers: tuple[int, ...], policy: Policy) -> tuple[Step, ...]:
    """One step for each active exit, shallowest first.

    Raises:
        BadPolicy: the draft lacks an exit of the policy.
    """
    check_exits(exit_layers, policy)
    segments = cache.segments
    deepest = exit_layers.index(policy.exits[-1])
    steps: list[Step] = []
    first = 0
    for active_index, (layer, threshold) in enumerate(zip(policy.exits, (*policy.thresholds, _NO_THRESHOLD), strict=True)):
        index = exit_layers.index(layer)
        has_ahead = policy.runs_ahead and index < deepest
        steps.append(
            Step(
                run=segments[first : index + 1],
                exit_index=index,
                active_index=active_index,
                threshold=threshold,
                ahead=segments[index + 1] if has_ahead else None,
                catch_up=segments[index + 1 : deepest + 1] if policy.catches_up_at_once else (),
            )
        )
        first = index + 1 + has_ahead
    return tuple(steps)


def check_exits(exit_layers: tuple[int, ...], policy: Policy) -> None:
    """Check that the draft has every exit of a policy.

    Raises:
        BadPolicy: names the missing exit and the exits of the draft.
    """
    for layer in policy.exits:
        if layer not in exit_layers:
            is_deeper = exit_layers and layer > exit_layers[-1]
            problem = f"exit {layer} is {'deeper than the draft' if is_deeper else 'not an exit of the draft'}"
            raise BadPolicy(problem, f"exits among {', '.join(map(str, exit_layers)) or 'none'}")
