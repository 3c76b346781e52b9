"""Quantisation blocks of every method give the bits of the checkpoint."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import quantization_config as reference

from perfmodel.core.errors import UserInputError
from perfmodel.models.find_model import find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.quantisation.quantised_config import METHODS, check_same_weight_bytes, find_quantisation, stored_format
from perfmodel.quantisation.weight_format import WeightFormat, model_weight_bytes

LLAMA_8B, LLAMA_70B, QWEN_8B = find_model("llama-3.1-8b"), find_model("llama-3.1-70b"), find_model("qwen3-8b")
TINY = replace(find_model("ref-target-16"), num_layers=3, hidden_size=256, intermediate_size=512, num_heads=4, num_kv_heads=2)


def read(
    block: Any, model: ModelGeometry = LLAMA_8B, *, key: str = "quantization_config", separate_file: Any = None
) -> WeightFormat:
    quantisation = find_quantisation({} if block is None else {key: block}, separate_file, model.name)
    assert quantisation is not None
    return stored_format(quantisation, model)


def read_files(config: Any, separate_file: Any) -> WeightFormat | None:
    quantisation = find_quantisation(config, separate_file, "mine")
    return None if quantisation is None else stored_format(quantisation, TINY)


def tensor_group(
    bits: int, group: int | None, kind: str = "int", activations: int | None = None, **overrides: Any
) -> dict[str, Any]:
    """A group of compressed-tensors."""
    strategy = overrides.pop("strategy", "channel" if group is None else "group")
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, "symmetric": True, **overrides}
    inputs = None if activations is None else {"num_bits": activations, "type": kind}
    return {"targets": ["Linear"], "weights": weights, "input_activations": inputs}


def torchao(name: str, **data: Any) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": name, "_data": data, "_version": 1}}}


ROW = 16 * (1 / 4096 * (1 - 0.2692) + 1 / 14336 * 0.2692)
"""Bits per weight of a 16-bit scale per row. The down projection, 26.9 % of an 8B layer, has longer rows."""
LAST_LAYERS = [f"model.layers.{layer}.mlp.{part}_proj" for layer in (0, 31) for part in ("gate", "up", "down")]
CASES: dict[str, tuple[Any, float, float, float, str | None]] = {
    # block, bits of the layers, of the head, of the embedding, arithmetic
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, 4.15625, 16, 16, None),
    "awq without zero points": (
        {"quant_method": "AWQ", "w_bit": 4, "q_group_size": 64, "zero_point": False},
        4.25,
        16,
        16,
        None,
    ),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}, 4.625, 16, 16, None),
    "gptq of 3 bits": ({"quant_method": "gptq", "bits": 3, "group_size": 128}, 3 + 19 / 128, 16, 16, None),
    "gptq with its head": ({"quant_method": "gptq", "bits": 4, "lm_head": True}, 4.15625, 4.15625, 16, None),
    "gptq of one layer left out": (
        {"quant_method": "gptq", "bits": 4, "dynamic": {r"-:.*layers\.0\..*": {}, r"+:.*down.*": {"bits": 8}}},
        4.15625 / 32 * 31 + 16 / 32 + (8 + 24 / 128 - 4.15625) * 0.2692 * 31 / 32,
        16,
        16,
        None,
    ),
    "auto-round": ({"quant_method": "auto-round", "bits": 2, "group_size": 128}, 2 + 18 / 128, 16, 16, None),
    "bitsandbytes nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        4.5,
        16,
        16,
        None,
    ),
    "bitsandbytes twice": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        4 + 8.125 / 64,
        16,
        16,
        None,
    ),
    "bitsandbytes int8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["lm_head"]},
        8 + 2 * ROW,
        16,
        16,
        None,
    ),
    "bitsandbytes int8 with its head": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": []},
        8 + 2 * ROW,
        8 + 32 / 4096,
        16,
        None,
    ),
    "fp8 in blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 128**2, 16, 16, "fp8"),
    "fp8 per matrix": ({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}, 8, 16, 16, "fp8"),
    "fbgemm": (
        {"quant_method": "fbgemm_fp8", "modules_to_not_convert": [*LAST_LAYERS, "model.layers.5.self_attn"]},
        8 + 2 * ROW + 8 * (2 * 0.8077 + 0.1923) / 32,
        16,
        16,
        "fp8",
    ),
    "eetq": ({"quant_method": "eetq", "weights": "int8"}, 8 + ROW, 16, 16, None),
    "quanto": ({"quant_method": "quanto", "weights": "int4"}, 4.25, 16, 16, None),
    "hqq": (
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
        4.5,
        16,
        16,
        None,
    ),
    "mxfp4": ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, 4.25, 16, 16, None),
    "exl2": ({"quant_method": "exl2", "bits": 4.25, "head_bits": 6}, 4.25, 6, 16, None),
    "exl3": ({"quant_method": "exl3", "bits": 3.5, "head_bits": 8}, 3.5, 8, 16, None),
    "aqlm": ({"quant_method": "aqlm", "num_codebooks": 1, "nbits_per_codebook": 16, "in_group_size": 8}, 2, 16, 16, None),
    "quip": ({"quant_method": "quip", "codebook": "E8P12"}, 2, 16, 16, None),
    "vptq": (
        {"quant_method": "vptq", "shared_layer_config": {"vector_lens": [-1, 8], "num_centroids": [-1, 65536]}},
        2,
        16,
        16,
        None,
    ),
    "bitnet": ({"quant_method": "bitnet"}, 2, 16, 16, None),
    "torchao int4": (torchao("Int4WeightOnlyConfig", group_size=64), 4.5, 16, 16, None),
    "torchao with tables": (
        torchao("Int4WeightOnlyConfig", group_size=32) | {"include_input_output_embeddings": True},
        5,
        5,
        5,
        None,
    ),
    "torchao int8": (torchao("Int8WeightOnlyConfig"), 8 + ROW, 16, 16, None),
    "torchao w8a8": (torchao("Int8DynamicActivationInt8WeightConfig"), 8 + ROW, 16, 16, "int8"),
    "torchao fp8": (torchao("Float8DynamicActivationFloat8WeightConfig"), 8 + 2 * ROW, 16, 16, "fp8"),
    "torchao by text": ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, 8 + ROW, 16, 16, None),
    "compressed w4a16": (
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": tensor_group(4, 128)}, "ignore": ["lm_head"]},
        4.125,
        16,
        16,
        None,
    ),
    "compressed w8a8": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": tensor_group(8, None, "int", 8)},
            "ignore": ["lm_head"],
        },
        8 + ROW,
        16,
        16,
        "int8",
    ),
    "compressed fp8": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": tensor_group(8, None, "float", 8)},
            "ignore": ["re:.*lm_head"],
        },
        8 + ROW,
        16,
        16,
        "fp8",
    ),
    "compressed nvfp4": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": tensor_group(4, 16, "float", 4, strategy="tensor_group")},
            "ignore": ["lm_head"],
        },
        4.5,
        16,
        16,
        None,
    ),
    "compressed of two groups": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "attention": tensor_group(8, None) | {"targets": ["re:.*self_attn.*"]},
                "mlp": tensor_group(4, 128) | {"targets": ["re:.*mlp.*"]},
            },
            "ignore": ["lm_head"],
        },
        0.1923 * (8 + 16 / 4096) + 0.8077 * 4.125,
        16,
        16,
        None,
    ),
    "modelopt in config.json": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", "model.layers.1*"]},
        4.5 + 11.5 * 11 / 32,
        16,
        16,
        None,
    ),
    "modelopt of an older version": ({"quant_algo": "FP8", "ignore": ["lm_head"], "producer": {}}, 8, 16, 16, "fp8"),
    "quark": (
        {
            "quant_method": "quark",
            "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}},
            "exclude": ["lm_head"],
        },
        8,
        16,
        16,
        "fp8",
    ),
    "quark uint4": (
        {
            "quant_method": "quark",
            "global_quant_config": {"weight": {"dtype": "uint4", "group_size": 128, "symmetric": False}},
            "exclude": ["lm_head"],
        },
        4.15625,
        16,
        16,
        None,
    ),
}


def test_a_block_gives_the_bits_of_layers_head_and_embedding() -> None:
    wrong = []
    for name, (block, layer_bits, head_bits, embedding_bits, arithmetic) in CASES.items():
        weights = read(block)
        bits = (weights.head_bits, weights.embedding_bits, weights.other_bits)
        if (
            weights.layer_bits != pytest.approx(layer_bits, rel=1e-4)
            or bits != pytest.approx((head_bits, embedding_bits, 16))
            or weights.layers[0].arithmetic != arithmetic
        ):
            wrong.append(f"{name}: {weights}")
    assert not wrong, "\n".join(wrong)


MODELOPT: dict[str, tuple[dict[str, Any], float, float, str | None, str | None]] = {
    # quantization, bits of the layers, of the head, arithmetic, KV cache
    "FP8": ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}, 8, 16, "fp8", "fp8"),
    "FP8 in blocks": ({"quant_algo": "FP8_PB_WO", "exclude_modules": ["lm_head"]}, 8 + 32 / 128**2, 16, "fp8", None),
    "INT8_SQ": ({"quant_algo": "INT8_SQ", "exclude_modules": ["lm_head"]}, 8 + 2 * ROW, 16, "int8", None),
    "W4A16_AWQ": ({"quant_algo": "W4A16_AWQ", "group_size": 128, "exclude_modules": ["*lm_head"]}, 4.125, 16, None, None),
    "W4A8_AWQ": ({"quant_algo": "W4A8_AWQ", "group_size": 128, "has_zero_point": True}, 4.15625, 16, "fp8", None),
    "MXFP8": ({"quant_algo": "MXFP8", "exclude_modules": []}, 8.25, 8.25, "fp8", None),
    "only the KV cache": ({"quant_algo": None, "kv_cache_quant_algo": "FP8"}, 16, 16, None, "fp8"),
    "mixed": (
        {
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {
                f"model.layers.{layer}.{part}": {"quant_algo": algorithm}
                for layer in range(32)
                for part, algorithm in (("mlp", "NVFP4"), ("self_attn", "FP8"))
            },
        },
        0.8077 * 4.5 + 0.1923 * 8,
        16,
        None,
        None,
    ),
}


def test_the_separate_file_of_modelopt_gives_the_bits() -> None:
    wrong = []
    for name, (quantization, layer_bits, head_bits, arithmetic, kv_cache) in MODELOPT.items():
        weights = read(None, separate_file={"producer": {"name": "modelopt"}, "quantization": quantization})
        if (
            weights.layer_bits != pytest.approx(layer_bits, rel=1e-4)
            or weights.head_bits != pytest.approx(head_bits)
            or (weights.layers[0].arithmetic, weights.kv_cache) != (arithmetic, kv_cache)
        ):
            wrong.append(f"{name}: {weights}")
    assert not wrong, "\n".join(wrong)


def test_mlx_quantises_embedding_and_head_unless_they_are_overridden() -> None:
    block = {"bits": 4, "group_size": 64, "model.layers.0.self_attn.q_proj": {"bits": 8, "group_size": 64}, "lm_head": False}
    both = read(block, key="quantization")
    assert (both.head_bits, both.embedding_bits) == (16, 4.5)
    assert both.layer_bits == pytest.approx(4.5 + 4 * 4096 * 4096 / (32 * LLAMA_8B.layer_matrix_params))
    twice = find_quantisation({"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"bits": 4}}, None, "m")
    assert twice is not None
    assert twice.method == "mlx"
    tied = find_model("llama-3.2-1b")
    plain = read({"bits": 4, "group_size": 64}, tied, key="quantization")
    assert model_weight_bytes(tied, plain) == pytest.approx(tied.num_params * 4.5 / 8, rel=1e-3)


def test_the_block_in_the_text_config_of_a_multimodal_model_is_read() -> None:
    block = {"quant_method": "awq", "bits": 4}
    quantisation = find_quantisation({"text_config": {"quantization_config": block}}, None, "mine")
    assert quantisation is not None
    assert quantisation.method == "awq"
    assert find_quantisation({"text_config": {"num_hidden_layers": 4}, "quantization_config": None}, None, "mine") is None


@pytest.mark.parametrize(
    ("model", "block", "published_bytes"),
    [
        (LLAMA_8B, {"quant_method": "awq", "bits": 4, "group_size": 128}, 5.73e9),
        (LLAMA_70B, {"quant_algo": "FP8", "ignore": ["lm_head"]}, 72.7e9),
    ],
    ids=["hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4", "nvidia/Llama-3.1-70B-Instruct-FP8"],
)
def test_a_published_checkpoint_has_the_size_of_its_published_files(
    model: ModelGeometry, block: dict[str, Any], published_bytes: float
) -> None:
    assert model_weight_bytes(model, read(block, model)) == pytest.approx(published_bytes, rel=2e-3)


def tensor_bytes(model: ModelGeometry, matrix_bytes: Any) -> int:
    """Bytes of a checkpoint, tensor by tensor: the layers' matrices by a rule, all other weights in 16 bits."""
    layers = sum(matrix_bytes(rows, columns) for rows, columns in model.layer_matrices.values())
    return model.num_layers * layers + 2 * (model.num_params - model.num_layers * model.layer_matrix_params)


