"""GGUF files read back: settings, and every tensor equal to the checkpoint's."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from perfmodel.core.errors import BadFile, UserInputError
from s2d.engines.gguf_file import write_gguf
from s2d.engines.gguf_tensors import GGUF_TYPES, to_halves, to_neighbours
from tests.s2d.loading.test_load_model import byte_tokenizer
from tests.stubs import TinySpec, tiny_llama

TYPE_ERRORS = {
    "f32": 0.0,
    "f16": 1e-3,
    "bf16": 8e-3,
    "q8_0": 2e-2,
    "q5_1": 0.1,
    "q5_0": 0.1,
    "q4_1": 0.2,
    "q4_0": 0.2,
}
"""Largest error of a number by type, as a share of the largest number."""


def model_folder(folder: Path, spec: TinySpec, **settings: object) -> Path:
    tokenizer = byte_tokenizer()
    model = tiny_llama(spec)
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def spec_of(family: str = "llama", **changes: Any) -> TinySpec:
    return TinySpec(
        family=family,
        num_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=270,
        **changes,
    )


def read_back(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """The fields of a GGUF file, and its tensors as float32."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    return fields, tensors


def test_the_order_of_rows_is_undone_exactly() -> None:
    rows = np.arange(3 * 8 * 2).reshape(24, 2)
    neighbours = to_neighbours(rows, 3)
    assert neighbours[:4].tolist() == rows[[0, 4, 1, 5]].tolist()
    assert np.array_equal(to_halves(neighbours, 3), rows)


@pytest.mark.parametrize("weights", GGUF_TYPES)
def test_every_type_keeps_the_numbers_within_its_precision(tmp_path: Path, weights: str) -> None:
    source = model_folder(tmp_path / "model", spec_of(tied=True))
    fields, tensors = read_back(write_gguf(source, weights, tmp_path / "model.gguf"))
    stored = load_file(source / "model.safetensors")
    for name, part, heads in (
        ("token_embd.weight", "model.embed_tokens.weight", 0),
        ("blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight", 4),
        ("blk.1.attn_k.weight", "model.layers.1.self_attn.k_proj.weight", 2),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight", 0),
    ):
        found = to_halves(tensors[name], heads) if heads else tensors[name]
        expected = stored[part].numpy()
        assert np.abs(found - expected).max() <= TYPE_ERRORS[weights] * np.abs(expected).max(), name
    assert np.array_equal(tensors["output_norm.weight"], stored["model.norm.weight"].numpy())
    assert "output.weight" not in tensors
    assert fields["general.architecture"] == "llama"


def test_a_four_bit_file_stores_its_head_with_eight(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model", spec_of())
    reader = gguf.GGUFReader(write_gguf(source, "q4_0", tmp_path / "model.gguf"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert (kinds["output.weight"], kinds["token_embd.weight"], kinds["blk.0.attn_q.weight"]) == ("Q8_0", "Q4_0", "Q4_0")
    assert kinds["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("family", "settings", "architecture", "extra"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}, "llama", "blk.0.attn_output.bias"),
        ("mistral", {"sliding_window": 100}, "llama", None),
        ("qwen2", {}, "qwen2", "blk.0.attn_q.bias"),
        ("qwen3", {}, "qwen3", "blk.1.attn_k_norm.weight"),
    ],
)
def test_every_family_is_written_under_its_architecture(
    tmp_path: Path, family: str, settings: dict[str, object], architecture: str, extra: str | None
) -> None:
    spec = spec_of(family, settings=tuple(settings.items()))
    source = model_folder(tmp_path / "model", spec)
    fields, tensors = read_back(write_gguf(source, "f32", tmp_path / "model.gguf"))
    stored = load_file(source / "model.safetensors")
    assert fields["general.architecture"] == architecture
    assert fields[f"{architecture}.context_length"] == (100 if family == "mistral" else spec.context_tokens)
    query = stored["model.layers.0.self_attn.q_proj.weight"].numpy()
    is_permuted = family in ("llama", "mistral")
    assert np.array_equal(tensors["blk.0.attn_q.weight"], to_neighbours(query, 4) if is_permuted else query)
    assert extra is None or extra in tensors
    assert len(tensors) == len(stored)
    if "attention_bias" in settings:
        bias = stored["model.layers.0.self_attn.k_proj.bias"].numpy()
        assert np.array_equal(tensors["blk.0.attn_k.bias"], to_neighbours(bias, 2))


def test_positions_of_every_rotary_type_are_stated(tmp_path: Path) -> None:
    files = {rope: model_folder(tmp_path / rope, spec_of(rope=rope)) for rope in ("default", "linear", "yarn", "llama3")}
    read = {rope: read_back(write_gguf(source, "f32", tmp_path / f"{rope}.gguf")) for rope, source in files.items()}
    scaling = {rope: fields.get("llama.rope.scaling.type") for rope, (fields, _) in read.items()}
    assert scaling == {"default": None, "linear": "linear", "yarn": "yarn", "llama3": None}
    assert read["yarn"][0]["llama.rope.scaling.original_context_length"] == 40
    factors = read["llama3"][1]["rope_freqs.weight"]
    assert factors.shape == (8,)
    assert (factors[0], factors[-1]) == (1.0, 4.0)
    source = model_folder(tmp_path / "mscale", spec_of(rope="yarn, mscale"))
    with pytest.raises(BadFile, match=r"YaRN positions with mscale 1\.5, which GGUF files cannot state"):
        write_gguf(source, "f32", tmp_path / "mscale.gguf")


def test_a_wrong_request_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model", spec_of())
    out = tmp_path / "model.gguf"
    with pytest.raises(UserInputError, match="unknown type 'q4_k_m' for a GGUF file: expected one of f32, f16"):
        write_gguf(source, "q4_k_m", out)
    odd = model_folder(tmp_path / "odd", TinySpec(hidden_size=48, num_heads=3, num_kv_heads=3, vocab_size=270))
    with pytest.raises(UserInputError, match="hidden_size is 48, expected a multiple of 32 for q8_0"):
        write_gguf(odd, "q8_0", out)
    with pytest.raises(BadFile, match="its folder does not exist"):
        write_gguf(source, "f32", tmp_path / "none" / "model.gguf")
    assert not [*tmp_path.glob("*.gguf"), *tmp_path.glob(".*")]


def test_a_checkpoint_that_is_not_its_config_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "model", spec_of())
    path, out = source / "model.safetensors", tmp_path / "model.gguf"
    whole = load_file(path)
    for name, tensor, message in (
        ("lm_head.weight", whole["lm_head.weight"][:50].clone(), r"has shape \[50, 64\], expected \[270, 64\]"),
        ("model.norm.weight", torch.full((64,), float("nan")), "holds nan as its largest number"),
        ("model.layers.0.mlp.up_proj.weight", torch.full((96, 64), 1e5), "which f16 cannot store"),
        ("model.layers.0.mlp.up_proj.weight", torch.ones(96, 64, dtype=torch.int8), "expected plain floats"),
        ("model.layers.5.mlp.up_proj.weight", torch.ones(96, 64), "does not belong to the model in config.json"),
    ):
        save_file(whole | {name: tensor}, path, metadata={"format": "pt"})
        with pytest.raises(BadFile, match=message):
            write_gguf(source, "f16", out)
    save_file({name: tensor for name, tensor in whole.items() if name != "model.norm.weight"}, path)
    with pytest.raises(BadFile, match=r"the weights lack 'model\.norm\.weight'"):
        write_gguf(source, "f16", out)
    assert not [*tmp_path.glob("*.gguf"), *tmp_path.glob(".*")]
