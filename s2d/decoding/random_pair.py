"""A target and a draft of any known shapes with random weights: refused unless the device holds them, caches and all."""

from dataclasses import replace

import torch

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Bytes, Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.device_key import EngineMode
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels
from s2d.decoding.pair import ModelPair
from s2d.loading.compatible import check_vocab_sizes
from s2d.loading.load_model import random_model
from s2d.loading.memory import FreeBytes, PairPlacement, TextLimits, check_memory, free_device_bytes, memory_need


def random_pair(
    target: ModelGeometry,
    draft: DraftGeometry,
    dtype: Dtype,
    device: str,
    *,
    engine: EngineMode = "eager",
    kernels: Kernels = STANDARD_KERNELS,
    max_tokens: Tokens,
    seed: int,
    num_noise_tables: int = 0,
    free_bytes: FreeBytes | None = None,
) -> ModelPair:
    """Both models, built layer by layer where they stay.

    Args:
        target: of a Llama's shape.
        draft: with weights of its own, or the target's first layers.
        dtype: of weights and caches.
        device: torch's name for it.
        engine: how passes are launched.
        kernels: what both compute with.
        max_tokens: the longest text that is to be decoded.
        seed: of the weights.
        num_noise_tables: tables of shared noise that decoding holds: 1 under that rule.
        free_bytes: memory that is free on a device; the device is asked when None.

    Raises:
        UserInputError: there is not enough memory, or a shape that the runtime does not run.
        Mismatch: the two do not share a vocabulary.
    """
    place = torch.device(device)
    check_vocab_sizes(target.name, target.vocab_size, draft.model.name, draft.model.vocab_size)
    models = PairPlacement(target=target, draft=draft, dtype=dtype, device=place, engine=engine)
    text = TextLimits(max_tokens=max_tokens, prompt_tokens=max_tokens, num_noise_tables=num_noise_tables)
    _check_fits(models, text, free_bytes or free_device_bytes)
    exit_layers = draft.exit_layers if draft.kind == "self" else ()
    model = random_model(target, exit_layers, dtype, device, engine=engine, kernels=kernels, seed=seed)
    drafter = model
    if draft.kind == "separate":
        drafter = random_model(draft.model, draft.exit_layers, dtype, device, engine=engine, kernels=kernels, seed=seed + 1)
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


def _check_fits(models: PairPlacement, text: TextLimits, free_bytes: FreeBytes) -> None:
    """Refuse a pair that does not fit, naming how many of the target's layers would."""
    fix = "Give a larger --device, a smaller --dtype"
    num_layers = fitting_layers(models, text, free_bytes(models.device))
    fix += f", or fewer of the target's layers: --layers {num_layers}." if num_layers else "."
    check_memory(memory_need(models, text, reads_files=False), models, free_bytes, fix=fix)


def fitting_layers(models: PairPlacement, text: TextLimits, free: Bytes) -> int:
    """The most layers of the target with which a pair fits into so much memory; 0 where there are none."""
    is_self = models.draft.kind == "self"
    fewest = models.draft.exit_layers[-1] + 1 if is_self else 1
    for num_layers in range(models.target.num_layers, fewest - 1, -1):
        target = replace(models.target, num_layers=num_layers)
        draft = replace(models.draft, model=target) if is_self else models.draft
        if memory_need(replace(models, target=target, draft=draft), text, reads_files=False).total_bytes <= free:
            return num_layers
    return 0