def awq_tensors(rows: int, columns: int) -> int:
    groups = columns // 128
    qweight, qzeros, scales = columns * (rows // 8) * 4, groups * (rows // 8) * 4, groups * rows * 2
    return qweight + qzeros + scales


def fp8_block_tensors(rows: int, columns: int) -> int:
    return rows * columns + math.ceil(rows / 128) * math.ceil(columns / 128) * 4


def nf4_double_tensors(rows: int, columns: int) -> int:
    blocks = rows * columns // 64
    return rows * columns // 2 + blocks + blocks // 256 * 4


def gpt_oss_tensors(rows: int, columns: int) -> int:
    return rows * columns // 2 + rows * columns // 32


@pytest.mark.parametrize("model", [LLAMA_8B, LLAMA_70B, QWEN_8B], ids=lambda model: model.name)
@pytest.mark.parametrize(
    ("block", "matrix_bytes"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, awq_tensors),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, awq_tensors),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, fp8_block_tensors),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
            nf4_double_tensors,
        ),
        ({"quant_method": "mxfp4"}, gpt_oss_tensors),
    ],
    ids=["awq", "gptq", "fp8", "nf4", "mxfp4"],
)
def test_a_checkpoint_has_the_sum_of_the_bytes_of_its_tensors(
    model: ModelGeometry, block: dict[str, Any], matrix_bytes: Any
) -> None:
    assert model_weight_bytes(model, read(block, model)) == pytest.approx(tensor_bytes(model, matrix_bytes), rel=1e-5)


