"""Known targets and drafts by name or alias."""

import re
from collections.abc import Mapping
from typing import TypeVar

from perfmodel.core.errors import UnknownName
from perfmodel.core.near_names import dashed_name
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.models.known_models import ALIASES, KNOWN_DRAFTS, KNOWN_MODELS, UNPUBLISHED_DRAFTS

_Known = TypeVar("_Known")


def find_model(name: str) -> ModelGeometry:
    """A known target by name, alias, or the last part of its repository's name; case is ignored.

    Raises:
        UnknownName: with near misses.
    """
    by_name = {model.name: model for model in KNOWN_MODELS}
    found = _look_up(by_name, ALIASES, name)
    if found is None:
        otherwise = "give a config: --target path/to/config.json, or org/name on the Hugging Face hub"
        raise UnknownName("target", name, by_name, listed_in="docs/models.md", otherwise=otherwise)
    return found


def unpublished_note(draft: DraftGeometry) -> str | None:
    """How to train a draft whose weights its authors did not publish, as a note that ends with the command; None for others."""
    base = UNPUBLISHED_DRAFTS.get(draft.model.name)
    if base is None:
        return None
    exits = ",".join(map(str, draft.exit_layers))
    models = f"--target path/to/{base} --exits {exits} --text chats.jsonl -o path/to/{draft.model.name}"
    return f"no S2D draft is public; to make one: s2d-train draft {models}"


def release_note(requested: str, understood: ModelGeometry) -> str | None:
    """What a target's name was read as, and what else it may mean; None for a name that is exact.

    Args:
        requested: the name as it was given.
        understood: the target it was read as.
    """
    others = " or ".join(other_releases(requested, understood))
    if requested == understood.name or understood.name not in {model.name for model in KNOWN_MODELS}:
        return f"other releases of {understood.name}: --target {others}" if others else None
    return f"{requested!r} was read as {understood.name}" + (f"; other releases: --target {others}" if others else "")


def other_releases(asked: str, understood: ModelGeometry) -> list[str]:
    """Known targets that a name without a version may mean too: `llama-3.1-70b` for `llama-70b`.

    Args:
        asked: the name as it was given.
        understood: the target it was taken for; one that is not in the table has no others.
    """
    if _look_up({model.name: model for model in KNOWN_MODELS}, ALIASES, asked) != understood:
        return []
    plain = _TUNING.sub("", dashed_name(asked.rpartition("/")[2]))
    others = [model.name for model in KNOWN_MODELS if model.name != understood.name and _without_version(model.name) == plain]
    return sorted(others)


def find_draft(name: str) -> DraftGeometry:
    """A known nested draft by name or alias; case is ignored.

    Raises:
        UnknownName: with near misses.
    """
    by_name = {draft.model.name: draft for draft in KNOWN_DRAFTS}
    found = _look_up(by_name, ALIASES, name)
    if found is None:
        raise UnknownName("draft", name, by_name, listed_in="docs/models.md")
    return found


_TUNING = re.compile(r"-(hf|chat|instruct|it|pt|base)(?=-|$)")
"""Parts of a name that tell how a model was tuned or stored: its shapes are its base's."""


_VERSION = re.compile(r"-v?\d+(\.\d+)*(?=-|$)")
"""The part of a name that tells the release: `-3.1`, `-v0.3`, but not `-70b`."""


def _without_version(name: str) -> str:
    return _VERSION.sub("", name)


def _look_up(known: Mapping[str, _Known], aliases: Mapping[str, str], name: str) -> _Known | None:
    whole = dashed_name(name.rpartition("/")[2])
    plain = _TUNING.sub("", whole)
    names = (whole, aliases.get(whole, whole), plain, aliases.get(plain, plain))
    return next((known[one] for one in names if one in known), None)
