"""Depth for width: drafts of one size in other shapes, and how often each must be accepted to be worth its latency.

A draft's latency, and so its depth, decides how much speculation gives ("Decoding Speculative Decoding", arXiv 2402.01528): a
layer costs its launches or its floor whatever its width, so of two drafts with as many weights the shallower is the faster.
What a shallower one loses in agreement no law tells. So every design comes with its break-even: the tokens per round it
needs to beat plain decoding, and to keep up with the fastest design. A given draft gets its break-even for several draft
lengths. A round of K drafted tokens yields at most K + 1 tokens: a break-even beyond that is impossible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Bytes, Seconds, Tokens, format_bytes, format_number
from perfmodel.hardware.hardware import Hardware
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.models.dtypes import Dtype
from perfmodel.models.find_model import unpublished_note
from perfmodel.models.geometry import DraftGeometry, ModelGeometry, with_reduced_head
from perfmodel.passes.device_key import DeviceKey, EngineMode
from perfmodel.passes.flops_bytes import PassSetting, kv_bytes_per_token, kv_cache_bytes
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import WeightFormat, model_weight_bytes
from perfmodel.results.draft_shapes import DraftedTarget, DraftLength, DraftLengths, DraftShape, DraftShapes

DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40)
FFN_RATIOS = (Fraction(2), Fraction(8, 3), Fraction(29, 8), Fraction(5))
"""MLP over hidden size; 8/3 is Llama's, 29/8 that of the wide draft of arXiv 2402.01528."""
HEAD_DIMS = (64, 128)
MIN_WIDTH_OF_LARGE_HEADS = 2048
"""Llama's own narrow drafts have heads of 64."""
FFN_MULTIPLE = 64
DEFAULT_DRAFT_TOKENS = 5
DRAFT_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12)
"""At which a given draft is shown."""
PARAMS_TOLERANCE = 0.02
"""Relative difference up to which two designs count as of one size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DesignRequest:
    """What is to be designed, and what for."""

    target: ModelGeometry
    num_params: int
    """Weights of the draft, embeddings and head included."""
    draft_vocab: Tokens | None
    """Tokens its LM head covers; None for the whole vocabulary."""
    hardware: Hardware
    num_devices: int
    """Of the target; the draft runs on one."""
    dtype: Dtype
    """Of the draft, and of the target unless its files store it otherwise."""
    engine: EngineMode
    context_tokens: Tokens
    draft_tokens: Tokens
    """Drafted a round."""
    stored: WeightFormat | None = None
    """How the target's files store it; None where it is priced in the dtype."""
    draft_stored: WeightFormat | None = None
    """The same of a given draft."""

    @property
    def target_weights(self) -> WeightFormat:
        """How the target is stored, and priced."""
        return self.stored or dtype_format(self.dtype, self.target)

    def draft_weights(self, geometry: ModelGeometry) -> WeightFormat:
        """How a draft is stored, and priced."""
        return self.draft_stored or dtype_format(self.dtype, geometry)

    @property
    def max_round_tokens(self) -> Tokens:
        """What a round yields at most: every drafted token, and the target's own."""
        return self.draft_tokens + 1


def draft_shapes(request: DesignRequest) -> DraftShapes:
    """Every shape of the requested size.

    Raises:
        UserInputError: no shape has that size, or no head so few or so many tokens.
    """
    head_vocab_size = with_reduced_head(request.target, request.draft_vocab).head_vocab_size
    geometries = list(geometries_of(request.target, request.num_params, head_vocab_size))
    if not geometries:
        raise UserInputError(
            f"--params {format_number(request.num_params)}: no draft with {request.target.name}'s {request.target.vocab_size} "
            "tokens has so few or so many weights. Give a size between its embeddings and the target."
        )
    plain_s = plain_token_s(request)
    token_s = [draft_token_s(geometry, request) for geometry in geometries]
    round_s = [_round_s(seconds, request) for seconds in token_s]
    shapes = [
        DraftShape(
            geometry=geometry,
            token_s=each_s,
            kv_bytes_per_token=round(kv_bytes_per_token(geometry, dtype_format(request.dtype, geometry))),
            break_even_tokens=whole_s / plain_s,
            over_fastest=whole_s / min(round_s),
            can_pay=whole_s / plain_s < request.max_round_tokens,
            is_frontier=all(
                other_s >= each_s
                for other, other_s in zip(geometries, token_s, strict=True)
                if other.num_layers >= geometry.num_layers
            ),
        )
        for geometry, each_s, whole_s in zip(geometries, token_s, round_s, strict=True)
    ]
    return DraftShapes(
        target=_drafted_target(request),
        num_params=request.num_params,
        draft_tokens=request.draft_tokens,
        shapes=tuple(sorted(shapes, key=lambda shape: shape.token_s)),
    )


