"""Shapes of Llama-like drafts of one size, over depths, widths and MLP sizes."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from perfmodel.models.geometry import ModelGeometry

DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40)
FFN_RATIOS = (Fraction(2), Fraction(8, 3), Fraction(29, 8), Fraction(5))
"""MLP size over hidden size; 8/3 is Llama's, 29/8 that of the wide draft of arXiv 2402.01528."""
HEAD_DIMS = (64, 128)
MIN_WIDTH_OF_LARGE_HEADS = 2048
"""Narrower Llamas have heads of 64."""
FFN_MULTIPLE = 64
PARAMS_TOLERANCE = 0.02
"""Relative difference up to which two shapes count as of one size."""


def candidate_geometries(target: ModelGeometry, num_params: int, head_vocab_size: int | None) -> Iterator[ModelGeometry]:
    """Llama-like drafts of a size with the target's vocabulary, over depths, widths and MLP sizes.

    Depth and MLP ratio determine the width, which is rounded to whole heads. The size of the MLP then makes up for the
    rounding. The weights that a reduced head saves go into the layers, because all drafts have the same size.
    """
    seen = set()
    for depth in DEPTHS:
        for ratio in FFN_RATIOS:
            geometry = _geometry(target, num_params, head_vocab_size, depth, ratio)
            if geometry is not None and (depth, geometry.hidden_size) not in seen:
                seen.add((depth, geometry.hidden_size))
                yield geometry


def _geometry(
    target: ModelGeometry, num_params: int, head_vocab_size: int | None, depth: int, ratio: Fraction
) -> ModelGeometry | None:
    """The shape of a depth and an MLP ratio; None if none is close enough to the size."""

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
    width = min(widths, key=lambda candidate: abs(shaped(candidate, rounded_mlp(candidate)).num_params - num_params))
    at_rounded = shaped(width, rounded_mlp(width))
    missing = (num_params - at_rounded.num_params) / (3 * width * depth)  # gate, up and down
    fitted = shaped(width, max(FFN_MULTIPLE, at_rounded.intermediate_size + round(missing / FFN_MULTIPLE) * FFN_MULTIPLE))
    return fitted if abs(fitted.num_params / num_params - 1) <= PARAMS_TOLERANCE else None
