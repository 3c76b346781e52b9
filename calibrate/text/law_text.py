"""What the law says as text for people: of published speeds, and of drafts in other shapes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from calibrate.planning.draft_shapes import Design, DesignRequest, DraftRound, draft_token_s, first_device_bytes, plain_token_s
from calibrate.text.plan_text import PAGE_CHARS, asked_text, model_label
from perfmodel.core.console import table
from perfmodel.core.units import (
    MEGA,
    format_bytes,
    format_frac,
    format_interval,
    format_number,
    format_rate,
    format_seconds,
    format_signed_frac,
    format_speedup,
)
from perfmodel.models.find_model import unpublished_note
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.results.validation import Explanation, Validation


def validation_text(validation: Validation) -> str:
    """The whole answer of `s2d-plan validate`."""
    return "\n\n".join([_points(validation), _devices(validation), _explanations(validation.explanations)])


def _points(validation: Validation) -> str:
    rows = [
        [
            f"{point.model}, {point.weights}, {point.engine}",
            f"{point.num_devices} x {point.device}",
            format_number(point.published_tokens_per_s),
            format_number(point.predicted_tokens_per_s),
            format_interval(point.interval.low, point.interval.high, format_number),
            format_signed_frac(point.error_frac),
            point.role if not point.note else f"{point.role}: {point.note}",
            point.source,
        ]
        for point in validation.points
    ]
    headers = [
        "plain decoding",
        "device",
        "published tokens/s",
        "predicted",
        "90 % interval",
        "error of its time",
        "role",
        "source",
    ]
    return table(rows, headers=headers, align="llrrrrll")


def _devices(validation: Validation) -> str:
    rows = [
        [
            f"{one.device}, {one.engine}",
            str(one.num_points),
            format_frac(one.mape_frac),
            format_signed_frac(one.mean_error_frac),
            format_frac(one.covered_frac),
            format_signed_frac(one.light_mean_error_frac),
        ]
        for one in validation.devices
    ]
    return table(
        rows,
        headers=[
            "held-out points of",
            "number",
            "mean absolute error",
            "mean error",
            "in 90 % interval",
            "bytes over bandwidth alone",
        ],
    )


def _explanations(explanations: Sequence[Explanation]) -> str:
    """S2D's table by device and engine mode, the best explanation first."""
    first = explanations[0]
    names = [f"{one.target}: {one.policy.split(',')[0]}" for one in first.speedups]
    rows = [
        [name, format_speedup(one.published), *(format_speedup(other.speedups[place].predicted) for other in explanations)]
        for place, (name, one) in enumerate(zip(names, first.speedups, strict=True))
    ]
    rows.append(["mean absolute error", "", *(format_frac(one.mean_abs_error_frac) for one in explanations)])
    headers = ["S2D's own table", "published", *(f"{one.device} {one.engine}" for one in explanations)]
    told = (
        "S2D's authors publish accepted tokens and speedups, and neither the GPU nor how it was driven. Assumed here: fp16, as "
        "few devices as hold the models, 512 prompt and 256 output tokens, +2/-1 lengths, and that the accepted tokens count "
        f"the target's own. Best explained by {first.device} in {first.engine} mode, that is by passes that cost "
        + ("their bytes and hardly their launches." if first.engine == "graph" else "their launches.")
    )
    return f"{textwrap.fill(told, PAGE_CHARS)}\n\n{table(rows, headers=headers)}"


def design_text(request: DesignRequest, found: Sequence[Design], *, asked_target: str) -> str:
    """The whole answer of `s2d-plan design --params`."""
    size = f"{format_number(request.num_params / MEGA)} million weights"
    said = found[0].geometry.num_head_tokens
    is_reduced = said < request.target.vocab_size
    head = [
        *_target_lines(request, asked_target),
        f"draft   {size} on one device, {request.draft_tokens} tokens a round, {request.context_tokens} tokens of context",
        *([f"head    {said} of {request.target.vocab_size} tokens"] if is_reduced else []),
    ]
    frontier = sorted((one for one in found if one.is_frontier), key=lambda one: one.geometry.num_layers)
    title = f"the fastest of {len(found)} shapes at each depth, and the tokens per round that each needs"
    advice = f"{_depth_advice(frontier)} {_shape_advice(request, frontier)}"
    advice += " What the head saves went into the layers: give a smaller --params to be faster instead." if is_reduced else ""
    return "\n\n".join(["\n".join(head), f"{title}\n\n{_designs(request, frontier)}", textwrap.fill(advice, PAGE_CHARS)])


def draft_text(request: DesignRequest, draft: DraftGeometry, rounds: Sequence[DraftRound], *, asked_target: str) -> str:
    """The whole answer of `s2d-plan design --draft`."""
    model, token_s = draft.model, draft_token_s(draft.model, request)
    head = [
        *_target_lines(request, asked_target),
        f"draft   {model_label(model)}, on one device: {format_seconds(token_s)} a drafted token",
        *([] if request.draft_stored is None else [f"        weights {request.draft_stored.text}"]),
        f"context {request.context_tokens} tokens",
        *(
            textwrap.fill(note, PAGE_CHARS, initial_indent="note    ", subsequent_indent=" " * 8)
            for note in _draft_notes(model, request)
        ),
    ]
    rows = [
        [
            str(one.draft_tokens),
            format_seconds(one.round_s),
            _needed_text(one.break_even_tokens, at_most=one.draft_tokens + 1),
            str(one.draft_tokens + 1),
        ]
        for one in rounds
    ]
    headers = ["drafted tokens", "one round", "tokens to beat plain", "at most"]
    title = "the tokens per round that each draft length needs, the target's own counted"
    advice = textwrap.fill(_length_advice(rounds), PAGE_CHARS)
    blocks = ["\n".join(head), f"{title}\n\n{table(rows, headers=headers, align='rrrr')}", advice]
    return "\n\n".join(blocks if (note := unpublished_note(draft)) is None else [*blocks, note])


