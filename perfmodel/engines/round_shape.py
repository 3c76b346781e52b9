"""The passes of an engine's round, from the passes of the bundled runtime's round.

Replay counts the passes of the bundled runtime. An engine accepts the same tokens in the same rounds, but its draft may read
them in other passes (`RoundShape`). In the bundled runtime, the first draft pass after a fully accepted block has two rows,
because the block's last token was drafted but not read yet; and the last block of a text is as long as the length limit leaves.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

from perfmodel.core.units import Tokens
from perfmodel.engines.engine import RoundShape
from perfmodel.passes.passes import PassCount, PassKind, PassName, is_cold
from perfmodel.policies.policy import Policy
from perfmodel.replay.round_stats import RoundStats, cold_counts, pass_counts

DEFAULT_SHAPE = RoundShape()
"""K draft passes and one verification, as in the bundled runtime."""


def with_round_shape(rounds: RoundStats, shape: RoundShape, policy: Policy | None) -> RoundStats:
    """The counts of some rounds with the passes of an engine; unchanged for the default shape and for plain decoding.

    Args:
        rounds: replayed under one exit alone, or plain decoding.
        shape: of the engine's round.
        policy: of the rounds; None is plain decoding.

    Raises:
        ValueError: several exits were active. No engine but the bundled runtime executes them.
    """
    stages = [stage for stage, number in enumerate(rounds.exits_taken) if number]
    if shape == DEFAULT_SHAPE or policy is None or not stages:
        return rounds
    if len(stages) > 1:
        raise ValueError(f"a round shape holds for one exit alone, and tokens left at {len(stages)} exits")
    [stage] = stages
    if shape.drafts_past_limit and policy.stop is None:
        rounds = _with_whole_blocks(rounds, stage, policy.tokens)
    passes = _apart(rounds, stage, keeps_first_row=shape.catches_up_apart)
    if shape.rereads_block:
        _add_rereading(rounds, stage, passes)
    elif shape.starts_with_block:
        _widen_first_passes(rounds, stage, passes)
    return replace(rounds, passes=passes.records())


@dataclass(frozen=True, slots=True)
class _Passes:
    """Passes and their cached tokens, while they are counted."""

    counts: Counter[PassName] = field(default_factory=Counter)
    cached: Counter[PassName] = field(default_factory=Counter)

    def add(self, kind: PassKind, stage: int, rows: int, number: int, cached_tokens: int) -> None:
        """Count some passes of one shape, with the sum of their cached tokens."""
        self.counts[kind, stage, rows] += number
        self.cached[kind, stage, rows] += cached_tokens

    def records(self) -> tuple[PassCount, ...]:
        """The passes of each shape that has any."""
        return pass_counts(+self.counts, self.cached)


def _with_whole_blocks(rounds: RoundStats, stage: int, draft_tokens: Tokens) -> RoundStats:
    """Rounds of which each drafts the full length and accepts as many tokens as before.

    Args:
        rounds: of one exit at a fixed length. Shorter blocks were cut by the end of their text.
        stage: the exit.
        draft_tokens: the full length.
    """
    passes = _Passes()
    cold = Counter({(count.kind, count.stage, count.place): count.num_passes for count in rounds.cold_passes})
    for part in rounds.passes:
        kind, at, rows, number, cached_tokens = part.kind, part.stage, part.rows, part.num_passes, part.cached_tokens_sum
        if kind not in ("verify", "round"):
            passes.add(kind, at, rows, number, cached_tokens)
            continue
        num_drafted = rows - 1 if kind == "verify" else rows
        passes.add(kind, at, rows + draft_tokens - num_drafted, number, cached_tokens)
        if kind == "round":
            continue
        for drafted in range(num_drafted, draft_tokens):
            passes.add("exit", stage, 1, number, 0)
            for segment in range(stage + 1):
                passes.add("segment", segment, 1, number, cached_tokens + number * drafted)
                if is_cold("segment", drafted + 1):
                    cold["segment", segment, drafted + 1] += number
    taken = tuple(rounds.num_rounds * draft_tokens if at == stage else 0 for at in range(len(rounds.exits_taken)))
    missing = (0.0,) * (draft_tokens - len(rounds.accepted_by_position))
    return replace(
        rounds,
        num_drafted=rounds.num_rounds * draft_tokens,
        drafted_by_position=(rounds.num_rounds,) * draft_tokens,
        accepted_by_position=rounds.accepted_by_position + missing,
        exits_taken=taken,
        passes=passes.records(),
        cold_passes=cold_counts(cold),
    )


def _apart(rounds: RoundStats, stage: int, *, keeps_first_row: bool) -> _Passes:
    """All passes, with segment passes of one row only.

    Args:
        rounds: of one exit.
        stage: the exit.
        keeps_first_row: whether the first row of a wider pass becomes a pass of its own, with an exit check. Otherwise another
            pass has already read it.
    """
    passes = _Passes()
    for part in rounds.passes:
        number, cached_tokens = part.num_passes, part.cached_tokens_sum
        if part.kind != "segment" or part.rows == 1:
            passes.add(part.kind, part.stage, part.rows, number, cached_tokens)
            continue
        num_read = part.rows - 1
        passes.add("segment", part.stage, 1, number, cached_tokens + number * num_read)
        if keeps_first_row:
            passes.add("segment", part.stage, num_read, number, cached_tokens)
            if part.stage == stage:
                passes.add("exit", stage, 1, number, 0)
    return passes


def _add_rereading(rounds: RoundStats, stage: int, passes: _Passes) -> None:
    """Add one draft pass over each verified block, with an exit check of all its rows."""
    for part in _verifications(rounds):
        for segment in range(stage + 1):
            passes.add("segment", segment, part.rows, part.num_passes, part.cached_tokens_sum)
        passes.add("exit", stage, part.rows, part.num_passes, 0)


def _widen_first_passes(rounds: RoundStats, stage: int, passes: _Passes) -> None:
    """Let the first draft pass of each round read a block and the new token; its exit check stays one row."""
    for part in _verifications(rounds):
        for segment in range(stage + 1):
            passes.add("segment", segment, part.rows + 1, part.num_passes, part.cached_tokens_sum)
            passes.add("segment", segment, 1, -part.num_passes, -part.cached_tokens_sum)


def _verifications(rounds: RoundStats) -> list[PassCount]:
    """Verifications of rounds in which the draft ran.

    A floor that drops its token may leave a block empty. Each such round has dropped a token; other rounds without a drafted
    token are the last ones of their texts.
    """
    num_dropped = rounds.num_passes("exit") - rounds.num_drafted
    blocks = [passes for passes in rounds.passes if passes.kind == "verify" and passes.rows > 1]
    empty = [passes for passes in rounds.passes if passes.kind == "verify" and passes.rows == 1 and num_dropped]
    for passes in empty:
        number = min(passes.num_passes, num_dropped)
        cached_tokens = round(passes.cached_tokens_sum * number / passes.num_passes)
        blocks.append(replace(passes, num_passes=number, cached_tokens_sum=cached_tokens))
    return blocks
