r"""The recipe of the reference family: a nested draft, two targets and a tokenizer.

The training text is the source code of the Python standard library. The folder of a stage is complete or absent, so a run can
stop and resume. The stages:

    tokenizer -> base-8 -> base-16 -> target-16 ---------------> text-16 --\
                              \-> target-32 -----------------> text-32 ---> draft

A deeper model starts as the shallower one plus layers with zero output projections, which compute the same function. The draft
starts as the first layers of target-16, as S2D's draft starts as the first layers of Vicuna-7B. It is trained by SoFT with
distillation, on text of the standard library and on text of both targets.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from perfmodel.core.disk import atomic_folder
from perfmodel.core.errors import UnknownName
from s2d.training.corpus import training_texts
from s2d.training.training_record import TrainSettings

VOCAB_SIZE = 2048
END_OF_TEXT = "<|endoftext|>"
HIDDEN_SIZE = 128
INTERMEDIATE_SIZE = 320
NUM_HEADS = 2
HEAD_DIM = 64
CONTEXT_TOKENS = 512
DRAFT_EXITS = (1, 2, 4, 6)
TARGET_EXITS = (2, 4, 6, 8)
TARGETS = ("target-16", "target-32")

STABLE = TrainSettings(
    steps=1000,
    warmup_steps=40,
    cooldown_steps=0,
    batch_sequences=8,
    sequence_tokens=512,
    matrix_lr=0.02,
    vector_lr=1.2e-2,
    distill_frac=0.0,
    all_exits=False,
    seed=20260701,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One model of the recipe: its start, its depth and its training."""

    name: str
    start: str | None
    """The stage whose model it starts from; None for random weights."""
    num_layers: int
    settings: TrainSettings
    teachers: tuple[str, ...] = ()

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """The trained exits: those of the draft, or a target's early exits and its depth."""
        return DRAFT_EXITS if self.teachers else (*(e for e in TARGET_EXITS if e < self.num_layers), self.num_layers)


STAGES = (
    Stage(name="base-8", start=None, num_layers=8, settings=STABLE),
    Stage(name="base-16", start="base-8", num_layers=16, settings=replace(STABLE, steps=500, seed=20260702)),
    Stage(
        name="target-16",
        start="base-16",
        num_layers=16,
        settings=replace(STABLE, steps=350, cooldown_steps=350, warmup_steps=1, seed=20260703),
    ),
    Stage(
        name="target-32",
        start="base-16",
        num_layers=32,
        settings=replace(STABLE, steps=500, cooldown_steps=350, seed=20260704),
    ),
    Stage(
        name="draft",
        start="target-16",
        num_layers=6,
        settings=replace(
            STABLE,
            steps=600,
            cooldown_steps=450,
            distill_frac=0.9,
            all_exits=True,
            matrix_lr=0.01,
            vector_lr=6e-3,
            seed=20260705,
        ),
        teachers=TARGETS,
    ),
)


def find_stage(name: str) -> Stage:
    """A stage of the recipe by name.

    Raises:
        UnknownName: the recipe has no such stage.
    """
    stage = next((stage for stage in STAGES if stage.name == name), None)
    if stage is None:
        raise UnknownName("stage", name, [stage.name for stage in STAGES], listed_in="docs/reference-family.md")
    return stage


def required_stages(stage: Stage) -> list[Stage]:
    """The stages that a stage depends on, in the order of training."""
    direct = [find_stage(name) for name in (*filter(None, [stage.start]), *stage.teachers)]
    return list(dict.fromkeys(stage for needed in direct for stage in (*required_stages(needed), needed)))


def train_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE tokenizer of `VOCAB_SIZE` entries on the training files, and save it as a Hugging Face folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    with atomic_folder(folder) as partial:
        wrapped.save_pretrained(partial)


def corpus_tokens(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """All training files as one sequence, with an end-of-text token after each: int32 [num_tokens]."""
    pieces = []
    for ids in tokenizer(training_texts(), add_special_tokens=False, verbose=False)["input_ids"]:
        pieces.append(np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32))
    return np.concatenate(pieces)


def new_model(num_layers: int) -> LlamaForCausalLM:
    """A Llama with the family's width and random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=HIDDEN_SIZE,
            intermediate_size=INTERMEDIATE_SIZE,
            num_hidden_layers=num_layers,
            num_attention_heads=NUM_HEADS,
            num_key_value_heads=NUM_HEADS,
            head_dim=HEAD_DIM,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def resize_model(model: LlamaForCausalLM, num_layers: int) -> LlamaForCausalLM:
    """The first layers of a model, or the whole model followed by layers without effect."""
    result = new_model(num_layers)
    depth = model.config.num_hidden_layers
    result.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    result.model.norm.load_state_dict(model.model.norm.state_dict())
    for index, layer in enumerate(result.model.layers):
        source = model.model.layers[index if index < depth else depth - 1 - (index % 4)]
        layer.load_state_dict(source.state_dict())
        if index >= depth:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return result
