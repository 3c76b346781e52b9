"""A target and a draft of any known shapes with random weights: refused unless the device holds them, caches and all."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from perfmodel.cpu import read_cpu
from perfmodel.errors import UserInputError
from perfmodel.geometry import DraftGeometry, ModelGeometry
from perfmodel.profile import DTYPE_BYTES, Dtype, EngineMode
from perfmodel.units import GIB, Bytes, Tokens, format_bytes
from s2d.compatible import check_vocab_sizes
from s2d.load import random_model
from s2d.pair import ModelPair
from s2d.weights import PAD

WORKSPACE_BYTES = GIB
"""Kept free beside weights and caches: scratch rows of a prompt, what libraries take, tables of positions."""
_MEMORY_INFO = Path("/proc/meminfo")


def random_pair(
    target: ModelGeometry,
    draft: DraftGeometry,
    dtype: Dtype,
    device: str,
    *,
    engine: EngineMode = "eager",
    max_tokens: Tokens,
    seed: int,
    free_bytes: Callable[[torch.device], Bytes] | None = None,
) -> ModelPair:
    """Both models, built layer by layer where they stay.

    Args:
        target: of a Llama's shape.
        draft: with weights of its own, or the target's first layers.
        dtype: of weights and caches.
        device: torch's name for it.
        engine: how passes are launched.
        max_tokens: the longest text that is to be decoded.
        seed: of the weights.
        free_bytes: says how much memory is left; the device itself when None.

    Raises:
        UserInputError: there is not enough memory, or a shape that the runtime does not run.
        Mismatch: the two do not share a vocabulary.
    """
    place = torch.device(device)
    check_vocab_sizes(target.name, target.vocab_size, draft.model.name, draft.model.vocab_size)
    check_memory(target, draft, dtype, max_tokens, (free_bytes or free_bytes_of)(place), place)
    exit_layers = draft.exit_layers if draft.kind == "self" else ()
    model = random_model(target, exit_layers, dtype, device, engine=engine, seed=seed)
    drafter = model
    if draft.kind == "separate":
        drafter = random_model(draft.model, draft.exit_layers, dtype, device, engine=engine, seed=seed + 1)
    return ModelPair(target=model, draft=drafter, geometry=draft, device=place)


def with_layers(model: ModelGeometry, num_layers: int | None) -> ModelGeometry:
    """A model cut to its first layers, and called so, for a device that does not hold all of it; whole where None is given.

    Raises:
        UserInputError: none, or more than there are.
    """
    if num_layers is None or num_layers == model.num_layers:
        return model
    if not 1 <= num_layers <= model.num_layers:
        raise UserInputError(f"--layers {num_layers}: expected from 1 to the {model.num_layers} of {model.name}.")
    return replace(model, name=f"{model.name}, {num_layers} of {model.num_layers} layers", num_layers=num_layers)


def needed_bytes(target: ModelGeometry, draft: DraftGeometry, dtype: Dtype, max_tokens: Tokens) -> Bytes:
    """Weights, caches and workspace of both, decoded plainly and under policies: a self-draft's target has a cache for each.

    An embedding and a head are kept apart even where a checkpoint ties them: the head has the final norm folded in.
    """
    segments = len(draft.exit_layers)
    if draft.kind == "self":
        return round(_numbers(target, max_tokens, (1, segments + 1)) * DTYPE_BYTES[dtype]) + WORKSPACE_BYTES
    numbers = _numbers(target, max_tokens, (1,)) + _numbers(draft.model, max_tokens, (segments,))
    return round(numbers * DTYPE_BYTES[dtype]) + WORKSPACE_BYTES


def _numbers(model: ModelGeometry, max_tokens: Tokens, caches: tuple[int, ...]) -> int:
    """Of a model's weights, and of caches with so many segments: KV, and the states at the end of each."""
    gains = (2 * model.num_layers + 1) * model.hidden_size
    weights = replace(model, tied_embeddings=False).num_params - gains + PAD * (model.vocab_size + model.hidden_size)
    states = sum(caches) * (model.hidden_size + PAD)
    return weights + max_tokens * (len(caches) * model.kv_values_per_token + states)


def check_memory(
    target: ModelGeometry, draft: DraftGeometry, dtype: Dtype, max_tokens: Tokens, free: Bytes, device: torch.device
) -> None:
    """Refuse models that would not fit, before any of them is built.

    Raises:
        UserInputError: says how much is needed and left, and how many of the target's layers would fit.
    """
    needed = needed_bytes(target, draft, dtype, max_tokens)
    if needed <= free:
        return
    layer_bytes = needed_bytes(replace(target, num_layers=target.num_layers + 1), draft, dtype, max_tokens) - needed
    num_layers = target.num_layers - math.ceil((needed - free) / layer_bytes)
    fewer = f", or fewer of the target's layers: --layers {num_layers}" if num_layers >= 1 else ""
    what = target.name if draft.kind == "self" else f"{target.name} and {draft.model.name}"
    raise UserInputError(
        f"{what} take {format_bytes(needed)} with their caches, and {device} has {format_bytes(free)} left. Give a larger "
        f"--device, a smaller --dtype{fewer}."
    )


def free_bytes_of(device: torch.device) -> Bytes:
    """Memory that is left: of a GPU by its driver, of a CPU what the system would give without swapping, or all there is."""
    if device.type == "cuda":
        free: Bytes = torch.cuda.mem_get_info(device)[0]
        return free
    if not _MEMORY_INFO.exists():
        return read_cpu().memory_bytes
    lines = dict(line.split(":", 1) for line in _MEMORY_INFO.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024  # it says kB and means KiB
