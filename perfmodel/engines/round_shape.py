"""The passes of an engine's round, from the passes of the bundled runtime's round.

Replay counts the passes of the bundled runtime. An engine accepts the same tokens in the same rounds, but its draft may read
them in other passes (`RoundShape`). In the bundled runtime, the first draft pass after a fully accepted block has two rows,
because the block's last token was drafted but not read yet.
"""

from collections import Counter
from dataclasses import replace

from perfmodel.engines.engine import RoundShape
from perfmodel.passes.passes import PassCount, PassKind, PassName
from perfmodel.replay.round_stats import RoundStats, pass_counts

DEFAULT_SHAPE = RoundShape()
"""K draft passes and one verification, as in the bundled runtime."""


def with_round_shape(rounds: RoundStats, shape: RoundShape) -> RoundStats:
    """The counts of some rounds with the passes of an engine; unchanged for the default shape and for plain decoding.

    Args:
        rounds: replayed under one exit alone, or plain decoding.
        shape: of the engine's round.

    Raises:
        ValueError: several exits were active. No engine but the bundled runtime executes them.
    """
    stages = [stage for stage, number in enumerate(rounds.exits_taken) if number]
    if shape == DEFAULT_SHAPE or not stages:
        return rounds
    if len(stages) > 1:
        raise ValueError(f"a round shape holds for one exit alone, and tokens left at {len(stages)} exits")
    counts, cached = _apart(rounds, stages[0], keeps_first_row=shape.catches_up_apart)
    if shape.rereads_block:
        _add_rereading(rounds, stages[0], counts, cached)
    elif shape.starts_with_block:
        _widen_first_passes(rounds, stages[0], counts, cached)
    return replace(rounds, passes=pass_counts(counts, cached))


def _apart(rounds: RoundStats, stage: int, *, keeps_first_row: bool) -> tuple[Counter[PassName], Counter[PassName]]:
    """Passes and their cached tokens, with segment passes of one row only.

    Args:
        rounds: of one exit.
        stage: the exit.
        keeps_first_row: whether the first row of a wider pass becomes a pass of its own, with an exit check. Otherwise another
            pass has already read it.
    """
    counts: Counter[PassName] = Counter()
    cached: Counter[PassName] = Counter()

    def add(kind: PassKind, at: int, rows: int, number: int, cached_tokens: int) -> None:
        counts[kind, at, rows] += number
        cached[kind, at, rows] += cached_tokens

    for passes in rounds.passes:
        number, cached_tokens = passes.num_passes, passes.cached_tokens_sum
        if passes.kind != "segment" or passes.rows == 1:
            add(passes.kind, passes.stage, passes.rows, number, cached_tokens)
            continue
        num_read = passes.rows - 1
        add("segment", passes.stage, 1, number, cached_tokens + number * num_read)
        if keeps_first_row:
            add("segment", passes.stage, num_read, number, cached_tokens)
            if passes.stage == stage:
                add("exit", stage, 1, number, 0)
    return counts, cached


def _add_rereading(rounds: RoundStats, stage: int, counts: Counter[PassName], cached: Counter[PassName]) -> None:
    """Add one draft pass over each verified block, with an exit check of all its rows."""
    for passes in _verifications(rounds):
        for segment in range(stage + 1):
            counts["segment", segment, passes.rows] += passes.num_passes
            cached["segment", segment, passes.rows] += passes.cached_tokens_sum
        counts["exit", stage, passes.rows] += passes.num_passes


def _widen_first_passes(rounds: RoundStats, stage: int, counts: Counter[PassName], cached: Counter[PassName]) -> None:
    """Let the first draft pass of each round read a block and the new token; its exit check stays one row."""
    for passes in _verifications(rounds):
        for segment in range(stage + 1):
            for rows, sign in ((1, -1), (passes.rows + 1, 1)):
                counts["segment", segment, rows] += sign * passes.num_passes
                cached["segment", segment, rows] += sign * passes.cached_tokens_sum
            if not counts["segment", segment, 1]:
                del counts["segment", segment, 1]


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
