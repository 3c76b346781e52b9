"""Weight formats: bits per weight of each part of a model, and the kernels that read it.

A *format* covers a whole decoder: the layers' matrices (one or more `LayerShare`s), norms and biases, the LM head, and the
embedding. Bits per weight include scales and zero points. `dtype_format` gives the format of a dtype;
`perfmodel.quantisation.quantised_config` reads the format of a quantised checkpoint from its files.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import fsum

from perfmodel.core.units import Bytes, Frac
from perfmodel.models.dtypes import DTYPE_BYTES, Dtype, WeightKernels
from perfmodel.models.geometry import ModelGeometry
from perfmodel.quantisation.weight_schemes import PLAIN, PLAIN_BITS, SCALE_BITS, Scheme, fp8_scheme, integer_scheme

BITS_PER_BYTE = 8
FLOAT_DTYPES: tuple[Dtype, ...] = ("fp32", "fp16", "bf16")
"""Dtypes without scales: every part of the model has the same bits."""
INT4_GROUP = 128
"""Weights per scale in `--dtype int4`, the group size of most AWQ and GPTQ checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShare:
    """All matrices in the layers with the same kernels and arithmetic."""

    frac: Frac
    """Their share of all weights in the layers' matrices."""
    bits: float
    """Mean bits per weight."""
    kernels: WeightKernels
    arithmetic: Dtype | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """The storage of one model's weights."""

    label: str
    """`AWQ int4, groups of 128`, or the dtype of unquantised weights."""
    layers: tuple[LayerShare, ...]
    """Their shares add up to 1. Every layer is assumed to have the same shares."""
    other_bits: float
    """Bits per weight of norms, biases, learned positions and projections of the embedding."""
    head_bits: float
    head_kernels: WeightKernels
    embedding_bits: float
    kv_cache: str | None = None
    """The checkpoint's KV cache dtype; reported, not priced."""

    def __post_init__(self) -> None:
        bits = (self.other_bits, self.head_bits, self.embedding_bits, *(share.bits for share in self.layers))
        if not self.layers or min(bits) <= 0 or abs(fsum(share.frac for share in self.layers) - 1) > 1e-6:
            raise ValueError(f"weight format {self.label!r}: expected positive bits and shares that add up to 1, got {self!r}")

    @property
    def layer_bits(self) -> float:
        """Mean bits per weight of the layers' matrices."""
        return fsum(share.frac * share.bits for share in self.layers)

    @property
    def is_plain(self) -> bool:
        """Whether no part is quantised."""
        return {self.head_kernels, *(share.kernels for share in self.layers)} <= set(FLOAT_DTYPES)

    @property
    def activation_bytes(self) -> float:
        """Bytes of one activation or KV cache value; 16 bits with quantised weights."""
        return DTYPE_BYTES["fp32"] if self.head_kernels == "fp32" else DTYPE_BYTES["fp16"]

    @property
    def text(self) -> str:
        """`AWQ int4, groups of 128, 4.16 bits; head 16 bits`."""
        if self.is_plain:
            return self.label
        parts = [f"{self.label}, {_bits_text(self.layer_bits)}", f"head {_bits_text(self.head_bits)}"]
        if self.embedding_bits != self.head_bits:
            parts.append(f"embedding {_bits_text(self.embedding_bits)}")
        if self.kv_cache is not None:
            parts.append(f"a KV cache in {self.kv_cache} is priced at 16 bits")
        return "; ".join(parts)


def _bits_text(bits: float) -> str:
    """`4.16 bits`, `16 bits`."""
    return f"{bits:.2f}".rstrip("0").rstrip(".") + " bits"


def layers_bytes(model: ModelGeometry, weights: WeightFormat, num_layers: int) -> float:
    """Bytes of a number of layers: matrices, norms and biases."""
    other_params = model.layer_params - model.layer_matrix_params
    return num_layers * (model.layer_matrix_params * weights.layer_bits + other_params * weights.other_bits) / BITS_PER_BYTE


def head_bytes(model: ModelGeometry, weights: WeightFormat) -> float:
    """Bytes read by one LM head call."""
    return model.head_params * weights.head_bits / BITS_PER_BYTE


