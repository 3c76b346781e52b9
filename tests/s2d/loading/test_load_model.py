import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from perfmodel.core.errors import BadFile, BadPolicy, Mismatch, OutOfSpace, UnknownName, UserInputError
from perfmodel.models.geometry import ModelGeometry
from perfmodel.policies.policy import CalibrationCurve
from s2d.loading.load_model import (
    check_same_vocabulary,
    export_exit,
    load_model,
    load_tokenizer,
    random_model,
    save_draft,
    tokenizer_sha256,
)
from s2d.loading.model_folder import find_model
from s2d.loading.sidecar import Calibration, Sidecar, read_sidecar
from tests.strategies import tiny_geometry
from tests.stubs import TinySpec, tiny_llama

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def sidecar(*exit_layers: int) -> Sidecar:
    curve = CalibrationCurve(confidence=(0.1, 0.9), agreement=(0.3, 0.8))
    calibration = Calibration(confidence="max-prob", curves=(curve,) * len(exit_layers), targets=("any",), num_positions=64)
    return Sidecar(exit_layers=exit_layers, norm="shared-final-norm", calibration=calibration)


def byte_tokenizer(vocab_size: int = 270, *, swap: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=vocab_size, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the cat and the dog then"] * 3 if not swap else ["zig zag zoo"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", clean_up_tokenization_spaces=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    tiny_llama(TinySpec()).save_pretrained(path)
    return path


@torch.no_grad()
def transformers_logits(folder: Path) -> torch.Tensor:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(torch.tensor([TOKENS])).logits[0]


def our_logits(folder: Path, layers: int) -> torch.Tensor:
    return load_model(folder, "fp32").decoder.all_exit_logits(TOKENS, (layers,))[0]


@pytest.mark.parametrize("spec", [TinySpec(), TinySpec(tied=True), TinySpec(rope="llama3")])
def test_a_folder_of_transformers_gives_the_logits_of_transformers(tmp_path: Path, spec: TinySpec) -> None:
    tiny_llama(spec).save_pretrained(tmp_path)
    torch.testing.assert_close(our_logits(tmp_path, 6), transformers_logits(tmp_path), atol=2e-4, rtol=1e-4)


def test_shards_are_read_like_one_file(tmp_path: Path, folder: Path) -> None:
    tiny_llama(TinySpec()).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    assert torch.equal(our_logits(tmp_path / "shards", 6), our_logits(folder, 6))


def test_weights_stored_in_bf16_are_computed_in_the_requested_dtype(tmp_path: Path) -> None:
    tiny_llama(TinySpec()).to(torch.bfloat16).save_pretrained(tmp_path)
    torch.testing.assert_close(our_logits(tmp_path, 6), transformers_logits(tmp_path), atol=2e-4, rtol=1e-4)


def test_a_draft_keeps_its_exits_and_calibration_in_its_sidecar(tmp_path: Path, folder: Path) -> None:
    save_draft(folder, tmp_path / "draft", sidecar(2, 4, 6))
    assert read_sidecar(tmp_path / "draft") == sidecar(2, 4, 6)
    draft, plain = load_model(tmp_path / "draft", "fp32"), load_model(folder, "fp32")
    assert (draft.exit_layers, draft.calibration) == ((2, 4, 6), sidecar(2, 4, 6).calibration)
    assert (plain.exit_layers, plain.calibration) == ((), None)


def test_exits_deeper_than_the_model_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadPolicy, match=r"exit 9 \(s2d.json\) of a model of 6 layers: expected exits from 1 to 6"):
        save_draft(folder, tmp_path / "draft", sidecar(2, 9))
    with pytest.raises(BadPolicy, match="from 1 to the model's 6"):
        export_exit(folder, 7, tmp_path / "exit")


@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_exit_is_an_ordinary_checkpoint_with_the_same_logits(tmp_path: Path, tied: bool) -> None:
    tiny_llama(TinySpec(tied=tied)).save_pretrained(tmp_path / "model")
    export_exit(tmp_path / "model", 4, tmp_path / "exit")
    expected = load_model(tmp_path / "model", "fp32").decoder.all_exit_logits(TOKENS, (4, 6))[0]
    torch.testing.assert_close(transformers_logits(tmp_path / "exit"), expected, atol=2e-4, rtol=1e-4)


def test_folders_are_written_completely_and_never_overwrite(tmp_path: Path, folder: Path, monkeypatch) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    for write in (lambda out: export_exit(folder, 4, out), lambda out: save_draft(folder, out, sidecar(2, 6))):
        with pytest.raises(BadFile, match="taken': this exists already"):
            write(taken)
        with pytest.raises(BadFile, match="its folder does not exist"):
            write(tmp_path / "nowhere" / "out")

    def no_space(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("s2d.loading.load_model.save_file", no_space)
    with pytest.raises(OutOfSpace, match=r"no space left to write '.*exit-4'"):
        export_exit(folder, 4, tmp_path / "exit-4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "taken"]
    assert [path.name for path in taken.iterdir()] == ["mine"]


def test_missing_and_damaged_files_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadFile, match=r"config\.json': there is no such file"):
        load_model(tmp_path, "fp32")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadFile, match=r"model\.safetensors': truncated or damaged"):
        load_model(folder, "fp32")
    weights.unlink()
    with pytest.raises(BadFile, match=r"model\.safetensors': there is no such file"):
        load_model(folder, "fp32")


def test_the_hash_of_weights_depends_on_the_weights_alone(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    other = tmp_path / "other"
    tiny_llama(TinySpec(seed=1)).save_pretrained(other)
    hashes = [load_model(path, "fp32").sha256 for path in (folder, tmp_path / "copy", other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_vocabularies_are_compared_token_by_token(tmp_path: Path) -> None:
    tokenizer, other = byte_tokenizer(), byte_tokenizer(swap=True)
    tokenizer.save_pretrained(tmp_path)
    check_same_vocabulary(tokenizer, load_tokenizer(tmp_path))
    assert tokenizer_sha256(tokenizer) == tokenizer_sha256(load_tokenizer(tmp_path)) != tokenizer_sha256(other)
    with pytest.raises(Mismatch, match=r"token \d+ is '.+', not for one whose token \d+ is '"):
        check_same_vocabulary(tokenizer, other)
    with pytest.raises(BadFile, match="tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(UnknownName, match="unknown model 'no-such-model'"):
        find_model("no-such-model")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_random_model_of_any_shape_runs(dtype: str) -> None:
    geometry = ModelGeometry(
        name="any",
        num_layers=3,
        hidden_size=48,
        intermediate_size=40,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=31,
        tied_embeddings=True,
        max_context_tokens=64,
        source="made for a test",
    )
    logits = random_model(geometry, (1, 3), dtype, seed=0).decoder.all_exit_logits(TOKENS, (1, 3))
    assert [tuple(exit_logits.shape) for exit_logits in logits] == [(8, 31), (8, 31)]
    assert all(torch.isfinite(exit_logits).all() for exit_logits in logits)


def test_a_random_model_with_other_layers_than_a_llama_is_refused_by_their_names() -> None:
    windowed = replace(tiny_geometry(4, "gemma"), window_tokens=8, windowed_layers=2, gated_mlp=False)
    with pytest.raises(UserInputError, match="'gemma' has a plain MLP, layers with a window, expected the layers of a Llama"):
        random_model(windowed, (), "fp32", seed=0)
    with pytest.raises(UserInputError, match="'eagle' has a reduced head, expected the layers of a Llama"):
        random_model(replace(tiny_geometry(4, "eagle"), head_vocab_size=4), (), "fp32", seed=0)
