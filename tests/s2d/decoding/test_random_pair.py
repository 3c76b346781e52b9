"""Random models of known shapes: refused if they do not fit, and numerically sound."""

import re
from dataclasses import replace

import pytest
import torch

from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.core.units import GIB
from perfmodel.models.dtypes import DTYPE_BYTES, Dtype
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from s2d.decoding.random_pair import random_pair, with_layers
from s2d.loading.load_model import random_model
from s2d.loading.memory import PairPlacement, TextLimits, memory_need
from tests.strategies import tiny_geometry

MAX_TOKENS = 40
TARGET = tiny_geometry(16, "tiny-target")
SEPARATE = DraftGeometry(kind="separate", model=tiny_geometry(6, "tiny-draft"), exit_layers=(2, 6))
SELF = DraftGeometry(kind="self", model=TARGET, exit_layers=(2, 6))
DRAFTS = (SEPARATE, SELF)


def placement(target: ModelGeometry, draft: DraftGeometry, dtype: Dtype = "fp32") -> PairPlacement:
    return PairPlacement(target=target, draft=draft, dtype=dtype, device=torch.device("cpu"), mode="eager")


def limits(max_tokens: int = MAX_TOKENS) -> TextLimits:
    return TextLimits(max_tokens=max_tokens, prompt_tokens=max_tokens, num_noise_tables=0)


def test_a_pair_that_does_not_fit_is_refused_before_it_is_built() -> None:
    target, draft = find_model("llama-2-70b"), find_draft("s2d-vicuna-12")
    models, text = placement(target, draft, "bf16"), limits(768)
    needed = memory_need(models, text, reads_files=False).total_bytes
    assert needed / DTYPE_BYTES["bf16"] == pytest.approx(69.0e9 + 2.69e9, rel=0.02)
    expected = (
        "llama-2-70b and s2d-vicuna-12 need 145 GB of memory (weights 143 GB, buffers of short passes 561 MB, caches 434 MB), "
        "but cpu has 85.9 GB free. Give a larger --device, a smaller --dtype, or fewer of the target's layers: --layers 45."
    )
    with pytest.raises(UserInputError, match=re.escape(expected)):
        random_pair(models, text, seed=0, free_bytes=lambda _: 80 * GIB)


@pytest.mark.parametrize("draft", DRAFTS, ids=lambda draft: draft.kind)
@pytest.mark.parametrize("lacking", [1, 9_000])
def test_the_advised_number_of_layers_fits_and_one_more_does_not(draft: DraftGeometry, lacking: int) -> None:
    free = memory_need(placement(TARGET, draft), limits(), reads_files=False).total_bytes - lacking

    def build(target: ModelGeometry) -> None:
        own_draft = replace(draft, model=target) if draft.kind == "self" else draft
        random_pair(placement(target, own_draft), limits(), seed=0, free_bytes=lambda _: free)

    with pytest.raises(UserInputError, match=r"--layers \d+") as refused:
        build(TARGET)
    num_layers = int(str(refused.value).rpartition("--layers ")[2].rstrip("."))
    build(with_layers(TARGET, num_layers))
    with pytest.raises(UserInputError):
        build(with_layers(TARGET, num_layers + 1))


def test_no_number_of_layers_is_advised_if_none_fits() -> None:
    with pytest.raises(UserInputError, match=r"a smaller --dtype\.$"):
        random_pair(placement(TARGET, SELF), limits(), seed=0, free_bytes=lambda _: 1000)


def test_the_name_of_a_cut_model_gives_its_layers() -> None:
    assert with_layers(TARGET, 4).name == "tiny-target, 4 of 16 layers"
    assert with_layers(TARGET, 16) == with_layers(TARGET, None) == TARGET
    with pytest.raises(UserInputError, match="--layers 17: expected from 1 to the 16 of tiny-target"):
        with_layers(TARGET, 17)


def test_a_draft_with_another_vocabulary_is_refused() -> None:
    other = replace(SEPARATE, model=replace(SEPARATE.model, vocab_size=9))
    with pytest.raises(Mismatch, match="a vocabulary of 9 tokens"):
        random_pair(placement(TARGET, other), limits(), seed=0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_states_and_logits_keep_their_scale_at_any_depth(dtype: str) -> None:
    deep = replace(tiny_geometry(120), hidden_size=64, intermediate_size=128, num_heads=4, head_dim=16, vocab_size=64)
    decoder = random_model(deep, (), dtype, seed=0).decoder
    cache = decoder.new_cache((120,), 8)
    states = decoder.forward_segment(decoder.embed(list(range(8))), cache.segments[0], cache)
    rms = states[:, :64].float().square().mean().sqrt().item()
    logits = decoder.exit_logits(states).float()
    assert 0.5 < rms < 4
    assert 0.5 < logits.std().item() < 2
    assert torch.isfinite(logits).all()
