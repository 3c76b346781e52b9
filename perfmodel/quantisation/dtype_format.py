"""Find the weight format of a dtype given by `--dtype`."""

from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import ModelGeometry
from perfmodel.quantisation.llama_cpp_types import llama_cpp_format
from perfmodel.quantisation.weight_format import FLOAT_DTYPES, QUANTISED_DTYPES, WeightFormat, format_by_module, plain_format


def dtype_format(dtype: Dtype, model: ModelGeometry) -> WeightFormat:
    """The format of a model's weights in a dtype.

    `fp8`, `int8` and `int4` quantise only the layers' matrices, as checkpoints in these dtypes do. llama.cpp's types quantise
    all matrices.
    """
    if dtype in FLOAT_DTYPES:
        return plain_format(dtype)
    if dtype in QUANTISED_DTYPES:
        scheme = QUANTISED_DTYPES[dtype]
        return format_by_module(scheme.label, model, lambda layer, module: scheme)
    return llama_cpp_format(dtype, model)
