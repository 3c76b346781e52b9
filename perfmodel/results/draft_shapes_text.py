"""Draft shapes and draft lengths as text: the tokens per round that each needs to pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perfmodel.core.blocks import Block, Facts, Paragraph, Table, sentence_blocks, short_note
from perfmodel.core.units import MEGA, format_bytes, format_number, format_rate, format_seconds
from perfmodel.results.plan_text import model_label, weights_text

if TYPE_CHECKING:
    from perfmodel.results.draft_shapes import DraftedTarget, DraftLength, DraftLengths, DraftShape, DraftShapes

MAX_ROWS = 7
"""Depths that the default text shows."""


def draft_shapes_blocks(shapes: DraftShapes, *, explain: bool) -> list[Block]:
    """The answer of `s2d-plan design --params`.

    Args:
        shapes: the result.
        explain: whether to show every depth.
    """
    size = f"{format_number(shapes.num_params / MEGA)} million weights on one device"
    head_tokens, vocab_size = shapes.shapes[0].geometry.num_head_tokens, shapes.target.model.vocab_size
    is_reduced = head_tokens < vocab_size
    facts = [*_target_facts(shapes.target), ("draft", f"{size}, {shapes.draft_tokens} drafted tokens per round")]
    facts += [("head", f"{head_tokens} of {vocab_size} tokens")] if is_reduced else []
    frontier = shapes.frontier
    advice = f"{_depth_advice(frontier)} {_shape_advice(shapes)}"
    if is_reduced:
        advice += " The weights saved in the head went into the layers. For a faster draft, give a smaller --params."
    return [Facts(facts), _shapes_table(shapes, frontier if explain else _spread(frontier)), Paragraph(advice)]


def draft_lengths_blocks(lengths: DraftLengths, *, explain: bool) -> list[Block]:
    """The answer of `s2d-plan design --draft`.

    Args:
        lengths: the result.
        explain: whether to show the commands in the notes.
    """
    draft = model_label(lengths.draft.model) + weights_text(lengths.draft_weights)
    facts = [*_target_facts(lengths.target), ("draft", f"{draft}; {format_seconds(lengths.token_s)} per token on one device")]
    rows = [
        [
            str(length.draft_tokens),
            format_seconds(length.round_s),
            _needed_text(length.break_even_tokens, limit=length.draft_tokens + 1),
            str(length.draft_tokens + 1),
        ]
        for length in lengths.lengths
    ]
    headers = ["drafted tokens", "time of a round", "tokens per round to beat plain", "at most"]
    table = Table(rows, headers, "rrrr", "Tokens per round that each draft length needs, the target's own token included.")
    if explain:
        notes = [block for note in lengths.notes for block in sentence_blocks(note, label="note: ")]
        return [Facts(facts), *notes, table, Paragraph(_length_advice(lengths.lengths))]
    facts += [("note", short_note(note)) for note in lengths.notes]
    return [Facts(facts), table, Paragraph(_length_advice(lengths.lengths))]


def _target_facts(target: DraftedTarget) -> list[tuple[str, str]]:
    return [
        ("target", model_label(target.model) + weights_text(target.weights)),
        ("device", f"{target.device.label}; {target.context_tokens} tokens of context"),
        ("plain", f"{format_rate(1 / target.plain_token_s)}, {format_seconds(target.plain_token_s)} per token"),
    ]


def _spread(frontier: tuple[DraftShape, ...]) -> tuple[DraftShape, ...]:
    """At most `MAX_ROWS` depths, from the shallowest to the deepest."""
    if len(frontier) <= MAX_ROWS:
        return frontier
    return tuple(frontier[round(row * (len(frontier) - 1) / (MAX_ROWS - 1))] for row in range(MAX_ROWS))


def _shapes_table(shapes: DraftShapes, shown: Sequence[DraftShape]) -> Table:
    limit = shapes.max_round_tokens
    rows = [
        [
            str(shape.geometry.num_layers),
            str(shape.geometry.hidden_size),
            f"{shape.geometry.num_heads} x {shape.geometry.head_dim}",
            str(shape.geometry.intermediate_size),
            format_seconds(shape.token_s),
            format_bytes(shape.kv_bytes_per_token),
            _needed_text(shape.break_even_tokens, limit=limit),
            _needed_text(shape.over_fastest, limit=limit),
        ]
        for shape in shown
    ]
    headers = ["layers", "width", "heads", "MLP", "per token", "KV per token", "to beat plain", "over fastest"]
    more = "" if len(shown) == len(shapes.frontier) else f" {len(shown)} of {len(shapes.frontier)} depths; --explain shows all."
    title = f"The fastest of {len(shapes.shapes)} shapes at each depth, and the tokens per round that it needs.{more}"
    return Table(rows, headers, "r" * len(headers), title)


def _needed_text(tokens: float, *, limit: int) -> str:
    """Tokens per round: `2.31`, or `impossible (at most 6)`."""
    return f"{tokens:.2f}" if tokens < limit else f"impossible (at most {limit})"


def _depth_advice(frontier: Sequence[DraftShape]) -> str:
    shallowest, deepest = frontier[0], frontier[-1]
    return (
        f"Every layer costs time, however narrow it is: from {shallowest.geometry.num_layers} to {deepest.geometry.num_layers} "
        f"layers, a token takes {format_seconds(shallowest.token_s)} to {format_seconds(deepest.token_s)}, and the deepest "
        f"shape needs {deepest.over_fastest:.2f} times the tokens per round to be as fast."
    )


def _shape_advice(shapes: DraftShapes) -> str:
    """Which shapes to train, and which cannot pay."""
    count = shapes.draft_tokens
    drafted = f"with {count} drafted token{'' if count == 1 else 's'}"
    limit = f"a round yields at most {shapes.max_round_tokens} tokens"
    too_slow = [shape for shape in shapes.frontier if not shape.can_pay]
    if len(too_slow) == len(shapes.frontier):
        return f"No shape of this size can pay {drafted}: {limit}. Give a smaller --params."
    advice = "Choose the shallowest shape that reaches its break-even after training."
    if not too_slow:
        return advice
    return f"{advice} Shapes of {too_slow[0].geometry.num_layers} layers and more cannot pay {drafted}: {limit}."


def _length_advice(lengths: Sequence[DraftLength]) -> str:
    """Which draft lengths can pay."""
    paying = [str(length.draft_tokens) for length in lengths if length.can_pay]
    if not paying:
        tried = ", ".join(str(length.draft_tokens) for length in lengths)
        return (
            f"This draft cannot pay at {tried} drafted tokens: a round of K drafted tokens yields at most K + 1. Choose a "
            "smaller draft, or one with fewer layers."
        )
    advice = (
        "A draft length pays where the acceptance length that an engine reports (accepted tokens + 1) is above its break-even."
    )
    if len(paying) < len(lengths):
        advice += f" Only {', '.join(paying)} can: a round of K drafted tokens yields at most K + 1."
    return advice