def draft_lengths(draft: DraftGeometry, request: DesignRequest, lengths: Iterable[Tokens]) -> DraftLengths:
    """A given draft at several draft lengths.

    Args:
        draft: its real shape.
        request: everything but its size and length.
        lengths: tokens drafted per round.
    """
    plain_s, token_s = plain_token_s(request), draft_token_s(draft.model, request)
    priced = [(length, _round_s(token_s, replace(request, draft_tokens=length))) for length in lengths]
    return DraftLengths(
        target=_drafted_target(request),
        draft=draft,
        draft_weights=request.draft_weights(draft.model),
        token_s=token_s,
        lengths=tuple(
            DraftLength(
                draft_tokens=length,
                round_s=round_s,
                break_even_tokens=round_s / plain_s,
                can_pay=round_s / plain_s < length + 1,
            )
            for length, round_s in priced
        ),
        notes=tuple(_draft_notes(draft, request)),
    )


def _drafted_target(request: DesignRequest) -> DraftedTarget:
    device = DeviceKey(
        device=request.hardware.name,
        num_devices=request.num_devices,
        num_threads=None,
        dtype=request.dtype,
        engine=request.engine,
    )
    return DraftedTarget(
        model=request.target,
        weights=request.target_weights,
        device=device,
        context_tokens=request.context_tokens,
        plain_token_s=plain_token_s(request),
    )


def _draft_notes(draft: DraftGeometry, request: DesignRequest) -> Iterator[str]:
    """Reasons why a draft may not run with its target, and how to train one that is not published."""
    model, target, memory_bytes = draft.model, request.target, request.hardware.memory_bytes
    if model.vocab_size != target.vocab_size:
        yield (
            f"the draft's vocabulary has {model.vocab_size} tokens, the target's {target.vocab_size}. A draft needs the target's "
            "tokenizer; only unused rows may differ"
        )
    if model.num_params >= target.num_params:
        yield "the draft is not smaller than its target"
    if request.context_tokens >= model.max_context_tokens:
        yield f"the draft's context ends at {model.max_context_tokens} tokens"
    needed_bytes = first_device_bytes(model, request)
    if memory_bytes is not None and needed_bytes > memory_bytes:
        yield (
            f"the draft and its share of the target take {format_bytes(needed_bytes)}, and one {request.hardware.name} holds "
            f"{format_bytes(memory_bytes)}. Give more --num-devices, a larger --device or a smaller --dtype"
        )
    if (note := unpublished_note(draft)) is not None:
        yield note


def plain_token_s(request: DesignRequest) -> Seconds:
    """Seconds of one token of the target's plain decoding."""
    return _target_s(request, drafted_tokens=0)


def _round_s(token_s: Seconds, request: DesignRequest) -> Seconds:
    """Seconds of a round whose drafted tokens take `token_s` each."""
    return request.draft_tokens * token_s + _target_s(request, drafted_tokens=request.draft_tokens)


def _target_s(request: DesignRequest, *, drafted_tokens: Tokens) -> Seconds:
    """Seconds of a round without its drafting: verification and the host's bookkeeping."""
    setting = PassSetting(
        model=request.target,
        weights=request.target_weights,
        num_devices=request.num_devices,
        context_tokens=request.context_tokens,
    )
    target = RooflineLatency(setting, request.hardware, request.engine)
    verify, bookkeeping = target.line("verify", 0, drafted_tokens + 1), target.line("round", 0, drafted_tokens)
    return verify.at(request.context_tokens) + bookkeeping.at(request.context_tokens)


