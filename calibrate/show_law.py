"""What the law says as text for people: of published speeds, and of drafts in other shapes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from calibrate.design import Design, DesignRequest
from calibrate.show import PAGE_CHARS, model_label
from perfmodel.console import table
from perfmodel.units import MEGA, format_bytes, format_frac, format_number, format_seconds, format_signed_frac, format_speedup
from perfmodel.validation import Explanation, Validation


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
            format_signed_frac(point.error_frac),
            point.role if not point.note else f"{point.role}: {point.note}",
            point.source,
        ]
        for point in validation.points
    ]
    headers = ["plain decoding", "device", "published tokens/s", "predicted", "error of its time", "role", "source"]
    return table(rows, headers=headers, align="llrrrll")


def _devices(validation: Validation) -> str:
    rows = [
        [
            one.device,
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


def design_text(request: DesignRequest, found: Sequence[Design]) -> str:
    """The whole answer of `s2d-plan design`."""
    where = f"{request.num_devices} x {request.hardware.name}, {request.dtype}, {request.engine}"
    size = f"{format_number(request.num_params / MEGA)} million weights"
    said = found[0].geometry.said_tokens
    is_reduced = said < request.target.vocab_size
    head = [
        f"target  {model_label(request.target)}, on {where}",
        f"draft   {size} on one device, {request.draft_tokens} tokens a round, {request.context_tokens} tokens of context",
        *([] if request.target_weights.is_plain else [f"weights {request.target_weights.text}"]),
        *([f"head    {said} of {request.target.vocab_size} tokens"] if is_reduced else []),
    ]
    frontier = sorted((one for one in found if one.is_frontier), key=lambda one: one.geometry.num_layers)
    fastest, deepest = frontier[0], frontier[-1]
    advice = (
        f"A layer costs time whatever its width: from {fastest.geometry.num_layers} to {deepest.geometry.num_layers} layers a "
        f"token takes {format_seconds(fastest.token_s)} to {format_seconds(deepest.token_s)}, and the deepest needs "
        f"{deepest.over_fastest:.2f} times the tokens per round to keep up. Choose the shallowest shape whose training reaches "
        "its break-even."
    ) + (" What the head saves went into the layers: give a smaller --params to be faster instead." if is_reduced else "")
    title = f"the fastest of {len(found)} shapes at each depth, and the tokens per round that each needs"
    return "\n\n".join(["\n".join(head), f"{title}\n\n{_designs(frontier)}", textwrap.fill(advice, PAGE_CHARS)])


def _designs(found: Sequence[Design]) -> str:
    rows = [
        [
            str(one.geometry.num_layers),
            str(one.geometry.hidden_size),
            f"{one.geometry.num_heads} x {one.geometry.head_dim}",
            str(one.geometry.intermediate_size),
            format_number(one.geometry.num_params / MEGA),
            format_seconds(one.token_s),
            format_bytes(one.kv_bytes_per_token),
            f"{one.break_even_tokens:.2f}",
            f"{one.over_fastest:.2f}",
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
