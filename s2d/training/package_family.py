"""Package the finished reference family: models, prompts and the record of their training.

Every model is stored in bf16 with its tokenizer and exits. The prompts come from files that no model was trained on.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from perfmodel.core.disk import atomic_folder
from s2d.loading.sidecar import Sidecar, write_sidecar
from s2d.prompt_files.choose import calibration_half
from s2d.training.calibrate_draft import calibrate
from s2d.training.corpus import corpus_sha256, held_out_files, held_out_prompts, training_texts
from s2d.training.reference_recipe import STABLE, STAGES, TARGETS, Stage, corpus_tokens, find_stage
from s2d.training.requests import CalibrateDraftRequest
from s2d.training.train_sorted import exit_logits, exit_losses, load_trainable, random_windows
from s2d.training.training_record import TRAINING_FILE, TRAINING_NAME

PROMPTS_PER_CATEGORY = 24
CALIBRATION_NEW_TOKENS = 128


def install_family(work: Path, family: Path) -> None:
    """Write the finished models, the held-out prompts and the training record to a new folder, completely or not at all.

    The draft is calibrated on the calibration half of the prompts.

    Args:
        work: the folder with the finished stages.
        family: the folder to make.

    Raises:
        BadFile: `family` exists, or cannot be made.
        OutOfSpace: the disk is full.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    prompts = held_out_prompts(PROMPTS_PER_CATEGORY)
    with atomic_folder(family) as folder:
        for name in ("draft", *TARGETS):
            stage = find_stage(name)
            early = stage.exit_layers if name == "draft" else stage.exit_layers[:-1]
            load_trainable(str(work / name)).to(torch.bfloat16).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            write_sidecar(folder / name, Sidecar(exit_layers=early, norm="shared-final-norm", calibration=None))
        request = CalibrateDraftRequest(
            draft=str(folder / "draft"),
            targets=tuple(str(folder / name) for name in TARGETS),
            max_new_tokens=CALIBRATION_NEW_TOKENS,
        )
        calibrate(request, calibration_half(prompts))
        lines = [json.dumps({"name": prompt.name, "category": prompt.category, "text": prompt.text}) for prompt in prompts]
        (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "recipe.json").write_text(json.dumps(recipe_record(work), indent=2) + "\n", encoding="utf-8")


def recipe_record(work: Path) -> dict[str, object]:
    """The training record of the family: hash of the corpus, and for each stage its actual steps and held-out loss by exit."""
    texts = training_texts()
    tokens = corpus_tokens(PreTrainedTokenizerFast.from_pretrained(work / "tokenizer"))
    stages = {stage.name: stage_record(work, stage) for stage in STAGES}
    return {"corpus_files": len(texts), "corpus_sha256": corpus_sha256(texts), "corpus_tokens": len(tokens), "stages": stages}


def stage_record(work: Path, stage: Stage) -> dict[str, object]:
    """Steps, tokens and held-out losses of one stage."""
    settings = TRAINING_FILE.read(work / stage.name / TRAINING_NAME).record.settings
    return {
        "steps": settings.steps,
        "tokens": settings.steps * settings.batch_sequences * settings.sequence_tokens,
        "held_out_loss_by_exit": held_out_losses(work, stage),
    }


@torch.inference_mode()
def held_out_losses(work: Path, stage: Stage, num_windows: int = 32) -> dict[str, float]:
    """Cross-entropy of every exit on held-out text, in nats per token. All models get the same windows."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    ids = tokenizer("".join(file.text for file in held_out_files()), add_special_tokens=False, verbose=False)["input_ids"]
    settings = replace(STABLE, batch_sequences=num_windows, seed=0)
    token_ids = next(random_windows(np.asarray(ids, dtype=np.int32), settings, 0))
    logits = exit_logits(load_trainable(str(work / stage.name)), token_ids[:, :-1], stage.exit_layers)
    losses = exit_losses(logits, token_ids[:, 1:], None, 0.0)
    return {str(layer): round(loss.item(), 4) for layer, loss in zip(stage.exit_layers, losses, strict=True)}
