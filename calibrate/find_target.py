"""A target by name, by a config.json, or by its place on the Hugging Face hub: its shapes, never its weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from perfmodel.errors import BadFile, UnknownName, UserInputError, near_misses
from perfmodel.geometry import DraftGeometry, ModelGeometry, find_draft, find_model
from perfmodel.hub import REPOSITORY, fetch_config
from perfmodel.known_models import ALIASES, KNOWN_MODELS
from perfmodel.model_config import geometry_from_config, quantisation_note

_CONFIG = "config.json"

_LOG = logging.getLogger(__name__)

Fetch = Callable[[str], Path]
"""A repository's name -> its config.json on disk."""


def find_target(text: str, fetch: Fetch = fetch_config) -> ModelGeometry:
    """A target by a folder with a `config.json` or that file, by a known name, or by its repository on the hub.

    Args:
        text: a path, a name, or `org/name`; what is there on disk comes first, then the table.
        fetch: gets a repository's config.

    Raises:
        UnknownName: no such model, and no such file; or no name at all.
        BadFile: the file is no model's config.
        UserInputError: a kind of model that the latency law does not cover, or a repository whose config cannot be had.
    """
    if not text.strip():
        raise UnknownName("target", text, [model.name for model in KNOWN_MODELS])
    path = Path(text)
    if path.is_dir():
        path /= _CONFIG
    if path.is_file() or path.suffix == ".json":
        name = path.resolve().parent.name
        return _read(path, name, f"{_CONFIG} of {name}")
    try:
        return find_model(text)
    except UnknownName:
        if not REPOSITORY.fullmatch(text):
            raise
    name = text.rpartition("/")[2]
    try:
        config = fetch(text)
    except UserInputError as err:
        near = near_misses(name, [*(model.name for model in KNOWN_MODELS), *ALIASES])
        if near:
            err.add_note(f"Known under a like name: {', '.join(near)}.")
        raise
    return _read(config, name, f"{_CONFIG} of {text} on the Hugging Face hub")


def find_any_draft(text: str) -> DraftGeometry:
    """A known nested draft, or any model that `find_target` finds as a draft with one exit, at its full depth."""
    try:
        return find_draft(text)
    except UnknownName:
        model = find_target(text)
        return DraftGeometry(kind="separate", model=model, exit_layers=(model.num_layers,))


def _read(path: Path, name: str, source: str) -> ModelGeometry:
    config = _read_config(path)
    geometry = geometry_from_config(config, name, source)
    note = quantisation_note(config, name)
    if note:
        _LOG.warning(note)
    return geometry


def _read_config(path: Path) -> dict[str, object]:
    fix = "Give a model's config.json, or the folder it is in"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise BadFile(path, f"cannot be read ({err.strerror})", fix) from err
    except ValueError as err:
        raise BadFile(path, f"this is not JSON ({err})", fix) from err
    if not isinstance(config, dict):
        raise BadFile(path, f"this is a JSON {type(config).__name__}, expected an object", fix)
    return config
