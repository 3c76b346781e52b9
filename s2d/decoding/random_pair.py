"""Build a target and a draft of given shapes with random weights."""

from dataclasses import replace

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Bytes
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels
from s2d.decoding.pair import ModelPair
from s2d.loading.load_model import check_vocab_sizes, random_model
from s2d.loading.memory import FreeBytes, PairPlacement, TextLimits, check_memory, free_device_bytes, memory_need


def random_pair(
    models: PairPlacement,
    text: TextLimits,
    *,
    seed: int,
    kernels: Kernels = STANDARD_KERNELS,
    free_bytes: FreeBytes = free_device_bytes,
) -> ModelPair:
    """Build both models on the device, layer by layer.

    Args:
        models: the shapes, dtype, device and mode. The target has the shape of a Llama.
        text: the limits of the longest text.
        seed: the seed of the weights.
        kernels: the kernels of both models.
        free_bytes: the free memory of a device.

    Raises:
        UserInputError: too little memory, or a shape that the runtime does not run.
        Mismatch: the vocabularies differ.
    """
    target, draft, dtype, device = models.target, models.draft, models.dtype, str(models.device)
    check_vocab_sizes(target.name, target.vocab_size, draft.model.name, draft.model.vocab_size)
    fix = "Give a larger --device, a smaller --dtype"
    num_layers = fitting_layers(models, text, free_bytes(models.device))
    fix += f", or fewer of the target's layers: --layers {num_layers}." if num_layers else "."
    check_memory(memory_need(models, text, reads_files=False), models, free_bytes, fix=fix)
    exits = draft.exit_layers if draft.kind == "self" else ()
    target_model = random_model(target, exits, dtype, device, mode=models.mode, kernels=kernels, seed=seed)
    draft_model = target_model
    if draft.kind == "separate":
        draft_model = random_model(
            draft.model, draft.exit_layers, dtype, device, mode=models.mode, kernels=kernels, seed=seed + 1
        )
    return ModelPair(target=target_model, draft=draft_model, geometry=draft, device=models.device)


def with_layers(model: ModelGeometry, num_layers: int | None) -> ModelGeometry:
    """The first layers of a model, for a device that cannot hold all of it. None keeps every layer.

    Raises:
        UserInputError: `num_layers` is 0, or more than the model has.
    """
    if num_layers is None or num_layers == model.num_layers:
        return model
    if not 1 <= num_layers <= model.num_layers:
        raise UserInputError(f"--layers {num_layers}: expected from 1 to the {model.num_layers} of {model.name}.")
    return replace(model, name=f"{model.name}, {num_layers} of {model.num_layers} layers", num_layers=num_layers)


def fitting_layers(models: PairPlacement, text: TextLimits, free: Bytes) -> int:
    """The largest number of target layers with which the pair fits in `free` bytes; 0 if none does."""
    is_self = models.draft.kind == "self"
    min_layers = models.draft.exit_layers[-1] + 1 if is_self else 1
    for num_layers in range(models.target.num_layers, min_layers - 1, -1):
        target = replace(models.target, num_layers=num_layers)
        draft = replace(models.draft, model=target) if is_self else models.draft
        if memory_need(replace(models, target=target, draft=draft), text, reads_files=False).total_bytes <= free:
            return num_layers
    return 0
