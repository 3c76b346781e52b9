"""A confidence floor that keeps its token is the `assistant_confidence_threshold` of transformers, block by block.

transformers tests the probability of the token that it drafted. Greedily that is the largest, so it is `max-prob`. Where
scikit-learn is installed, it also moves the threshold after every round; no policy does, so the test switches that off.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from perfmodel.acceptance.trace import Trace
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.policies.sampling import GREEDY
from perfmodel.replay.replay import block_lengths
from profiler.acceptance.record_acceptance import empty_trace, extended
from profiler.latency.profiling_job import ProfilingJob
from s2d.decoding.encode_prompts import EncodedPrompt, encode_prompts
from s2d.decoding.pair import PairRequest, load_pair
from s2d.loading.load_model import export_exit
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.prompt_files.choose import choose_prompts
from s2d.prompt_files.read import read_prompts
from s2d.training.train_sorted import load_trainable

pytestmark = pytest.mark.e2e

EXIT, NUM_PROMPTS, NEW_TOKENS = 4, 3, 48
MIN_GAP = 1e-4
"""Smallest distance of a confidence from the floor: far more than the difference between two implementations."""

Blocks = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assisted:
    """A pair in transformers, and the same pair with its trace in this project."""

    target: PreTrainedModel
    assistant: PreTrainedModel
    job: ProfilingJob
    trace: Trace


@pytest.fixture(scope="module")
def assisted(tmp_path_factory: pytest.TempPathFactory) -> Assisted:
    pair = replace(
        load_pair(PairRequest(target="ref-target-16", draft="ref-draft", dtype="fp32", device="cpu")), eos_token_id=None
    )
    prompts = encode_prompts(pair, choose_prompts(read_prompts(FAMILY_PROMPTS), "all", NUM_PROMPTS), max_new_tokens=NEW_TOKENS)
    job = ProfilingJob(
        pair=pair,
        prompts=prompts,
        sampling=GREEDY,
        confidence="max-prob",
        max_new_tokens=NEW_TOKENS,
        draft_cap=8,
        seed=0,
    )
    recorder = job.exit_recorder(job.session())
    folder: Path = tmp_path_factory.mktemp("exit") / str(EXIT)
    export_exit(pair.draft.folder, EXIT, folder)
    return Assisted(
        target=load_trainable(pair.target.folder),
        assistant=load_trainable(str(folder)),
        job=job,
        trace=extended(empty_trace(recorder.header), [recorder.trace(prompt) for prompt in prompts]),
    )


def assisted_generation(pair: Assisted, prompt: EncodedPrompt, *, tokens: int, floor: float) -> tuple[list[int], Blocks]:
    """The new tokens of transformers, and the drafted and accepted tokens of each round, seen at the target's passes."""
    passes: list[tuple[int, int]] = []  # rows and cached tokens

    def observe(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        passes.append((kwargs["input_ids"].shape[1], kwargs["past_key_values"].get_seq_length()))

    special = {"eos_token_id": None, "pad_token_id": 0}
    pair.assistant.generation_config = GenerationConfig(
        **special,
        num_assistant_tokens=tokens,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=floor,
    )
    ids, hook = torch.tensor([prompt.token_ids]), pair.target.register_forward_pre_hook(observe, with_kwargs=True)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW_TOKENS, "do_sample": False, **special}
    written = pair.target.generate(ids, assistant_model=pair.assistant, **options)[0].tolist()
    hook.remove()
    known = [len(prompt.token_ids), *(cached + 1 for _, cached in passes[1:]), len(written)]
    blocks = tuple(
        (rows + cached - begin, end - begin - 1)
        for (rows, cached), begin, end in zip(passes, known[:-1], known[1:], strict=True)
    )
    return written[len(prompt.token_ids) :], blocks


@pytest.mark.parametrize("floor", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("tokens", [3, 8])
def test_assisted_generation_with_a_threshold_drafts_the_blocks_of_a_floor_that_keeps_its_token(
    assisted: Assisted, tokens: int, floor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.generation.candidate_generator.is_sklearn_available", lambda: False)
    policy = Policy(exits=(EXIT,), tokens=tokens, stop=ConfidenceFloor(floor=floor))
    confidence = assisted.trace.confidence[:, assisted.trace.header.exit_layers.index(EXIT)]
    assert np.abs(confidence - floor).min() > MIN_GAP
    session, num_stopped = assisted.job.session(), 0
    for prompt, replayed in zip(assisted.job.prompts, block_lengths(assisted.trace, policy), strict=True):
        text, blocks = assisted_generation(assisted, prompt, tokens=tokens, floor=floor)
        ran = session.generate(prompt.token_ids, assisted.job.settings(policy, NEW_TOKENS))
        assert (text, blocks) == (list(ran.tokens), ran.blocks)
        up_to_the_rejected = [[(min(drafted, kept + 1), kept) for drafted, kept in found] for found in (blocks, replayed)]
        assert up_to_the_rejected[0] == up_to_the_rejected[1]
        num_stopped += sum(drafted < tokens for drafted, _ in blocks)
    assert num_stopped > NUM_PROMPTS  # the floor ended blocks, not only the end of a text