TRANSFORMERS: dict[str, Any] = {
    "auto-round": reference.AutoRoundConfig(),
    "awq": reference.AwqConfig(),
    "aqlm": reference.AqlmConfig(),
    "bitnet": reference.BitNetQuantConfig(),
    "bitsandbytes": reference.BitsAndBytesConfig(load_in_4bit=True),
    "eetq": reference.EetqConfig(),
    "fbgemm_fp8": reference.FbgemmFp8Config(),
    "fp8": reference.FineGrainedFP8Config(),
    "fouroversix": reference.FourOverSixConfig(),
    "gemma": reference.GemmaQuantizationConfig(),
    "gptq": reference.GPTQConfig(bits=4),
    "higgs": reference.HiggsConfig(),
    "metal": reference.MetalConfig(),
    "mxfp4": reference.Mxfp4Config(),
    "nvfp4": reference.NVFP4Config(),
    "quanto": reference.QuantoConfig(),
    "sinq": reference.SinqConfig(),
    "spqr": reference.SpQRConfig(),
}
NEEDED = {"bitsandbytes": {"load_in_4bit": True}, "gptq": {"bits": 4}, "fp8": {"weight_block_size": [128, 128]}}


def test_missing_keys_of_a_block_have_the_defaults_of_transformers() -> None:
    blocks = {method: json.loads(json.dumps(config.to_dict())) for method, config in TRANSFORMERS.items()}
    assert [block["quant_method"] for block in blocks.values()] == list(TRANSFORMERS)
    assert not [
        method for method, block in blocks.items() if read(block) != read({"quant_method": method, **NEEDED.get(method, {})})
    ]


