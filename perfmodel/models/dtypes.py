"""Number types of weights and the kernels that read them."""

from typing import Literal

Dtype = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0"]
"""Values of `--dtype`; the last five are llama.cpp's types (`perfmodel.quantisation.llama_cpp_types`)."""
WeightKernels = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4", "gguf"]
"""Kernels that read weights, each at its own share of the bandwidth; `gguf` are llama.cpp's kernels for its types."""
DTYPE_BYTES: dict[Dtype, float] = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
"""Bytes of one number, without scales."""
