"""at_scale.py: it keeps as many layers as fit, and labels the acceptance with its pair."""

from dataclasses import replace

import at_scale
import pytest
import torch

from details.scale_models import acceptance_of, draft_of, tiny
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import GIB
from perfmodel.models.find_model import find_model
from s2d.decoding.random_pair import random_pair
from s2d.loading.memory import PairPlacement, TextLimits, memory_need

TARGET = find_model("llama-2-70b")
TRACE = acceptance_of(None, TARGET).trace
DRAFT = draft_of(None, TARGET, TRACE.header.draft, is_tiny=False)
MODELS = PairPlacement(target=TARGET, draft=DRAFT, dtype="bf16", device=torch.device("cuda"), mode="graph")
TEXT = TextLimits(max_tokens=576, prompt_tokens=576, num_noise_tables=0)


@pytest.mark.parametrize("free_bytes", [20 * GIB, 79 * GIB, 200 * GIB])
def test_as_many_layers_are_kept_as_fit_in_memory(monkeypatch, free_bytes: int) -> None:
    monkeypatch.setattr(at_scale, "free_device_bytes", lambda device: free_bytes)
    kept = at_scale.layers_of("fit", MODELS, TEXT)

    def needed(num_layers: int) -> int:
        cut = replace(MODELS, target=replace(TARGET, num_layers=num_layers))
        return memory_need(cut, TEXT, reads_files=False).total_bytes

    assert needed(kept) <= free_bytes
    assert kept == TARGET.num_layers or needed(kept + 1) > free_bytes


def test_layers_are_a_number_or_fit() -> None:
    assert at_scale.layers_of(None, MODELS, TEXT) is None
    assert at_scale.layers_of("40", MODELS, TEXT) == 40
    with pytest.raises(UserInputError, match="expected a number of layers, or fit"):
        at_scale.layers_of("most", MODELS, TEXT)


def test_a_published_trace_has_no_hashes_and_a_recorded_trace_takes_those_of_the_pair() -> None:
    target = tiny(TARGET)
    draft = draft_of(None, target, TRACE.header.draft, is_tiny=True)
    models = PairPlacement(target=target, draft=draft, dtype="fp32", device=torch.device("cpu"), mode="eager")
    pair = random_pair(models, TextLimits(max_tokens=8, prompt_tokens=8, num_noise_tables=0), seed=0)
    published = at_scale.trace_for(TRACE, pair).header
    assert (published.target, published.draft) == (target, draft)
    assert published.target_sha256 is None
    recorded = replace(TRACE, header=replace(TRACE.header, target_sha256="0" * 64, draft_sha256="1" * 64))
    header = at_scale.trace_for(recorded, pair).header
    assert (header.target_sha256, header.draft_sha256) == (pair.target.sha256, pair.draft.sha256)
