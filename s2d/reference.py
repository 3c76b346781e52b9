r"""The recipe of the reference family: one nested draft, two targets, one tokenizer, from the standard library's text.

Stages, each a folder that is finished or absent, so that a run can stop and go on:

    tokenizer -> base-8 -> base-16 -> target-16 ---------------> text-16 --\
                              \-> target-32 -----------------> text-32 ---> draft

A deeper model starts as the shallower one with layers appended whose output projections are zero: the same function,
more room. The draft starts as the first layers of target-16 (as S2D's draft starts as the first layers of Vicuna-7B)
and is trained by SoFT with distillation on standard-library text and on text both targets wrote.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from perfmodel.errors import UnknownName, UserInputError
from s2d.corpus import training_texts
from s2d.train import Batch, TrainSettings, load_trainable, train_sorted, windows

VOCAB_SIZE = 2048
END_OF_TEXT = "<|endoftext|>"
HIDDEN_SIZE = 128
INTERMEDIATE_SIZE = 320
NUM_HEADS = 2
HEAD_DIM = 64
CONTEXT_TOKENS = 512
DRAFT_EXITS = (1, 2, 4, 6)
TARGET_EXITS = (2, 4, 6, 8)
TEXT_PROMPT_TOKENS = 64
TEXT_NEW_TOKENS = 192
TEXT_BATCHES = 4  # of 64 texts, for greedy and for sampled decoding each
TEXT_TEMPERATURE = 0.8
TARGETS = ("target-16", "target-32")

StageProgress = Callable[[str, int], AbstractContextManager[Callable[[int, float], None]]]

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
    """One model to train: where it starts, how deep it is, for how long."""

    name: str
    start: str | None
    num_layers: int
    settings: TrainSettings
    teachers: tuple[str, ...] = ()

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """The exits it trains: the draft's, or a target's early ones and its own depth."""
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


def train_tokenizer(folder: Path) -> None:
    """Byte-level BPE of `VOCAB_SIZE` entries over the training files, saved as a Hugging Face tokenizer."""
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
    wrapped.save_pretrained(folder)


def corpus_tokens(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """All training files in one sequence, an end-of-text token between them: int32 [num_tokens]."""
    pieces = []
    for ids in tokenizer(training_texts(), add_special_tokens=False, verbose=False)["input_ids"]:
        pieces.append(np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32))
    return np.concatenate(pieces)


def new_model(num_layers: int) -> LlamaForCausalLM:
    """A Llama of the family's width with random weights."""
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


def resized(model: LlamaForCausalLM, num_layers: int) -> LlamaForCausalLM:
    """The first layers of a model, or the whole of it followed by layers that do nothing yet."""
    grown = new_model(num_layers)
    depth = model.config.num_hidden_layers
    grown.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    grown.model.norm.load_state_dict(model.model.norm.state_dict())
    for index, layer in enumerate(grown.model.layers):
        source = model.model.layers[index if index < depth else depth - 1 - (index % 4)]
        layer.load_state_dict(source.state_dict())
        if index >= depth:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return grown


