"""Resolve a target by name, config.json or hub repository, without its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perfmodel.core.errors import UnknownName, UserInputError
from perfmodel.core.near_names import near_models
from perfmodel.models.config_file import about_file, check_is_decoder, model_name, read_config_file
from perfmodel.models.find_model import find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.models.hub import CONFIG, QUANTISATION_FILE, REPOSITORY, fetch_config, fetch_quantisation_file
from perfmodel.models.known_models import KNOWN_MODELS
from perfmodel.models.model_config import geometry_from_config, reading_note
from perfmodel.quantisation.quantised_config import check_agreement, find_quantisation, stored_format
from perfmodel.quantisation.weight_format import WeightFormat

_LOG = logging.getLogger(__name__)

FetchConfig = Callable[[str], Path]
"""Name of a repository -> its config.json on disk."""
FetchQuantisationFile = Callable[[str], Path | None]
"""Name of a repository -> its hf_quant_config.json on disk; None if it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A target as it was requested and as it was found."""

    text: str
    """The request: a path, a name or `org/name`."""
    geometry: ModelGeometry
    stored: WeightFormat | None
    """How its files store the weights. None: plain, known by name alone, or not read."""


def resolve_target(
    text: str,
    *,
    reads_format: bool = True,
    fetch: FetchConfig = fetch_config,
    fetch_quantisation: FetchQuantisationFile = fetch_quantisation_file,
) -> Target:
    """A target by path, by known name, or by its repository on the hub, tried in this order.

    Args:
        text: a folder with a `config.json`, that file, a name, or `org/name`.
        reads_format: whether to read how the files store the weights.
        fetch: downloads a repository's config.json.
        fetch_quantisation: downloads a repository's hf_quant_config.json.

    Raises:
        UnknownName: no such model and no such file, or an empty name.
        BadFile: a file is not a model's config.
        UserInputError: an architecture that the latency law does not cover, weights in an unknown format, or a repository
            whose config is not available.
    """
    if not text.strip():
        raise UnknownName("target", text, [model.name for model in KNOWN_MODELS], listed_in="docs/models.md")
    path = config_path(text)
    if path is not None:
        geometry = _read_geometry(path)
        return Target(text=text, geometry=geometry, stored=_read_format(path, geometry) if reads_format else None)
    try:
        return Target(text=text, geometry=find_model(text), stored=None)
    except UnknownName:
        if not REPOSITORY.fullmatch(text):
            raise
    path = _fetch_config(text, fetch)
    geometry = _read_geometry(path, repository=text)
    stored = _read_format(path, geometry, lambda: fetch_quantisation(text)) if reads_format else None
    return Target(text=text, geometry=geometry, stored=stored)


def config_path(text: str) -> Path | None:
    """The config.json at a path to it or to its folder; None if there is no such path."""
    path = Path(text)
    try:
        if path.is_dir():
            return path / CONFIG
        return path if path.suffix == ".json" or path.is_file() else None
    except OSError:  # a name that is too long for a file
        return None


def _fetch_config(repository: str, fetch: FetchConfig) -> Path:
    """A repository's config.json; an error also names the known models with a similar name."""
    try:
        return fetch(repository)
    except UserInputError as err:
        near = near_models(repository.rpartition("/")[2], [model.name for model in KNOWN_MODELS])
        if near:
            err.add_note(f"Known models of that family: {', '.join(near)}.")
        raise


def _read_geometry(path: Path, repository: str | None = None) -> ModelGeometry:
    """The geometry in a config.json, named by the file or by its repository."""
    config = read_config_file(path)
    name = repository.rpartition("/")[2] if repository else model_name(path, config)
    origin = f"{repository} on the Hugging Face hub" if repository else name
    with about_file(path):
        check_is_decoder(path, config, name)
        geometry = geometry_from_config(config, name, f"{CONFIG} of {origin}")
    note = reading_note(config, name)
    if note:
        _LOG.info(note)
    return geometry


def _read_format(
    path: Path, model: ModelGeometry, fetch_quantisation: Callable[[], Path | None] | None = None
) -> WeightFormat | None:
    """How the files of a model store its weights; None if plain.

    Args:
        path: its config.json; a hf_quant_config.json may lie beside it.
        model: its shapes.
        fetch_quantisation: downloads its hf_quant_config.json; None if its files are local.

    Raises:
        BadFile: one of the files is not a JSON object.
        UserInputError: the format is unknown, or the two files contradict each other.
    """
    config = read_config_file(path)
    block_path: Path | None = path.with_name(QUANTISATION_FILE)
    if block_path is not None and not block_path.is_file():
        asks_hub = fetch_quantisation is not None and find_quantisation(config, None, model.name) is None
        block_path = fetch_quantisation() if fetch_quantisation is not None and asks_hub else None
    block = None if block_path is None else read_config_file(block_path)
    with about_file(path):
        quantisation = find_quantisation(config, block, model.name)
        if quantisation is None:
            return None
        stored = stored_format(quantisation, model)
        check_agreement(stored, block, model)
    return stored