def _draft_notes(draft: ModelGeometry, request: DesignRequest) -> Iterator[str]:
    """What may keep a draft from running with its target at all."""
    target, memory_bytes = request.target, request.hardware.memory_bytes
    if draft.vocab_size != target.vocab_size:
        yield (
            f"its vocabulary has {draft.vocab_size} tokens, the target's {target.vocab_size}: a draft needs the target's "
            "tokenizer, and only unused rows may differ"
        )
    if draft.num_params >= target.num_params:
        yield "it is no smaller than its target"
    if request.context_tokens >= draft.max_context_tokens:
        yield f"its context ends at {draft.max_context_tokens} tokens"
    needed_bytes = first_device_bytes(draft, request)
    if memory_bytes is not None and needed_bytes > memory_bytes:
        yield (
            f"with its part of the target it takes {format_bytes(needed_bytes)}, and one {request.hardware.name} holds "
            f"{format_bytes(memory_bytes)}: give more --num-devices, a larger --device or a smaller --dtype"
        )


def _target_lines(request: DesignRequest, asked_target: str) -> list[str]:
    """The target, where it runs, and its plain decoding."""
    where, plain_s = (
        f"{request.num_devices} x {request.hardware.name}, {request.dtype}, {request.engine}",
        plain_token_s(request),
    )
    return [
        f"target  {model_label(request.target)}{asked_text(asked_target, request.target)}, on {where}",
        f"plain   {format_rate(1 / plain_s)}, {format_seconds(plain_s)} a token",
        *([] if request.target_weights.is_plain else [f"weights {request.target_weights.text}"]),
    ]


def _depth_advice(frontier: Sequence[Design]) -> str:
    fastest, deepest = frontier[0], frontier[-1]
    return (
        f"A layer costs time whatever its width: from {fastest.geometry.num_layers} to {deepest.geometry.num_layers} layers a "
        f"token takes {format_seconds(fastest.token_s)} to {format_seconds(deepest.token_s)}, and the deepest needs "
        f"{deepest.over_fastest:.2f} times the tokens per round to keep up."
    )


def _shape_advice(request: DesignRequest, frontier: Sequence[Design]) -> str:
    """Which shapes to train, and which cannot pay."""
    drafted, too_slow = f"at {_tokens_text(request.draft_tokens)}", [one for one in frontier if not one.can_pay]
    limit = f"a round yields at most {request.max_round_tokens} tokens"
    if len(too_slow) == len(frontier):
        return f"No shape of this size can pay {drafted}: {limit}. Give a smaller --params."
    advice = "Choose the shallowest shape whose training reaches its break-even."
    if not too_slow:
        return advice
    return f"{advice} Those of {too_slow[0].geometry.num_layers} layers and more cannot pay {drafted}: {limit}."


def _length_advice(rounds: Sequence[DraftRound]) -> str:
    """Which draft lengths can pay."""
    paying = [str(one.draft_tokens) for one in rounds if one.can_pay]
    if not paying:
        lengths = ", ".join(str(one.draft_tokens) for one in rounds)
        return (
            f"This draft cannot pay at {lengths} drafted tokens: a round of K drafted tokens yields at most K + 1. Take a "
            "smaller draft, or one of fewer layers."
        )
    advice = (
        "A draft length pays where the acceptance length that an engine reports (accepted tokens + 1) is above its break-even."
    )
    if len(paying) < len(rounds):
        advice += f" Only {', '.join(paying)} can: a round of K drafted tokens yields at most K + 1."
    return advice


def _tokens_text(count: int) -> str:
    return f"{count} drafted token{'' if count == 1 else 's'}"


def _needed_text(tokens: float, *, at_most: int) -> str:
    """Tokens per round that are needed: `2.31`, or `impossible (at most 6)`."""
    return f"{tokens:.2f}" if tokens < at_most else f"impossible (at most {at_most})"


def _designs(request: DesignRequest, found: Sequence[Design]) -> str:
    at_most = request.max_round_tokens
    rows = [
        [
            str(one.geometry.num_layers),
            str(one.geometry.hidden_size),
            f"{one.geometry.num_heads} x {one.geometry.head_dim}",
            str(one.geometry.intermediate_size),
            format_number(one.geometry.num_params / MEGA),
            format_seconds(one.token_s),
            format_bytes(one.kv_bytes_per_token),
            _needed_text(one.break_even_tokens, at_most=at_most),
            _needed_text(one.over_fastest, at_most=at_most),
        ]
        for one in found
    ]
    headers = [
        "layers",
        "width",
        "heads",
        "MLP",
        "million weights",
        "per token",
        "KV per token",
        "to beat plain",
        "over fastest",
    ]
    return table(rows, headers=headers, align="r" * 9)