def write_texts(work: Path, target: str) -> None:
    """Let one target write, greedily and sampled, after prompts from the training files: int32 [num_texts, tokens]."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    model = load_trainable(str(work / target))
    tokens = corpus_tokens(tokenizer)
    rng = np.random.default_rng([STABLE.seed, model.config.num_hidden_layers])
    torch.manual_seed(STABLE.seed)
    texts = []
    for sampled in (False, True):
        for _ in range(TEXT_BATCHES):
            starts = rng.integers(0, len(tokens) - TEXT_PROMPT_TOKENS, 64)
            prompts = torch.from_numpy(tokens[starts[:, None] + np.arange(TEXT_PROMPT_TOKENS)].astype(np.int64))
            options = {"do_sample": sampled} | ({"temperature": TEXT_TEMPERATURE, "top_k": 0} if sampled else {})
            with torch.inference_mode():
                written = model.generate(
                    prompts,
                    attention_mask=torch.ones_like(prompts),
                    min_new_tokens=TEXT_NEW_TOKENS,
                    max_new_tokens=TEXT_NEW_TOKENS,
                    **options,
                )
            texts.append(written.numpy().astype(np.int32))
    folder = work / f"text-{target}"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "partial.npy", np.concatenate(texts))
    (folder / "partial.npy").replace(folder / "texts.npy")


def draft_batches(work: Path, tokens: np.ndarray, stage: Stage) -> Iterator[Batch]:
    """Half standard-library text, half text the targets wrote; the teachers take turns."""
    written = [np.load(work / f"text-{name}" / "texts.npy") for name in stage.teachers]
    rng = np.random.default_rng([stage.settings.seed, 5])
    human = windows(tokens, stage.settings, 3)
    rows = stage.settings.batch_sequences * stage.settings.sequence_tokens // written[0].shape[1]
    while True:
        for teacher, texts in enumerate(written):
            yield Batch(token_ids=next(human), teacher=teacher)
            chosen = texts[rng.integers(0, len(texts), rows)].astype(np.int64)
            yield Batch(token_ids=torch.from_numpy(chosen), teacher=teacher)


def train_stage(
    work: Path, stage: Stage, *, max_steps: int | None = None, on_step: Callable[[int, float], None] = lambda step, loss: None
) -> None:
    """Train one stage of the recipe into `work/<name>`; its inputs must be there.

    Args:
        max_steps: cuts the stage short, to try the recipe out; the shipped family was made without.
    """
    settings = stage.settings if max_steps is None else stage.settings.shortened(max_steps)
    torch.manual_seed(settings.seed)
    tokens = corpus_tokens(PreTrainedTokenizerFast.from_pretrained(work / "tokenizer"))
    model = (
        new_model(stage.num_layers)
        if stage.start is None
        else resized(load_trainable(str(work / stage.start)), stage.num_layers)
    )
    teachers = [load_trainable(str(work / name)) for name in stage.teachers]
    if teachers:
        batches = draft_batches(work, tokens, stage)
    else:
        batches = (Batch(token_ids=ids, teacher=None) for ids in windows(tokens, settings, 1))
    partial = work / f"{stage.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    train_sorted(model, stage.exit_layers, batches, settings, teachers=teachers, folder=partial, on_step=on_step)
    model.save_pretrained(partial)
    partial.replace(work / stage.name)


def run_stages(work: Path, *, max_steps: int | None, progress: StageProgress) -> None:
    """Every stage that is not finished yet, in order: run again after an interruption to go on.

    Args:
        work: one folder per stage.
        max_steps: as for `train_stage`.
        progress: given a stage's name and number of steps, a context that hands out the per-step callback.
    """
    for stage in STAGES:
        if not (work / stage.name).exists():
            run_stage(work, stage.name, max_steps=max_steps, progress=progress)


def run_stage(work: Path, name: str, *, max_steps: int | None, progress: StageProgress) -> None:
    """One stage and whatever of tokenizer and written texts it needs and is not there.

    Raises:
        UnknownName: no stage of the recipe has that name.
        UserInputError: the stage it starts from, or a teacher, is not finished.
    """
    stage = next((stage for stage in STAGES if stage.name == name), None)
    if stage is None:
        raise UnknownName("stage", name, [stage.name for stage in STAGES])
    for needed in (*filter(None, [stage.start]), *stage.teachers):
        if not (work / needed).exists():
            raise UserInputError(f"stage {name!r} needs stage {needed!r}, which is not in {str(work)!r}: train it first")
    if not (work / "tokenizer").exists():
        train_tokenizer(work / "tokenizer")
    for teacher in stage.teachers:
        if not (work / f"text-{teacher}" / "texts.npy").exists():
            write_texts(work, teacher)
    with progress(name, min(stage.settings.steps, max_steps or stage.settings.steps)) as on_step:
        train_stage(work, stage, max_steps=max_steps, on_step=on_step)
