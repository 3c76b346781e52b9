"""Random models of known shapes: as large as was reckoned, and refused where they would not fit."""

import re
from dataclasses import fields, replace

import pytest
import torch

from perfmodel.errors import Mismatch, UserInputError
from perfmodel.geometry import DraftGeometry, ModelGeometry, find_draft, find_model
from perfmodel.profile import DTYPE_BYTES
from perfmodel.units import GIB
from s2d.load import LoadedModel, random_model
from s2d.random_pair import WORKSPACE_BYTES, free_bytes_of, needed_bytes, random_pair, with_layers
from tests.strategies import tiny_geometry

MAX_TOKENS = 40
TARGET = tiny_geometry(16, "tiny-target")
SEPARATE = DraftGeometry(kind="separate", model=tiny_geometry(6, "tiny-draft"), exit_layers=(2, 6))
SELF = DraftGeometry(kind="self", model=TARGET, exit_layers=(2, 6))
DRAFTS = (SEPARATE, SELF)


def weight_bytes(model: LoadedModel) -> int:
    weights = model.decoder.weights
    matrices = [getattr(layer, one.name) for layer in weights.layers for one in fields(layer)]
    tensors = (*matrices, weights.embedding, weights.head)
    return sum(one.untyped_storage().nbytes() for one in tensors if one is not None)


@pytest.mark.parametrize("draft", DRAFTS, ids=lambda draft: draft.kind)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_built_takes_what_was_reckoned(draft: DraftGeometry, dtype: str) -> None:
    pair = random_pair(TARGET, draft, dtype, "cpu", max_tokens=MAX_TOKENS, seed=0)
    depth = TARGET.num_layers
    own = pair.geometry.exit_layers
    ends = {"separate": ((depth,),), "self": ((depth,), (*own, depth))}[draft.kind]
    caches = [pair.target.decoder.new_cache(one, MAX_TOKENS) for one in ends]
    models = [pair.target]
    if draft.kind == "separate":
        models.append(pair.draft)
        caches.append(pair.draft.decoder.new_cache(own, MAX_TOKENS))
    kept = sum(map(weight_bytes, models))
    kept += sum(one.nbytes for cache in caches for one in (cache._kv, *cache.states))
    assert needed_bytes(TARGET, draft, dtype, MAX_TOKENS) == kept + WORKSPACE_BYTES


def test_what_does_not_fit_is_refused_before_anything_is_built() -> None:
    target, draft = find_model("llama-2-70b"), find_draft("s2d-vicuna-12")
    needed = needed_bytes(target, draft, "bf16", 768)
    assert needed / DTYPE_BYTES["bf16"] == pytest.approx(69.0e9 + 2.69e9, rel=0.02)
    said = "llama-2-70b and s2d-vicuna-12 take 145 GB with their caches, and cpu has 85.9 GB left"
    with pytest.raises(UserInputError, match=re.escape(said)):
        random_pair(target, draft, "bf16", "cpu", max_tokens=768, seed=0, free_bytes=lambda _: 80 * GIB)


@pytest.mark.parametrize("free", [needed_bytes(TARGET, SEPARATE, "fp32", MAX_TOKENS) - number for number in (1, 9_000)])
def test_the_layers_that_are_said_to_fit_do(free: int) -> None:
    def build(target: ModelGeometry) -> None:
        random_pair(target, SEPARATE, "fp32", "cpu", max_tokens=MAX_TOKENS, seed=0, free_bytes=lambda _: free)

    with pytest.raises(UserInputError, match=r"--layers \d+") as refused:
        build(TARGET)
    num_layers = int(str(refused.value).rpartition("--layers ")[2].rstrip("."))
    build(with_layers(TARGET, num_layers))
    with pytest.raises(UserInputError):
        build(with_layers(TARGET, num_layers + 1))


def test_a_cut_model_says_so() -> None:
    assert with_layers(TARGET, 4).name == "tiny-target, 4 of 16 layers"
    assert with_layers(TARGET, 16) == with_layers(TARGET, None) == TARGET
    with pytest.raises(UserInputError, match="--layers 17: expected from 1 to the 16 of tiny-target"):
        with_layers(TARGET, 17)


def test_a_draft_of_another_vocabulary_is_refused() -> None:
    other = replace(SEPARATE, model=replace(SEPARATE.model, vocab_size=9))
    with pytest.raises(Mismatch, match="a vocabulary of 9 tokens"):
        random_pair(TARGET, other, "fp32", "cpu", max_tokens=MAX_TOKENS, seed=0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_numbers_stay_as_large_as_in_trained_models_at_any_depth(dtype: str) -> None:
    deep = replace(tiny_geometry(120), hidden_size=64, intermediate_size=128, num_heads=4, head_dim=16, vocab_size=64)
    decoder = random_model(deep, (), dtype, seed=0).decoder
    cache = decoder.new_cache((120,), 8)
    states = decoder.forward_segment(decoder.embed(list(range(8))), cache.segments[0], cache)
    rms = states[:, :64].float().square().mean().sqrt().item()
    logits = decoder.exit_logits(states).float()
    assert 0.5 < rms < 4
    assert 0.5 < logits.std().item() < 2
    assert torch.isfinite(logits).all()


def test_this_machine_says_how_much_memory_is_left() -> None:
    assert free_bytes_of(torch.device("cpu")) > 0
