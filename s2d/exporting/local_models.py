"""The models of an export: folders on this machine, or a target that stays elsewhere."""

import os
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from perfmodel.core.disk import PathLike
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.models.config_file import read_config_file
from perfmodel.models.geometry import SELF_DRAFT, ModelGeometry, same_shape
from perfmodel.models.hub import CONFIG
from perfmodel.results.plan import Plan
from s2d.loading.checkpoint import weights_sha256
from s2d.loading.load_model import load_tokenizer, tokenizer_sha256
from s2d.loading.model_folder import find_model, is_reference_model
from s2d.loading.read_config import read_geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A Hugging Face folder and the facts that identify it."""

    folder: Path
    geometry: ModelGeometry
    architecture: str | None
    """Class name in its config: `LlamaForCausalLM`."""
    tokenizer: PreTrainedTokenizerFast
    tokenizer_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModels:
    """Target and draft of an export."""

    target: LocalModel | None
    """None: it is not on this machine."""
    target_name: str
    """As a server on this machine finds it: an absolute path, or a name of the hub."""
    draft: LocalModel


def find_models(plan: Plan, target: PathLike | None, draft: PathLike | None) -> ExportedModels:
    """The models of a plan, or those given. Fetches nothing.

    Args:
        plan: names the models that are not given.
        target: a folder, a name of the reference family, or `org/name`.
        draft: a folder, or a name of the reference family.

    Raises:
        UserInputError: the draft is not on this machine, or is the target itself.
        Mismatch: a model is not the plan's.
        BadFile: a model cannot be read.
    """
    target_name = os.fspath(target) if target is not None else plan.target.name
    draft_name = os.fspath(draft) if draft is not None else plan.draft_name
    if plan.draft.kind == "self" or draft_name == SELF_DRAFT:
        raise UserInputError(
            "draft 'self': the plan's draft shares the target's KV cache, expected a draft with its own weights. Plan with "
            "--draft NAME for an engine; s2d-run runs self-drafts."
        )
    target_folder, draft_folder = _local_folder(target_name), _local_folder(draft_name)
    if draft_folder is None:
        raise UserInputError(f"draft {draft_name!r} is a name of the hub, expected a folder. Fetch it, and give --draft DIR.")
    models = ExportedModels(
        target=None if target_folder is None else _read(target_folder),
        target_name=target_name if target_folder is None else str(target_folder.resolve()),
        draft=_read(draft_folder),
    )
    _check_are_planned(plan, models)
    return models


def check_target_weights(plan: Plan, target: LocalModel) -> None:
    """Refuse other weights than the plan's, before they are converted. This reads all of them.

    Raises:
        Mismatch: the hashes differ.
    """
    _check_hash("target weights", plan.target_sha256, weights_sha256(target.folder))


def _local_folder(name: str) -> Path | None:
    """The folder of a model; None for a name of the hub, from which nothing is fetched.

    Raises:
        UnknownName: it is neither.
    """
    return find_model(name) if is_reference_model(name) or Path(name).is_dir() else None


def _read(folder: Path) -> LocalModel:
    tokenizer = load_tokenizer(folder)
    architectures = read_config_file(folder / CONFIG).get("architectures") or [None]
    return LocalModel(
        folder=folder,
        geometry=read_geometry(folder),
        architecture=architectures[0],
        tokenizer=tokenizer,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
    )


def _check_are_planned(plan: Plan, models: ExportedModels) -> None:
    """Refuse models of another shape, another tokenizer or another draft than the plan's.

    Raises:
        Mismatch: with the first difference.
    """
    fix = "Give the models of the plan with --target and --draft, or plan again for these"
    for role, planned, model in (("target", plan.target, models.target), ("draft", plan.draft.model, models.draft)):
        if model is None:
            continue
        if not planned.has_reduced_head and not same_shape(planned, model.geometry):
            given = f"{model.geometry.name}, which has another shape"
            raise Mismatch("the plan", made_for=f"{role} {planned.name}", given=given, fix=fix)
        _check_hash(f"{role} tokenizer", plan.tokenizer_sha256, model.tokenizer_sha256)
    if not plan.draft.model.has_reduced_head:  # the hash of such a draft covers its tokens too
        _check_hash("draft weights", plan.draft_sha256, weights_sha256(models.draft.folder))


def _check_hash(role: str, planned: str | None, given: str) -> None:
    if planned is not None and planned != given:
        fix = "Give the models of the plan with --target and --draft, or plan again for these"
        raise Mismatch("the plan", made_for=f"{role} {planned[:12]}", given=f"{role} {given[:12]}", fix=fix)
