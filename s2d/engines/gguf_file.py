"""Writes a model folder as a GGUF file, which llama.cpp loads: settings, tokenizer, and tensors one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perfmodel.core.disk import PathLike, atomic_file, check_writable
from perfmodel.core.errors import BadFile, MissingExtra, UserInputError
from perfmodel.models.geometry import ModelGeometry
from s2d.engines.gguf_tensors import (
    ARCHITECTURES,
    GGUF_TYPES,
    GgufTensor,
    GgufType,
    check_block_size,
    converted_rows,
    gguf_tensors,
    llama3_frequency_factors,
)
from s2d.engines.gguf_tokenizer import GgufTokenizer, read_gguf_tokenizer
from s2d.loading.checkpoint import BadTensor, CheckpointTensors, open_weights
from s2d.loading.read_config import DecoderConfig, config_geometry, read_config

if TYPE_CHECKING:
    from gguf import GGUFWriter

_PLAIN: Mapping[GgufType, Any] = {"f32": np.float32, "f16": np.float16}
"""Types that numpy stores; the `gguf` package packs the others into bytes."""
_UNSUPPORTED_ROPE = ("attention_factor", "mscale", "mscale_all_dim")
"""Settings of YaRN for which GGUF files have no key that all builds of llama.cpp read."""


def write_gguf(source: PathLike, weights: str, out: PathLike) -> Path:
    """Write a model folder as a GGUF file, completely or not at all.

    Args:
        source: a folder with config.json, safetensors and tokenizer.json.
        weights: type of the matrices, one of `GGUF_TYPES`.
        out: the file. An existing one is replaced.

    Raises:
        BadFile: the model or its tokenizer is none that llama.cpp computes exactly, or the file cannot be written.
        UserInputError: the type is unknown, or does not fit the shapes.
        MissingExtra: the `gguf` package is not installed.
        OutOfSpace: the disk is full.
    """
    folder = Path(source)
    kind = gguf_type(weights)
    _check_installed()
    config = read_config(folder)
    geometry = config_geometry(config, folder)
    _check_rope(folder, config)
    check_block_size(geometry, kind)
    tokenizer = read_gguf_tokenizer(folder, geometry)
    check_writable(out)
    tensors = gguf_tensors(config, geometry, kind)
    with open_weights(folder) as read, atomic_file(out) as partial:
        writer = _new_writer(partial, config.model_type)
        try:
            _add_settings(writer, config, geometry, kind)
            _add_tokenizer(writer, tokenizer)
            _write_tensors(writer, tensors, read, llama3_factors(config, geometry))
        finally:
            writer.close()
        read.check_all_layers_read(geometry.num_layers)
    return Path(out)


def gguf_type(weights: str) -> GgufType:
    """A type of the matrices by name.

    Raises:
        UserInputError: the `gguf` package does not write this type.
    """
    for kind in GGUF_TYPES:
        if kind == weights:
            return kind
    raise UserInputError(
        f"unknown type {weights!r} for a GGUF file: expected one of {', '.join(GGUF_TYPES)}. For another one, convert to bf16 "
        "and run llama.cpp's llama-quantize on the file."
    )


def llama3_factors(config: DecoderConfig, geometry: ModelGeometry) -> np.ndarray | None:
    """The numbers of `rope_freqs.weight`; None for models without it."""
    is_llama3 = config.rope_parameters["rope_type"] == "llama3"
    return llama3_frequency_factors(config, geometry.head_dim) if is_llama3 else None


def _check_installed() -> None:
    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError as err:
        raise MissingExtra("gguf", "engines") from err


def _check_rope(folder: Path, config: DecoderConfig) -> None:
    rope = config.rope_parameters
    if rope["rope_type"] == "llama3" and ARCHITECTURES[config.model_type] != "llama":
        problem = f"llama.cpp reads 'llama3' positions of Llama models only, not of {config.model_type}"
        raise BadFile(folder / "config.json", problem, "Serve this model in an engine that reads Hugging Face folders")
    given = [key for key in _UNSUPPORTED_ROPE if rope.get(key) is not None]
    if rope["rope_type"] == "yarn" and given:
        problem = f"YaRN positions with {given[0]} {rope[given[0]]!r}, which GGUF files cannot state"
        raise BadFile(folder / "config.json", problem, "Serve this model in an engine that reads Hugging Face folders")


def _new_writer(path: Path, model_type: str) -> GGUFWriter:
    from gguf import GGUFWriter

    return GGUFWriter(path, ARCHITECTURES[model_type])


def _add_settings(writer: GGUFWriter, config: DecoderConfig, geometry: ModelGeometry, kind: GgufType) -> None:
    """What llama.cpp reads of a config."""
    from gguf import LlamaFileType, RopeScalingType

    writer.add_name(geometry.name)
    prefix = "ALL" if kind == "f32" else "MOSTLY"
    writer.add_file_type(LlamaFileType[f"{prefix}_{kind.upper()}"])
    writer.add_context_length(geometry.full_attention_tokens)
    writer.add_embedding_length(geometry.hidden_size)
    writer.add_block_count(geometry.num_layers)
    writer.add_feed_forward_length(geometry.intermediate_size)
    writer.add_head_count(geometry.num_heads)
    writer.add_head_count_kv(geometry.num_kv_heads)
    writer.add_key_length(geometry.head_dim)
    writer.add_value_length(geometry.head_dim)
    writer.add_rope_dimension_count(geometry.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(geometry.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope.get("original_max_position_embeddings") or geometry.max_context_tokens)
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)


def _add_tokenizer(writer: GGUFWriter, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.kinds)
    if tokenizer.merges:
        writer.add_token_merges(tokenizer.merges)
    if tokenizer.scores:
        writer.add_token_scores(tokenizer.scores)
    for add, token_id in (
        (writer.add_bos_token_id, tokenizer.bos_id),
        (writer.add_eos_token_id, tokenizer.eos_id),
        (writer.add_pad_token_id, tokenizer.pad_id),
    ):
        if token_id is not None:
            add(token_id)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_space_prefix(tokenizer.adds_space)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _write_tensors(
    writer: GGUFWriter, tensors: tuple[GgufTensor, ...], read: CheckpointTensors, factors: np.ndarray | None
) -> None:
    """Declare all tensors, then write their numbers one after another: only one is in memory at a time."""
    for tensor in tensors:
        _declare(writer, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        rows = factors if tensor.source is None else _rows(tensor, read)
        assert rows is not None
        writer.write_tensor_data(_packed(tensor, rows))


def _rows(tensor: GgufTensor, read: CheckpointTensors) -> np.ndarray:
    """The numbers of a tensor: float32.

    Raises:
        BadFile: it has another shape than in the config, is quantised, or holds numbers that its type cannot store.
    """
    assert tensor.source is not None
    stored = read(tensor.source)
    if tuple(stored.shape) != tensor.shape:
        problem = f"has shape {list(stored.shape)}, expected {list(tensor.shape)} from config.json"
        fix = (
            "A draft with a head for some tokens only (s2d-train trim) runs in s2d alone: give the draft before it was trimmed"
        )
        raise read.with_file(BadTensor(tensor.source, problem, fix))
    if not stored.is_floating_point():
        problem = f"is stored as {stored.dtype}, expected plain floats"
        raise read.with_file(BadTensor(tensor.source, problem, "Give the original model, not a quantised one"))
    rows = converted_rows(tensor, stored)
    largest = float(np.abs(rows).max())
    if not largest < (65504.0 if tensor.type == "f16" else np.inf):
        problem = f"holds {largest!r} as its largest number, which {tensor.type} cannot store"
        raise read.with_file(BadTensor(tensor.source, problem, "Convert to bf16 or f32, or fetch the model again"))
    return rows


def _declare(writer: GGUFWriter, tensor: GgufTensor) -> None:
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape

    kind = GGMLQuantizationType[tensor.type.upper()]
    if tensor.type in _PLAIN:
        dtype = np.dtype(_PLAIN[tensor.type])
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, int(np.prod(tensor.shape)) * dtype.itemsize)
    else:
        shape = quant_shape_to_byte_shape(tensor.shape, kind)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)


def _packed(tensor: GgufTensor, rows: np.ndarray) -> np.ndarray:
    """The numbers as the file stores them."""
    from gguf import GGMLQuantizationType, quants

    if tensor.type in _PLAIN:
        return rows.astype(_PLAIN[tensor.type])
    return quants.quantize(rows, GGMLQuantizationType[tensor.type.upper()])
