"""Shapes and acceptance for at_scale.py, and tiny versions of models that run on any CPU."""

from dataclasses import replace
from pathlib import Path

from calibrate.inputs.acceptance import Acceptance, load_acceptance, shipped_pairs, shipped_path
from perfmodel.core.errors import UnknownName, UserInputError
from perfmodel.models.find_model import find_model
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from s2d.decoding.random_pair import with_layers
from shared import common  # noqa: F401 makes the checkout importable

TINY_LAYERS, TINY_SIZE, TINY_DRAFT_SIZE, TINY_HEAD_DIM = 24, 128, 32, 32
TINY_VOCAB_FRAC = 1 / 64
TINY_CONTEXT_TOKENS = 256


def tiny(model: ModelGeometry, *, hidden_size: int = TINY_SIZE) -> ModelGeometry:
    """A narrow version of a model that runs on any CPU. It keeps the depth, up to a limit, and the kind of heads."""
    num_heads = hidden_size // TINY_HEAD_DIM
    return replace(
        model,
        name=f"tiny {model.name}",
        num_layers=min(model.num_layers, TINY_LAYERS),
        hidden_size=hidden_size,
        intermediate_size=11 * hidden_size // 4,
        num_heads=num_heads,
        num_kv_heads=num_heads if model.num_heads == model.num_kv_heads else 1,
        head_dim=TINY_HEAD_DIM,
        vocab_size=round(model.vocab_size * TINY_VOCAB_FRAC),
        max_context_tokens=TINY_CONTEXT_TOKENS,
        source="reduced to run on any CPU",
    )


def acceptance_of(given: str | None, target: ModelGeometry) -> Acceptance:
    """Acceptance from a trace file, or the shipped trace of a target; by default that of the pair's own target.

    Raises:
        UserInputError: no such trace is shipped.
    """
    if given is not None and Path(given).suffix == ".npz":
        return load_acceptance(Path(given), "all")
    try:
        wanted = find_model(given).name if given is not None else target.name
    except UnknownName:
        wanted = str(given)
    shipped = {name: shipped_path(draft, name) for draft, name in shipped_pairs()}
    if wanted not in shipped:
        raise UserInputError(
            f"no acceptance trace of {wanted!r} is shipped: expected --acceptance with {' or '.join(sorted(shipped))}, "
            "whose acceptance then replaces the target's, or with a trace.npz of s2d-profile."
        )
    return load_acceptance(shipped[wanted], "all")


def draft_of(given: str | None, target: ModelGeometry, traced: DraftGeometry, *, is_tiny: bool) -> DraftGeometry:
    """The traced exits on the first layers of a known model, or on the traced draft. A self-draft uses the target's layers."""
    if traced.kind == "self":
        return replace(traced, model=target)
    model = traced.model
    if given is not None:
        depth = traced.exit_layers[-1]
        model = replace(with_layers(find_model(given), depth), name=f"first {depth} layers of {given}")
    return replace(traced, model=tiny(model, hidden_size=TINY_DRAFT_SIZE) if is_tiny else model)
