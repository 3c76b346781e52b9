"""The finished reference family: what goes into the package, and what is said of it.

Each model in bf16 with its tokenizer and exits, prompts cut from files that none of them was trained on, and a record of
what they were made from.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from perfmodel.core.disk import atomic_folder
from s2d.decoding.pair import encode_prompts
from s2d.loading.sidecar import Sidecar, write_sidecar
from s2d.prompt_files.choose import calibration_half
from s2d.training.calibrate_draft import calibrate_draft
from s2d.training.corpus import corpus_sha256, held_out_files, held_out_prompts, training_texts
from s2d.training.reference_recipe import STABLE, STAGES, TARGETS, Stage, corpus_tokens, stage_named
from s2d.training.train_sorted import exit_logits, exit_losses, load_trainable, windows
from s2d.training.training import TRAINING_FILE, TRAINING_NAME

PROMPTS_PER_CATEGORY = 24
CALIBRATION_NEW_TOKENS = 128


def install_family(work: Path, family: Path) -> None:
    """The finished models in bf16, the held-out prompts, and what all was made from: a new folder, whole or not at all.

    The draft is calibrated on the calibration half of the prompts.

    Raises:
        BadFile: there is something at `family` already, or it cannot be made.
        OutOfSpace: the disk is full.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    prompts = held_out_prompts(PROMPTS_PER_CATEGORY)
    with atomic_folder(family) as folder:
        for name in ("draft", *TARGETS):
            stage = stage_named(name)
            early = stage.exit_layers if name == "draft" else stage.exit_layers[:-1]
            load_trainable(str(work / name)).to(torch.bfloat16).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            write_sidecar(folder / name, Sidecar(exit_layers=early, norm="shared-final-norm", calibration=None))
        calibrate_draft(
            folder / "draft",
            [str(folder / name) for name in TARGETS],
            partial(encode_prompts, prompts=calibration_half(prompts), max_new_tokens=CALIBRATION_NEW_TOKENS),
            max_new_tokens=CALIBRATION_NEW_TOKENS,
            device="cpu",
        )
        lines = [json.dumps({"name": one.name, "category": one.category, "text": one.text}) for one in prompts]
        (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "recipe.json").write_text(json.dumps(recipe_record(work), indent=2) + "\n", encoding="utf-8")


def recipe_record(work: Path) -> dict[str, object]:
    """What the family was made from: the corpus by hash, and per stage the steps it really took and held-out loss by exit."""
    texts = training_texts()
    tokens = corpus_tokens(PreTrainedTokenizerFast.from_pretrained(work / "tokenizer"))
    stages = {stage.name: stage_record(work, stage) for stage in STAGES}
    return {"corpus_files": len(texts), "corpus_sha256": corpus_sha256(texts), "corpus_tokens": len(tokens), "stages": stages}


def stage_record(work: Path, stage: Stage) -> dict[str, object]:
    """What one stage took, as its folder says, and what it came to."""
    settings = TRAINING_FILE.read(work / stage.name / TRAINING_NAME).record.settings
    return {
        "steps": settings.steps,
        "tokens": settings.steps * settings.batch_sequences * settings.sequence_tokens,
        "held_out_loss_by_exit": held_out_losses(work, stage),
    }


@torch.inference_mode()
def held_out_losses(work: Path, stage: Stage, num_windows: int = 32) -> dict[str, float]:
    """Cross-entropy with held-out text, in nats per token, of every exit: the same windows for every model."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    ids = tokenizer("".join(file.text for file in held_out_files()), add_special_tokens=False, verbose=False)["input_ids"]
    settings = replace(STABLE, batch_sequences=num_windows, seed=0)
    chosen = next(windows(np.asarray(ids, dtype=np.int32), settings, 0))
    logits = exit_logits(load_trainable(str(work / stage.name)), chosen[:, :-1], stage.exit_layers)
    losses = exit_losses(logits, chosen[:, 1:], None, 0.0)
    return {str(layers): round(loss.item(), 4) for layers, loss in zip(stage.exit_layers, losses, strict=True)}
