"""A target by name, by a config.json, or by its place on the Hugging Face hub: its shapes, never its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from perfmodel.errors import BadFile, UnknownName, UserInputError, near_misses
from perfmodel.geometry import ModelGeometry, find_model
from perfmodel.hub import QUANTISATION_FILE, REPOSITORY, fetch_config, fetch_quantisation_file
from perfmodel.known_models import ALIASES, KNOWN_MODELS
from perfmodel.model_config import geometry_from_config
from perfmodel.quantised_config import find_quantisation, stored_format
from perfmodel.weight_format import WeightFormat

_CONFIG = "config.json"

Fetch = Callable[[str], Path]
"""A repository's name -> its config.json on disk."""
FetchBeside = Callable[[str], Path | None]
"""A repository's name -> its hf_quant_config.json on disk; None where it has none."""


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


def _read(path: Path, name: str, source: str) -> ModelGeometry:
    config = _read_config(path)
    return geometry_from_config(config, name, source)


def find_stored_format(
    text: str, model: ModelGeometry, fetch: Fetch = fetch_config, fetch_beside: FetchBeside = fetch_quantisation_file
) -> WeightFormat | None:
    """How the files of a target store its weights; None where they are plain, or the target is known by name alone.

    Args:
        text: as for `find_target`.
        model: what `find_target` made of it.
        fetch: gets a repository's config.
        fetch_beside: gets a repository's hf_quant_config.json.

    Raises:
        BadFile: one of the files is no JSON object.
        UserInputError: they are quantised in a way whose bytes are not known.
    """
    path = Path(text)
    if path.is_dir():
        path /= _CONFIG
    if path.is_file() or path.suffix == ".json":
        beside: Path | None = path.with_name(QUANTISATION_FILE)
    elif _is_known(text):
        return None
    else:
        path = fetch(text)
        beside = path.with_name(QUANTISATION_FILE)
        if not beside.is_file() and find_quantisation(_read_config(path), None, model.name) is None:
            beside = fetch_beside(text)
    quantisation = find_quantisation(
        _read_config(path), _read_config(beside) if beside is not None and beside.is_file() else None, model.name
    )
    return None if quantisation is None else stored_format(quantisation, model)


def _is_known(name: str) -> bool:
    try:
        find_model(name)
    except UnknownName:
        return False
    return True


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
