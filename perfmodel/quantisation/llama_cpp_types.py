"""Block format of each tensor in llama.cpp's quantised types.

`Q4_K_M` and similar types are mixtures. The rules are those of `llama_tensor_get_type` in llama.cpp. The LM head is Q6_K. The
embedding has the base type, or the head's type if both are one tensor. In Q4_K_M and Q5_K_M, the attention's V and the MLP's
down projection are Q6_K in the first and last eighth of the layers and in every third layer between. In models with 80 layers
V is at least Q5_K. A matrix whose row length is not a multiple of 256 gets a format with blocks of 32 instead. Mean bits per
weight agree with the table in llama.cpp's tools/quantize/README.md (Llama-3.1-8B: Q4_K_M 4.894, Q5_K_M 5.704, Q6_K 6.563).
"""

from dataclasses import dataclass

from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import ModelGeometry
from perfmodel.quantisation.weight_format import WeightFormat, format_by_module
from perfmodel.quantisation.weight_schemes import Scheme

_BLOCK_BITS = {"Q4_0": 4.5, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625}
"""Bits per weight with scales: block_q4_K takes 144 bytes for 256 weights, block_q6_K 210, and block_q4_0 18 for 32."""
_SUPER_BLOCK = 256
_FALLBACK_BLOCKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Formats that replace super-block formats if the row length is not a multiple of a super-block."""
_LAYERS_OF_70B = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mixture:
    """Block formats of one quantised type."""

    base: str
    head: str
    upgrade: str | None
    """Format of V and the MLP's down projection in some layers; None if all layers are alike."""


_MIXTURES: dict[Dtype, _Mixture] = {
    "q4_0": _Mixture(base="Q4_0", head="Q6_K", upgrade=None),
    "q4_k_m": _Mixture(base="Q4_K", head="Q6_K", upgrade="Q6_K"),
    "q5_k_m": _Mixture(base="Q5_K", head="Q6_K", upgrade="Q6_K"),
    "q6_k": _Mixture(base="Q6_K", head="Q6_K", upgrade=None),
    "q8_0": _Mixture(base="Q8_0", head="Q8_0", upgrade=None),
}


def llama_cpp_format(dtype: Dtype, model: ModelGeometry) -> WeightFormat:
    """The format of a model in one of llama.cpp's types."""
    mixture, matrices = _MIXTURES[dtype], model.layer_matrices

    def matrix_scheme(layer: int, module: str) -> Scheme:
        kind = mixture.base
        if mixture.upgrade is not None and module in ("v_proj", "down_proj", "fc2") and _is_upgraded(layer, model.num_layers):
            kind = mixture.upgrade
        elif module == "v_proj" and model.num_layers == _LAYERS_OF_70B and kind == "Q4_K":
            kind = "Q5_K"
        return _scheme(kind, matrices[module][1])

    head = _scheme(mixture.head, model.embedding_width)
    embedding = head if model.has_tied_head else _scheme(mixture.base, model.embedding_width)
    return format_by_module(f"llama.cpp {dtype.upper()}", model, matrix_scheme, head=head, embedding=embedding)


def _is_upgraded(layer: int, num_layers: int) -> bool:
    """llama.cpp's `use_more_bits`."""
    first = num_layers // 8
    return layer < first or layer >= 7 * num_layers // 8 or (layer - first) % 3 == 2


def _scheme(kind: str, columns: int) -> Scheme:
    block = _FALLBACK_BLOCKS.get(kind, kind) if columns % _SUPER_BLOCK else kind
    return Scheme(label=block, value_bits=_BLOCK_BITS[block], group_weights=1, scale_bits=0.0, kernels="gguf", arithmetic=None)