def test_every_method_of_transformers_but_gguf_is_supported() -> None:
    unknown = {method.value.replace("_", "-") for method in reference.QuantizationMethod} - set(METHODS)
    assert unknown == {"gguf"}


@pytest.mark.parametrize(
    ("config", "separate_file", "problem"),
    [
        ({"quantization_config": {"quant_method": "qwq"}}, None, "by 'qwq', a method with unknown bits per weight"),
        ({"quantization_config": {}}, None, "by 'an unnamed method', a method with unknown bits per weight"),
        ({"quantization_config": "awq"}, None, "by 'awq', where an object is expected"),
        ({"quantization_config": {"quant_method": 3}}, None, "by 3, where the name of a method is expected"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            None,
            "by 'gptq', and bits is null, expected a number of bits up to 16",
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": "four"}},
            None,
            "by 'awq', and bits is 'four', expected a number of bits up to 16",
        ),
        (
            {"quantization_config": {"quant_method": "awq", "group_size": -3}},
            None,
            "by 'awq', and group_size is -3, expected a number of weights, or -1 for a whole row",
        ),
        (
            {"quantization_config": torchao("UIntXWeightOnlyConfig")},
            None,
            "expected Int4WeightOnlyConfig, Int8WeightOnlyConfig, Float8WeightOnlyConfig or a similar class",
        ),
        ({}, {"quantization": {"quant_algo": "FP3"}}, "and quantization.quant_algo is 'FP3', expected FP8, NVFP4"),
        ({}, {"producer": {}}, "by 'an unnamed method', a method with unknown bits per weight"),
        (
            {"quantization_config": {"quant_method": "awq", "modules_to_not_convert": ["a{99999}"]}},
            None,
            "by 'awq', and a list of modules has the pattern 'a{99999}', which is too long, too nested, or repeats",
        ),
        (
            {"quantization_config": torchao("IntxWeightOnlyConfig", weight_dtype={"_type": "torch.dtype", "_data": "fp6"})},
            None,
            "expected int1 to int8",
        ),
    ],
)
def test_a_block_without_readable_bits_is_refused_in_one_sentence(config: Any, separate_file: Any, problem: str) -> None:
    with pytest.raises(UserInputError) as caught:
        read_files(config, separate_file)
    message = str(caught.value)
    assert message.startswith("model 'mine' is stored quantised by ")
    assert problem in message
    assert message.endswith(
        "its size in bytes is not known. Give the nearest --dtype, such as --dtype int4, to price it in that dtype."
    )


