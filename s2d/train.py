"""Sorted fine-tuning (SoFT): every exit of one decoder is trained through the same norm and head.

The loss is the plain mean over exits of next-token cross-entropy (S2D, arXiv 2407.01955, §3.1), to which a share of
distillation from the targets' own distributions can be added: a draft is paid for agreeing with its target, not for
being right.

Shapes: B sequences, T tokens, V vocabulary.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from s2d.load import find_model, read_config

LOG_EVERY_STEPS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How long, how fast and on what share of the teacher one training stage runs.

    The learning rate warms up, stays, and falls linearly to zero over the last `cooldown_steps`, so that a stage
    without a cooldown can be grown or forked (warm-up, stable, decay).
    """

    steps: int
    warmup_steps: int
    cooldown_steps: int
    batch_sequences: int
    sequence_tokens: int
    matrix_lr: float
    vector_lr: float
    distill_frac: float
    all_exits: bool
    seed: int

    def shortened(self, max_steps: int) -> "TrainSettings":
        """The same settings over at most `max_steps` steps, the cooldown in proportion."""
        steps = min(self.steps, max_steps)
        return replace(self, steps=steps, cooldown_steps=self.cooldown_steps * steps // self.steps)

    def lr_frac(self, step: int) -> float:
        """Share of the peak learning rate at a zero-based step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        remaining = self.steps - step
        return min(1.0, remaining / self.cooldown_steps) if self.cooldown_steps else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Token ids to learn from, and which teacher (by position in the list of teachers) judges them.

    Args:
        token_ids: int64 [B, T + 1]; the last column is only a label.
        teacher: None trains on the text alone.
    """

    token_ids: Tensor
    teacher: int | None


def load_trainable(name: str) -> LlamaForCausalLM:
    """A model of the Llama family, by folder or name, in float32 and ready to be asked or trained.

    Raises:
        UserInputError: no such model, or not one of an architecture that the runtime runs.
    """
    folder = find_model(name)
    read_config(folder)
    transformers_logging.disable_progress_bar()
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def windows(tokens: np.ndarray, settings: TrainSettings, stream: int) -> Iterator[Tensor]:
    """Endless random windows of one long token sequence: int64 [B, T + 1]."""
    rng = np.random.default_rng([settings.seed, stream])
    offsets = np.arange(settings.sequence_tokens + 1)
    while True:
        starts = rng.integers(0, len(tokens) - len(offsets), settings.batch_sequences)
        yield torch.from_numpy(tokens[starts[:, None] + offsets].astype(np.int64))


def exit_logits(model: LlamaForCausalLM, token_ids: Tensor, exit_layers: Sequence[int]) -> list[Tensor]:
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
            teacher_log_probs = nn.functional.log_softmax(teacher.float(), dim=-1)
            divergence = nn.functional.kl_div(log_probs, teacher_log_probs, log_target=True, reduction="none").sum(-1).mean()
            loss = (1 - distill_frac) * loss + distill_frac * divergence
        losses.append(loss)
    return losses


def make_optimizers(model: LlamaForCausalLM, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embedding and norms (as in nanochat)."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    vectors = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_lr, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(vectors, lr=settings.vector_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_sorted(
    model: LlamaForCausalLM,
    exit_layers: Sequence[int],
    batches: Iterator[Batch],
    settings: TrainSettings,
    *,
    teachers: Sequence[LlamaForCausalLM] = (),
    folder: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train in place, logging the loss of every exit to `folder/loss.jsonl`; resumes from a checkpoint found there.

    With `all_exits` every exit is in every loss, as published; without, the last one and one other drawn at random,
    which costs less and leaves a target most of its strength (LayerSkip's rotational curriculum, drawn).

    Raises:
        KeyboardInterrupt: after the step was finished and the state written; run again to go on from there.
    """
    optimizers = make_optimizers(model, settings)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    first_step = load_checkpoint(model, optimizers, folder) if (folder / "checkpoint.safetensors").exists() else 0
    rng = np.random.default_rng([settings.seed, 97])
    drawn = rng.integers(0, max(1, len(exit_layers) - 1), settings.steps).tolist()
    for _ in range(first_step):  # a resumed run sees the batches the first one would have seen
        next(batches)
    model.train()
    start_s = time.perf_counter()
    with (folder / "loss.jsonl").open("a", encoding="utf-8") as log, steps_finished_first() as interrupted:
        for step in range(first_step, settings.steps):
            chosen = exit_layers if settings.all_exits else sorted({exit_layers[drawn[step]], exit_layers[-1]})
            for group, peak in zip((g for o in optimizers for g in o.param_groups), peaks, strict=True):
                group["lr"] = peak * settings.lr_frac(step)
            losses = train_step(model, chosen, next(batches), optimizers, teachers, settings.distill_frac)
            on_step(step, losses[-1])
            if step % LOG_EVERY_STEPS == 0 or step == settings.steps - 1:
                record = {"step": step, "loss_by_exit": dict(zip(map(str, chosen), losses, strict=True))}
                log.write(json.dumps(record | {"elapsed_s": round(time.perf_counter() - start_s, 1)}) + "\n")
                log.flush()
            if interrupted():
                save_checkpoint(model, optimizers, step + 1, folder)
                raise KeyboardInterrupt
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    model.eval()


@contextmanager
def steps_finished_first() -> Iterator[Callable[[], bool]]:
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
    model: LlamaForCausalLM,
    exit_layers: Sequence[int],
    batch: Batch,
    optimizers: Sequence[torch.optim.Optimizer],
    teachers: Sequence[LlamaForCausalLM],
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
        raise FloatingPointError(f"the training loss became {loss.item()!r}: lower the learning rate")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [value.item() for value in losses]


def save_checkpoint(model: LlamaForCausalLM, optimizers: Sequence[torch.optim.Optimizer], step: int, folder: Path) -> None:
    """Weights and optimizer state as safetensors: written whole, then renamed."""
    tensors = {f"model.{name}": value.detach().contiguous() for name, value in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    partial = folder / "checkpoint.partial"
    save_file(tensors, partial, metadata={"step": str(step)})
    partial.replace(folder / "checkpoint.safetensors")


def load_checkpoint(model: LlamaForCausalLM, optimizers: Sequence[torch.optim.Optimizer], folder: Path) -> int:
    """Restore what `save_checkpoint` wrote; returns the step to go on with."""
    path = folder / "checkpoint.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(tensors[f"model.{name}"])
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, *rest = key.split(".")
            if kind == "optimizer" and int(rest[0]) == number:
                state.setdefault(int(rest[1]), {})[rest[2]] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step
