"""Where a model is, by its name: the reference family in the package, a folder, or the Hugging Face hub; needs no torch."""

from __future__ import annotations

from pathlib import Path

from perfmodel.core.errors import UnknownName
from perfmodel.models.geometry import SELF_DRAFT
from perfmodel.models.hub import REPOSITORY, fetch_folder

FAMILY_FOLDER = Path(__file__).parents[1] / "family"
FAMILY_PREFIX = "ref-"
"""Models of the reference family are named `ref-draft`, `ref-target-16` …: the prefix and the folder's name."""
FAMILY_PROMPTS = FAMILY_FOLDER / "prompts.jsonl"


def find_model(name: str) -> Path:
    """The folder of a model: a name of the reference family, a path, or `org/name` on the Hugging Face hub.

    Raises:
        UnknownName: none of these.
        UserInputError: it is to come from the hub, which cannot be reached or does not give it.
    """
    folder = _local_folder(name)
    return fetch_folder(name) if folder is None else folder


def check_model_names(*names: str | None) -> None:
    """Refuse names that `find_model` cannot find, without asking the hub; `SELF_DRAFT` and None name no model.

    Raises:
        UnknownName: one is none of the reference family, no folder, and not written like a repository.
    """
    for name in names:
        if name not in (None, SELF_DRAFT):
            _local_folder(name)


def is_of_family(name: str) -> bool:
    """Whether a model is one of the reference family, by name or by folder; the hub is not asked.

    Raises:
        UnknownName: there is no such model.
    """
    folder = _local_folder(name)
    return folder is not None and folder.resolve().parent == FAMILY_FOLDER.resolve()


def _local_folder(name: str) -> Path | None:
    """The folder of a model that is here; None for one of the hub."""
    known = {FAMILY_PREFIX + path.parent.name: path.parent for path in sorted(FAMILY_FOLDER.glob("*/config.json"))}
    if name in known:
        return known[name]
    if Path(name).is_dir():
        return Path(name)
    if REPOSITORY.fullmatch(name):
        return None
    otherwise = "give a folder with config.json and model.safetensors, or org/name"
    raise UnknownName("model", name, known, listed_in="docs/models.md", otherwise=otherwise)