def first_device_bytes(draft: ModelGeometry, request: DesignRequest) -> Bytes:
    """Bytes on the device that holds a whole draft and its part of the target, caches included."""
    pairs = ((draft, request.draft_weights(draft), 1), (request.target, request.target_weights, request.num_devices))
    return round(
        sum(
            (model_weight_bytes(model, weights) + kv_cache_bytes(model, weights, request.context_tokens)) / num_shares
            for model, weights, num_shares in pairs
        )
    )


def token_s_by_depth(shapes: Iterable[DraftShape]) -> dict[int, Seconds]:
    """Seconds of a drafted token of the fastest design at every depth."""
    fastest: dict[int, Seconds] = {}
    for shape in shapes:
        depth = shape.geometry.num_layers
        fastest[depth] = min(shape.token_s, fastest.get(depth, shape.token_s))
    return fastest


def draft_token_s(geometry: ModelGeometry, request: DesignRequest) -> Seconds:
    """Seconds to draft one token on one device: one segment of all layers, and one exit."""
    setting = PassSetting(model=geometry, exit_layers=(geometry.num_layers,), weights=request.draft_weights(geometry))
    latency = RooflineLatency(setting, request.hardware, request.engine)
    return latency.line("segment", 0, 1).at(request.context_tokens) + latency.line("exit", 0, 1).at(request.context_tokens)


def geometries_of(target: ModelGeometry, num_params: int, head_vocab_size: int | None) -> Iterator[ModelGeometry]:
    """Llama-like drafts with the target's vocabulary and about so many weights, over depths, widths and MLP sizes.

    Depth and the MLP's ratio leave one width, rounded to whole heads; the MLP then takes up what the rounding left. What a
    reduced head saves goes into layers: drafts of one size keep it.
    """
    seen = set()
    for depth in DEPTHS:
        for ratio in FFN_RATIOS:
            found = _geometry(target, num_params, head_vocab_size, depth, ratio)
            if found is not None and (depth, found.hidden_size) not in seen:
                seen.add((depth, found.hidden_size))
                yield found


def _geometry(
    target: ModelGeometry, num_params: int, head_vocab_size: int | None, depth: int, ratio: Fraction
) -> ModelGeometry | None:
    def shaped(width: int, mlp: int) -> ModelGeometry:
        head_dim = HEAD_DIMS[width >= MIN_WIDTH_OF_LARGE_HEADS]
        heads = width // head_dim
        return ModelGeometry(
            name=f"{depth} x {width}",
            num_layers=depth,
            hidden_size=width,
            intermediate_size=mlp,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim,
            vocab_size=target.vocab_size,
            tied_embeddings=False,
            max_context_tokens=target.max_context_tokens,
            source="designed",
            head_vocab_size=head_vocab_size,
        )

    def rounded_mlp(width: int) -> int:
        return max(FFN_MULTIPLE, round(ratio * width / FFN_MULTIPLE) * FFN_MULTIPLE)

    small, large = HEAD_DIMS
    widths = (
        *range(small, MIN_WIDTH_OF_LARGE_HEADS, small),
        *range(MIN_WIDTH_OF_LARGE_HEADS, 4 * target.hidden_size + 1, large),
    )
    width = min(widths, key=lambda one: abs(shaped(one, rounded_mlp(one)).num_params - num_params))
    at_rounded = shaped(width, rounded_mlp(width))
    lacking = (num_params - at_rounded.num_params) / (3 * width * depth)  # gate, up and down
    fitted = shaped(width, max(FFN_MULTIPLE, at_rounded.intermediate_size + round(lacking / FFN_MULTIPLE) * FFN_MULTIPLE))
    return fitted if abs(fitted.num_params / num_params - 1) <= PARAMS_TOLERANCE else None