def embedding_bytes(model: ModelGeometry, weights: WeightFormat) -> float:
    """Bytes of the embedding; a pass reads one row per token."""
    return model.embedding_params * weights.embedding_bits / BITS_PER_BYTE


def model_weight_bytes(model: ModelGeometry, weights: WeightFormat) -> Bytes:
    """Bytes of a model's weights; a tied head is counted once if it has the same bits as the embedding."""
    head = 0.0
    if not model.has_tied_head or weights.head_bits != weights.embedding_bits:
        head = model.head_table_params * weights.head_bits / BITS_PER_BYTE
    outer = model.outer_params * weights.other_bits / BITS_PER_BYTE
    return round(layers_bytes(model, weights, model.num_layers) + embedding_bytes(model, weights) + head + outer)


def plain_format(dtype: Dtype) -> WeightFormat:
    """The format with every weight in one floating-point dtype."""
    return uniform_format(dtype, dtype, DTYPE_BYTES[dtype] * BITS_PER_BYTE)


def uniform_format(label: str, dtype: Dtype, bits: float) -> WeightFormat:
    """The format with the same bits for every weight, including norms and embedding.

    Args:
        label: the format's name.
        dtype: selects the kernels and the arithmetic.
        bits: bits per weight.
    """
    assert dtype in DTYPE_BYTES, dtype
    kernels: WeightKernels = dtype  # type: ignore[assignment]  # each dtype in DTYPE_BYTES has kernels of the same name
    share = LayerShare(frac=1.0, bits=bits, kernels=kernels, arithmetic=None if dtype in ("int8", "int4") else dtype)
    return WeightFormat(
        label=label, layers=(share,), other_bits=bits, head_bits=bits, head_kernels=kernels, embedding_bits=bits
    )


def format_by_module(
    label: str,
    model: ModelGeometry,
    matrix_scheme: Callable[[int, str], Scheme],
    *,
    head: Scheme = PLAIN,
    embedding: Scheme = PLAIN,
    kv_cache: str | None = None,
) -> WeightFormat:
    """The format of a model from the scheme of each matrix.

    Args:
        label: the format's name.
        model: the shapes of the model.
        matrix_scheme: the scheme by zero-based layer and module (`q_proj`, see `ModelGeometry.layer_matrices`).
        head: the scheme of the LM head.
        embedding: the scheme of the embedding.
        kv_cache: see `WeightFormat`.
    """
    matrices = (
        (matrix_scheme(layer, module), rows * columns, columns)
        for layer in range(model.num_layers)
        for module, (rows, columns) in model.layer_matrices.items()
    )
    return WeightFormat(
        label=label,
        layers=_shares(matrices),
        other_bits=PLAIN_BITS,
        head_bits=head.bits(model.embedding_width),
        head_kernels=head.kernels,
        embedding_bits=embedding.bits(model.embedding_width),
        kv_cache=kv_cache,
    )


def _shares(matrices: Iterable[tuple[Scheme, int, int]]) -> tuple[LayerShare, ...]:
    """Sum matrices (scheme, weights, columns) by kernels and arithmetic; the largest share first."""
    weights: dict[tuple[WeightKernels, Dtype | None], int] = {}
    bits: dict[tuple[WeightKernels, Dtype | None], float] = {}
    for scheme, count, columns in matrices:
        key = (scheme.kernels, scheme.arithmetic)
        weights[key] = weights.get(key, 0) + count
        bits[key] = bits.get(key, 0.0) + count * scheme.bits(columns)
    total = sum(weights.values())
    shares = [
        LayerShare(frac=count / total, bits=bits[key] / count, kernels=key[0], arithmetic=key[1])
        for key, count in weights.items()
    ]
    return tuple(sorted(shares, key=lambda share: (-share.frac, share.kernels)))


QUANTISED_DTYPES: dict[Dtype, Scheme] = {
    "fp8": fp8_scheme("a scale per row", group=None, scale_bits=SCALE_BITS),
    "int8": integer_scheme(8, None, has_zero_points=False),
    "int4": integer_scheme(4, INT4_GROUP, has_zero_points=True),
}
"""Schemes of the layers' matrices by `--dtype`."""
