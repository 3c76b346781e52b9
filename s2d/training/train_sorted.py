"""Sorted fine-tuning (SoFT): train every exit of a decoder through the same norm and head.

The loss is the mean over exits of the next-token cross-entropy (S2D, arXiv 2407.01955, §3.1). Distillation from the targets'
distributions can be added, because a draft is useful if it agrees with its target, not if it is right.

Shapes: B sequences, T tokens, V vocabulary.
"""

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from perfmodel.core.console import save_or_warn
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Seconds
from s2d.loading.model_folder import find_model
from s2d.loading.read_config import read_config
from s2d.training.resume import keep_losses_before, load_checkpoint, log_loss, save_checkpoint
from s2d.training.training_record import TrainingRecord, TrainSettings

LOG_EVERY_STEPS = 25
SAVE_EVERY_S: Seconds = 300.0
"""Interval between saved states. A killed training loses at most this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences of one training step."""

    token_ids: Tensor  # int64 [B, T + 1]; the last column is only a label
    teacher: int | None
    """Index of the teacher in the list of teachers; None trains on the text alone."""


def load_trainable(name: str) -> PreTrainedModel:
    """A model as a transformers module in float32, by folder or name.

    Raises:
        UserInputError: there is no such model, or the runtime does not support its architecture.
    """
    folder = find_model(name)
    read_config(folder)
    transformers_logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def random_windows(tokens: np.ndarray, settings: TrainSettings, stream: int) -> Iterator[Tensor]:
    """Endless batches of random windows of one long token sequence: int64 [B, T + 1].

    The windows depend on the seed of the settings and on `stream`, which separates uses of the same seed.
    """
    rng = np.random.default_rng([settings.seed, stream])
    offsets = np.arange(settings.sequence_tokens + 1)
    while True:
        starts = rng.integers(0, len(tokens) - len(offsets), settings.batch_sequences)
        yield torch.from_numpy(tokens[starts[:, None] + offsets].astype(np.int64))


def exit_logits(model: PreTrainedModel, token_ids: Tensor, exit_layers: Sequence[int]) -> list[Tensor]:
    """Logits of every exit through the shared norm and head: a [B, T, V] per exit.

    Args:
        model: the decoder.
        token_ids: int64 [B, T].
        exit_layers: layer counts; the depth of the model is its last exit.
    """
    output = model.model(token_ids, use_cache=False, output_hidden_states=True)
    depth = model.config.num_hidden_layers
    # transformers applies the norm to the last state only.
    states = [
        output.last_hidden_state if layer == depth else model.model.norm(output.hidden_states[layer]) for layer in exit_layers
    ]
    return [model.lm_head(state) for state in states]


def exit_losses(logits: Sequence[Tensor], labels: Tensor, teacher: Tensor | None, distill_frac: float) -> list[Tensor]:
    """Loss of each exit: (1 - d) cross-entropy with the text + d KL(teacher || exit), in nats per token.

    Args:
        logits: a [B, T, V] per exit.
        labels: int64 [B, T].
        teacher: logits of the target on the same tokens, [B, T, V]; None for cross-entropy alone.
        distill_frac: d in the formula.
    """
    losses = []
    for exit_logit in logits:
        log_probs = nn.functional.log_softmax(exit_logit.float(), dim=-1)
        loss = nn.functional.nll_loss(log_probs.flatten(0, 1), labels.flatten())
        if teacher is not None:
            # Models with the same tokenizer may pad it to different sizes. Padding entries are not tokens.
            shared = min(teacher.shape[-1], log_probs.shape[-1])
            teacher_log_probs = nn.functional.log_softmax(teacher[..., :shared].float(), dim=-1)
            divergence = nn.functional.kl_div(log_probs[..., :shared], teacher_log_probs, log_target=True, reduction="none")
            divergence = divergence.sum(-1).mean()
            loss = (1 - distill_frac) * loss + distill_frac * divergence
        losses.append(loss)
    return losses