KEYS = [
    "bits",
    "w_bit",
    "nbits",
    "group_size",
    "q_group_size",
    "zero_point",
    "lm_head",
    "desc_act",
    "dynamic",
    "extra_config",
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "llm_int8_skip_modules",
    "weight_block_size",
    "scale_fmt",
    "modules_to_not_convert",
    "ignored_layers",
    "weights",
    "quant_config",
    "skip_modules",
    "weight_quant_params",
    "head_bits",
    "mode",
    "model.embed_tokens",
    "num_codebooks",
    "nbits_per_codebook",
    "in_group_size",
    "beta1",
    "shared_layer_config",
    "config_for_layers",
    "vector_lens",
    "num_centroids",
    "num_res_centroids",
    "codebook",
    "quant_type",
    "default",
    "_type",
    "_data",
    "include_input_output_embeddings",
    "config_groups",
    "group_0",
    "targets",
    "num_bits",
    "type",
    "strategy",
    "symmetric",
    "block_structure",
    "input_activations",
    "ignore",
    "kv_cache_scheme",
    "quantization",
    "quant_algo",
    "exclude_modules",
    "quantized_layers",
    "kv_cache_quant_algo",
    "has_zero_point",
    "global_quant_config",
    "weight",
    "dtype",
    "qscheme",
    "layer_quant_config",
    "exclude",
    "input_tensors",
    "module_quant_configs",
    "quantize_embeddings",
    "forward_dtype",
    "quant_method",
    "linear_weights_not_to_quantize",
]
WORDS = [
    "fp8",
    "int4",
    "int8",
    "nf4",
    "float",
    "int",
    "group",
    "channel",
    "tensor",
    "block",
    "Linear",
    "lm_head",
    "re:(",
    "re:.*mlp",
    "*",
    "[",
    "ue8m0",
    "FP8",
    "NVFP4",
    "W4A16_AWQ",
    "MIXED_PRECISION",
    "E8P12",
    "fp8_e4m3",
    "uint4",
    "Int4WeightOnlyConfig",
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 256)
    | st.sampled_from((4, 8, 128, 10**400, -(10**30)))
    | st.floats(allow_nan=True)
    | st.sampled_from(WORDS)
    | st.text(max_size=4)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(
    block=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8) | VALUES,
    method=st.sampled_from(sorted(METHODS)) | st.none() | LEAVES,
    place=st.sampled_from(("quantization_config", "quantization", "text_config", "separate file")),
)
def test_any_block_is_read_or_refused_without_an_internal_error(block: Any, method: Any, place: str) -> None:
    if isinstance(block, dict) and method is not None:
        block = {**block, "quant_method": method}
    config: dict[str, Any] = {} if place == "separate file" else {place: block}
    if place == "text_config":
        config = {"text_config": {"quantization_config": block}}
    try:
        weights = read_files(config, block if place == "separate file" else None)
    except UserInputError:
        return
    assert weights is None or 0 < weights.layer_bits <= 80
    assert weights is None or model_weight_bytes(TINY, weights) > 0


