"""Find a model folder: in the reference family, on disk, or on the Hugging Face hub.

Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from perfmodel.core.errors import UnknownName, UserInputError
from perfmodel.models.geometry import REFERENCE_PREFIX, SELF_DRAFT
from perfmodel.models.hub import REPOSITORY, fetch_folder

FAMILY_FOLDER = Path(__file__).parents[1] / "family"
FAMILY_PROMPTS = FAMILY_FOLDER / "prompts.jsonl"


def find_model(name: str) -> Path:
    """The folder of a model.

    Args:
        name: a name of the reference family, a path, or `org/name` on the Hugging Face hub.

    Raises:
        UnknownName: the name is none of these.
        UserInputError: the hub cannot be reached, or does not provide the model.
    """
    folder = _local_folder(name)
    return fetch_folder(name) if folder is None else folder


def check_model_names(*names: str | None) -> None:
    """Refuse names that `find_model` cannot find, without a request to the hub. `SELF_DRAFT` and None pass.

    Raises:
        UnknownName: a name is not in the reference family, no folder, and not of the form `org/name`.
    """
    for name in names:
        if name not in (None, SELF_DRAFT):
            _local_folder(name)


def is_reference_model(name: str) -> bool:
    """Whether a name or folder is a model of the reference family. Makes no request to the hub.

    Raises:
        UnknownName: there is no such model.
    """
    folder = _local_folder(name)
    return folder is not None and folder.resolve().parent == FAMILY_FOLDER.resolve()


def family_prompts(target: str) -> Path:
    """The prompt file of the reference family, for a target of the family, given by name or folder.

    Raises:
        UserInputError: the target is another model.
    """
    if is_reference_model(target):
        return FAMILY_PROMPTS
    raise UserInputError(f"target {target!r} is not of the reference family, so its prompts must be given: --prompts FILE")


def _local_folder(name: str) -> Path | None:
    """The local folder of a model; None for a model of the hub."""
    known = {REFERENCE_PREFIX + path.parent.name: path.parent for path in sorted(FAMILY_FOLDER.glob("*/config.json"))}
    if name in known:
        return known[name]
    if Path(name).is_dir():
        return Path(name)
    if REPOSITORY.fullmatch(name):
        return None
    otherwise = "give a folder with config.json and model.safetensors, or org/name"
    raise UnknownName("model", name, known, listed_in="docs/reference/models.md", otherwise=otherwise)