def make_optimizers(model: PreTrainedModel, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embedding and norms, as in nanochat."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    vectors = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(vectors, lr=settings.vector_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_sorted(
    model: PreTrainedModel,
    batches: Iterator[Batch],
    training: TrainingRecord,
    *,
    teachers: Sequence[PreTrainedModel] = (),
    folder: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train a model in place and log the losses of its exits to `folder/loss.jsonl`. Resumes from a checkpoint in the folder.

    The state is saved every few minutes and at the end. The caller removes it after the model is saved.

    With `all_exits` every exit is in every loss, as published. Otherwise a loss has the last exit and one other exit drawn at
    random, which takes less time and keeps most of a target's quality (LayerSkip's rotational curriculum, with random draws).

    Args:
        model: a model with its start weights.
        batches: all batches from the first one on, also if the training is resumed.
        training: the record of this training. A checkpoint of another training is refused.
        teachers: the models that the batches refer to by index.
        folder: an existing folder for the state and the losses.
        on_step: called with the number of every finished step and the loss of the last exit.

    Raises:
        KeyboardInterrupt: after the step was finished and the state saved.
        Mismatch: the checkpoint belongs to another training.
        OutOfSpace: the disk is too full to save the state on Ctrl-C. At other times that is a warning.
        UserInputError: the loss is not finite.
    """
    settings, exit_layers = training.settings, training.exit_layers
    optimizers = make_optimizers(model, settings)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    first_step = load_checkpoint(model, optimizers, training, folder)
    keep_losses_before(first_step, folder)
    rng = np.random.default_rng([settings.seed, 97])
    drawn = rng.integers(0, max(1, len(exit_layers) - 1), settings.steps).tolist()
    for _ in range(first_step):  # skip the batches of finished steps
        next(batches)
    model.train()
    start_s = saved_s = perf_counter()
    with finish_step_before_interrupt() as interrupted:
        for step in range(first_step, settings.steps):
            chosen = exit_layers if settings.all_exits else sorted({exit_layers[drawn[step]], exit_layers[-1]})
            for group, peak in zip((g for o in optimizers for g in o.param_groups), peaks, strict=True):
                group["lr"] = peak * settings.lr_frac(step)
            losses = train_step(model, chosen, next(batches), optimizers, teachers, settings.distill_frac)
            on_step(step, losses[-1])
            is_last, save = step == settings.steps - 1, partial(save_checkpoint, model, optimizers, step + 1, training, folder)
            if step % LOG_EVERY_STEPS == 0 or is_last:
                by_exit = dict(zip(map(str, chosen), losses, strict=True))
                record = {"step": step, "loss_by_exit": by_exit, "elapsed_s": round(perf_counter() - start_s, 1)}
                save_or_warn(partial(log_loss, record, folder))
            if interrupted():
                save()
                raise KeyboardInterrupt
            if is_last or perf_counter() - saved_s >= SAVE_EVERY_S:
                save_or_warn(save)  # at the end too: the model is smaller than the state and may still fit
                saved_s = perf_counter()
    model.eval()


@contextmanager
def finish_step_before_interrupt() -> Iterator[Callable[[], bool]]:
    """Delay Ctrl-C to the end of a step. A second Ctrl-C interrupts at once. Yields a function: whether Ctrl-C was pressed."""
    pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def train_step(
    model: PreTrainedModel,
    exit_layers: Sequence[int],
    batch: Batch,
    optimizers: Sequence[torch.optim.Optimizer],
    teachers: Sequence[PreTrainedModel],
    distill_frac: float,
) -> list[float]:
    """One optimizer step on the mean loss over the exits. Returns the loss of each exit, in nats per token."""
    token_ids = batch.token_ids.to(model.device)
    inputs, labels = token_ids[:, :-1], token_ids[:, 1:]
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        teacher_logits = None
        if batch.teacher is not None:
            with torch.no_grad():
                teacher_logits = teachers[batch.teacher](inputs, use_cache=False).logits
        losses = exit_losses(exit_logits(model, inputs, exit_layers), labels, teacher_logits, distill_frac)
    loss = torch.stack(losses).mean()
    if not math.isfinite(loss.item()):
        raise UserInputError(
            f"the training loss is {loss.item()!r}, expected a finite number: give lower learning rates "
            "(--matrix-lr, --vector-lr)"
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [value.item() for value in losses]
