"""Find known targets and drafts by name or alias."""

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
        UnknownName: no such target; the message lists near misses.
    """
    by_name = {model.name: model for model in KNOWN_MODELS}
    model = _look_up(by_name, ALIASES, name)
    if model is None:
        otherwise = "give a config: --target path/to/config.json, or org/name on the Hugging Face hub"
        raise UnknownName("target", name, by_name, listed_in="docs/reference/models.md", otherwise=otherwise)
    return model


def unpublished_note(draft: DraftGeometry) -> str | None:
    """A note with the command that trains a draft whose weights were not published; None for other drafts."""
    base = UNPUBLISHED_DRAFTS.get(draft.model.name)
    if base is None:
        return None
    exits = ",".join(map(str, draft.exit_layers))
    models = f"--target path/to/{base} --exits {exits} --text chats.jsonl -o path/to/{draft.model.name}"
    return f"no S2D draft is public; train one: s2d-train draft {models}"


def release_note(requested: str, understood: ModelGeometry) -> str | None:
    """A note on how an ambiguous target name was resolved and on other releases; None for an exact name.

    Args:
        requested: the name as given.
        understood: the target that it was resolved to.
    """
    *names, last = other_releases(requested, understood) or [""]
    others = f"{', '.join(names)} or {last}" if names else last
    if requested == understood.name or understood.name not in {model.name for model in KNOWN_MODELS}:
        return f"other releases of {understood.name}: {others}" if others else None
    return f"{requested!r} was read as {understood.name}" + (f", not {others}" if others else "")


def other_releases(requested: str, understood: ModelGeometry) -> list[str]:
    """Known targets that a name without a version may also mean: `llama-3.1-70b` for `llama-70b`.

    Args:
        requested: the name as given.
        understood: the target that it was resolved to; a target outside the table has no other releases.
    """
    if _look_up({model.name: model for model in KNOWN_MODELS}, ALIASES, requested) != understood:
        return []
    plain = _TUNING.sub("", dashed_name(requested.rpartition("/")[2]))
    others = [model.name for model in KNOWN_MODELS if model.name != understood.name and _VERSION.sub("", model.name) == plain]
    return sorted(others)


def find_draft(name: str) -> DraftGeometry:
    """A known nested draft by name or alias; case is ignored.

    Raises:
        UnknownName: no such draft; the message lists near misses.
    """
    by_name = {draft.model.name: draft for draft in KNOWN_DRAFTS}
    draft = _look_up(by_name, ALIASES, name)
    if draft is None:
        raise UnknownName("draft", name, by_name, listed_in="docs/reference/models.md")
    return draft


_TUNING = re.compile(r"-(hf|chat|instruct|it|pt|base)(?=-|$)")
"""Parts of a name for how a model was tuned or stored; its shapes equal the base model's."""
_VERSION = re.compile(r"-v?\d+(\.\d+)*(?=-|$)")
"""The release in a name: `-3.1` or `-v0.3`, but not `-70b`."""


def _look_up(known: Mapping[str, _Known], aliases: Mapping[str, str], name: str) -> _Known | None:
    whole = dashed_name(name.rpartition("/")[2])
    plain = _TUNING.sub("", whole)
    names = (whole, aliases.get(whole, whole), plain, aliases.get(plain, plain))
    return next((known[candidate] for candidate in names if candidate in known), None)
