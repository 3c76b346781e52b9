"""Resolve a target by name, config.json or hub repository, without its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perfmodel.core.errors import UnknownName, UserInputError
from perfmodel.core.near_names import near_models
from perfmodel.models.find_model import find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.models.hub import CONFIG, REPOSITORY, fetch_config, fetch_quantisation_file
from perfmodel.models.known_models import KNOWN_MODELS
from perfmodel.quantisation.config_reading import ConfigReading, read_model_config
from perfmodel.quantisation.weight_format import WeightFormat

_LOG = logging.getLogger(__name__)

FetchConfig = Callable[[str], Path]
"""Name of a repository -> its config.json on disk."""
FetchQuantisationFile = Callable[[str], Path | None]
"""Name of a repository -> its hf_quant_config.json on disk; None if it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A target: the request, and the shapes and weight format that it resolves to."""

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
        raise UnknownName("target", text, [model.name for model in KNOWN_MODELS], listed_in="docs/reference/models.md")
    path = config_path(text)
    if path is not None:
        return _read_target(text, read_model_config(path), reads_format=reads_format)
    try:
        return Target(text=text, geometry=find_model(text), stored=None)
    except UnknownName:
        if not REPOSITORY.fullmatch(text):
            raise
    reading = read_model_config(_fetch_config(text, fetch), repository=text)
    return _read_target(text, reading, lambda: fetch_quantisation(text), reads_format=reads_format)


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


def _read_target(
    text: str, reading: ConfigReading, fetch_quantisation: Callable[[], Path | None] | None = None, *, reads_format: bool
) -> Target:
    """The target in a config.json; logs what was left out or filled in.

    Raises:
        BadFile: hf_quant_config.json is not a JSON object.
        UserInputError: an unsupported model, weights in an unknown format, or files that contradict each other.
    """
    geometry = reading.geometry()
    note = reading.note()
    if note:
        _LOG.info(note)
    stored = reading.stored_format(geometry, fetch_quantisation) if reads_format else None
    return Target(text=text, geometry=geometry, stored=stored)