@pytest.mark.parametrize("name", ["lm_head", "language_model.lm_head", "model.lm_head", "re:.*lm_head", "re:.*lm_head$"])
def test_a_head_is_left_unquantised_by_any_of_its_names(name: str) -> None:
    groups = {"config_groups": {"group_0": tensor_group(8, None, "float", 8)}}
    weights = read({"quant_method": "compressed-tensors", **groups, "ignore": [name]})
    assert (weights.head_bits, weights.layer_bits < 9) == (16, True)
    if not name.startswith("re:"):
        assert read({"quant_algo": "FP8", "exclude_modules": [name, "vision_tower*"]}).head_bits == 16
        overridden = read({"group_size": 64, "bits": 4, name: {"group_size": 64, "bits": 8}}, key="quantization")
        assert (overridden.head_bits, overridden.layer_bits) == (8.5, 4.5)


@pytest.mark.parametrize("name", ["model.embed_tokens", "language_model.model.embed_tokens"])
def test_an_override_sets_the_bits_of_the_embedding(name: str) -> None:
    overridden = read({"group_size": 64, "bits": 4, name: {"group_size": 64, "bits": 8}}, key="quantization")
    assert (overridden.embedding_bits, overridden.layer_bits, overridden.head_bits) == (8.5, 4.5, 4.5)


INTX = {"_type": "Int8DynamicActivationIntxWeightConfig", "_version": 1}
INT4_BY_32 = {
    "weight_dtype": {"_type": "torch.dtype", "_data": "int4"},
    "weight_granularity": {"_type": "PerGroup", "_version": 1, "_data": {"group_size": 32}},
}
INT8_ROWS = {
    "weight_dtype": {"_type": "torch.dtype", "_data": "int8"},
    "granularity": {"_type": "PerAxis", "_data": {"axis": 0}},
}


def test_torchao_settings_of_named_modules_are_read() -> None:
    by_name = {
        "_default": {**INTX, "_data": INT4_BY_32},
        "model.embed_tokens": {"_type": "IntxWeightOnlyConfig", "_version": 1, "_data": INT8_ROWS},
        r"re:model\.layers\.[0-7]\..*": None,
    }
    for kind, key in (("FqnToConfig", "fqn_to_config"), ("ModuleFqnToConfig", "module_fqn_to_config")):
        weights = read(torchao(kind, **{key: by_name}))
        assert weights.layer_bits == pytest.approx((8 * 16 + 24 * 4.5) / 32)
        assert (weights.embedding_bits, weights.head_bits) == (pytest.approx(8 + 16 / 4096), 16)
    assert read(torchao("Int8DynamicActivationIntxWeightConfig", **INT4_BY_32)).layer_bits == 4.5


def test_two_files_that_contradict_each_other_are_refused() -> None:
    stored = read({"quant_method": "awq", "bits": 4, "group_size": 128})
    with pytest.raises(UserInputError) as caught:
        check_same_weight_bytes(stored, {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}, LLAMA_8B)
    assert str(caught.value) == (
        "model 'llama-3.1-8b': its config.json declares AWQ int4, groups of 128, 5.73 GB, but hf_quant_config.json "
        "next to it ModelOpt fp8, a scale per matrix, 9.08 GB. Remove the wrong file, or give --dtype to override both."
    )
    for separate_file in (
        None,
        {"quantization": {"quant_algo": "W4A16_AWQ", "group_size": 128}},
        {"quantization": {"quant_algo": "new"}},
    ):
        check_same_weight_bytes(stored, separate_file, LLAMA_8B)


@pytest.mark.parametrize(
    "block",
    [
        {"quant_method": "\x1b[2J" * 5000},
        {"quant_method": "awq", "bits": "\x1b" * 5000},
        {"quant_method": "gptq", "bits": 4, "dynamic": {"\x1b[2J" * 5000: {"bits": "four"}}},
        {"quant_method": "compressed-tensors", "config_groups": {"g" * 5000: {"weights": {"num_bits": None}}}},
        {"quant_method": "awq", "modules_to_not_convert": ["(\x1b" * 5000]},
    ],
)
def test_a_refusal_of_any_block_is_short_and_printable(block: Any) -> None:
    with pytest.raises(UserInputError) as caught:
        read(block)
    assert len(str(caught.value)) <= 500
    assert str(caught.value).isprintable()
