"""Sorted fine-tuning (SoFT): every exit of one decoder is trained through the same norm and head.

The loss is the plain mean over exits of next-token cross-entropy (S2D, arXiv 2407.01955, §3.1), to which a share of
distillation from the targets' own distributions can be added: a draft is paid for agreeing with its target, not for
being right.

Shapes: B sequences, T tokens, V vocabulary.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
from s2d.training.training import Training, TrainSettings

LOG_EVERY_STEPS = 25
SAVE_EVERY_S: Seconds = 300.0
"""A training that is killed loses at most so much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Token ids to learn from, and which teacher (by position in the list of teachers) verifiers them.

    Args:
        token_ids: int64 [B, T + 1]; the last column is only a label.
        teacher: None trains on the text alone.
    """

    token_ids: Tensor
    teacher: int | None


def load_trainable(name: str) -> PreTrainedModel:
    """A model that the runtime runs, by folder or name, in float32 and ready to be asked or trained.

    Raises:
        UserInputError: no such model, or not one of an architecture that the runtime runs.
    """
    folder = find_model(name)
    read_config(folder)
    transformers_logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def random_windows(tokens: np.ndarray, settings: TrainSettings, stream: int) -> Iterator[Tensor]:
    """Endless random windows of one long token sequence: int64 [B, T + 1]."""
    rng = np.random.default_rng([settings.seed, stream])
    offsets = np.arange(settings.sequence_tokens + 1)
    while True:
        starts = rng.integers(0, len(tokens) - len(offsets), settings.batch_sequences)
        yield torch.from_numpy(tokens[starts[:, None] + offsets].astype(np.int64))


def exit_logits(model: PreTrainedModel, token_ids: Tensor, exit_layers: Sequence[int]) -> list[Tensor]:
    """What every exit says after every token: a [B, T, V] per exit, the shared norm and head applied at each.

    Args:
        token_ids: int64 [B, T].
        exit_layers: layer counts, one-based; the model's own depth is its last exit.
    """
    output = model.model(token_ids, use_cache=False, output_hidden_states=True)
    depth = model.config.num_hidden_layers
    # transformers has already normed the last state, and only that one.
    states = [
        output.last_hidden_state if layers == depth else model.model.norm(output.hidden_states[layers])
        for layers in exit_layers
    ]
    return [model.lm_head(state) for state in states]


def exit_losses(logits: Sequence[Tensor], labels: Tensor, teacher: Tensor | None, distill_frac: float) -> list[Tensor]:
    """Loss of each exit: (1 - d) cross-entropy with the text + d KL(teacher || exit), in nats per token.

    Args:
        logits: a [B, T, V] per exit.
        labels: int64 [B, T].
        teacher: logits [B, T, V] of the target on the same tokens, or None for cross-entropy alone.
        distill_frac: d above.
    """
    losses = []
    for exit_logit in logits:
        log_probs = nn.functional.log_softmax(exit_logit.float(), dim=-1)
        loss = nn.functional.nll_loss(log_probs.flatten(0, 1), labels.flatten())
        if teacher is not None:
            # One tokenizer may be padded to two sizes: what only one of them can say is no token.
            shared = min(teacher.shape[-1], log_probs.shape[-1])
            teacher_log_probs = nn.functional.log_softmax(teacher[..., :shared].float(), dim=-1)
            divergence = nn.functional.kl_div(log_probs[..., :shared], teacher_log_probs, log_target=True, reduction="none")
            divergence = divergence.sum(-1).mean()
            loss = (1 - distill_frac) * loss + distill_frac * divergence
        losses.append(loss)
    return losses


def make_optimizers(model: PreTrainedModel, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embedding and norms (as in nanochat)."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    vectors = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(vectors, lr=settings.vector_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_sorted(
    model: PreTrainedModel,
    batches: Iterator[Batch],
    training: Training,
    *,
    teachers: Sequence[PreTrainedModel] = (),
    folder: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    clock: Callable[[], Seconds] = time.perf_counter,
) -> None:
    """Train in place, logging the loss of every exit to `folder/loss.jsonl`; goes on from a checkpoint found there.

    The state is saved now and then and at the end, and stays: the caller removes it once the model is where it belongs.
    With `all_exits` every exit is in every loss, as published; without, the last one and one other drawn at random,
    which costs less and leaves a target most of its strength (LayerSkip's rotational curriculum, drawn).

    Args:
        model: at its start weights.
        batches: from the first on, also when the training is gone on with.
        training: what this is; a checkpoint of anything else is refused.
        teachers: what the batches' numbers stand for.
        folder: exists.
        on_step: told every finished step and the last exit's loss.
        clock: a monotonic clock in seconds.

    Raises:
        KeyboardInterrupt: after the step was finished and the state saved; run again to go on from there.
        Mismatch: the checkpoint is of another training.
        OutOfSpace: no room for the state, on Ctrl-C; now and then and at the end that is a warning.
        UserInputError: the loss is not a number any more.
    """
    settings, exit_layers = training.settings, training.exit_layers
    optimizers = make_optimizers(model, settings)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    first_step = load_checkpoint(model, optimizers, training, folder)
    keep_losses_before(first_step, folder)
    rng = np.random.default_rng([settings.seed, 97])
    drawn = rng.integers(0, max(1, len(exit_layers) - 1), settings.steps).tolist()
    for _ in range(first_step):  # a resumed run sees the batches the first one would have seen
        next(batches)
    model.train()
    start_s = saved_s = clock()
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
                record = {"step": step, "loss_by_exit": by_exit, "elapsed_s": round(clock() - start_s, 1)}
                save_or_warn(partial(log_loss, record, folder))
            if interrupted():
                save()
                raise KeyboardInterrupt
            if is_last or clock() - saved_s >= SAVE_EVERY_S:
                save_or_warn(save)  # at the end too: the model itself is smaller and may still find room
                saved_s = clock()
    model.eval()


@contextmanager
def finish_step_before_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C wait for the end of a step: hands out whether it was pressed. A second one interrupts at once."""
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
    """One optimizer step on the mean loss over the exits; returns the loss of each, in nats per token."""
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
        raise UserInputError(f"the training loss became {loss.item()!r}: give lower learning rates (--matrix-lr, --vector-lr)")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [value.item() for value in losses]
