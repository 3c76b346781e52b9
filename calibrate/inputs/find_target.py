"""A target by name, by a config.json, or by its place on the Hugging Face hub: its shapes, never its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from perfmodel.core.errors import UnknownName, UserInputError
from perfmodel.core.near_names import near_models
from perfmodel.models.config_file import check_is_decoder, model_name, note_file_in_errors, read_config_file
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.models.hub import CONFIG, REPOSITORY, fetch_config, fetch_quantisation_file
from perfmodel.models.known_models import KNOWN_MODELS
from perfmodel.quantisation.config_reading import read_model_config
from perfmodel.quantisation.weight_format import WeightFormat

_LOG = logging.getLogger(__name__)

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
        raise UnknownName("target", text, [model.name for model in KNOWN_MODELS], listed_in="docs/models.md")
    path = config_path(text)
    if path is not None:
        return _read(path)
    try:
        return find_model(text)
    except UnknownName:
        if not REPOSITORY.fullmatch(text):
            raise
    name = text.rpartition("/")[2]
    try:
        config = fetch(text)
    except UserInputError as err:
        near = near_models(name, [model.name for model in KNOWN_MODELS])
        if near:
            err.add_note(f"Known models of that family: {', '.join(near)}.")
        raise
    return _read(config, repository=text)


def find_any_draft(text: str) -> DraftGeometry:
    """A known nested draft, or any model that `find_target` finds as a draft with one exit, at its full depth."""
    if is_known_draft(text):
        return find_draft(text)
    model = find_target(text)
    return DraftGeometry(kind="separate", model=model, exit_layers=(model.num_layers,))


def is_known_draft(text: str) -> bool:
    """Whether a text names a nested draft of the table."""
    return _is_known(text, find_draft)


def config_path(text: str) -> Path | None:
    """The config.json meant by a path: that file, or the one in that folder; None where there is no such path."""
    path = Path(text)
    try:
        if path.is_dir():
            return path / CONFIG
        return path if path.suffix == ".json" or path.is_file() else None
    except OSError:  # a name longer than any file's
        return None


def check_draft_is_decoder(text: str) -> None:
    """Refuse a draft by a path whose model is no draft: an embedding or reward model, or a head such as EAGLE's.

    Raises:
        UserInputError: it is one.
        BadFile: its config cannot be read.
    """
    path = config_path(text)
    if path is not None and path.is_file():
        config = read_config_file(path)
        with note_file_in_errors(path):
            check_is_decoder(path, config, model_name(path, config))


def _read(path: Path, repository: str | None = None) -> ModelGeometry:
    """The geometry in a file, named by itself or by the repository it is from."""
    reading = read_model_config(path, repository)
    geometry = reading.geometry()
    note = reading.note()
    if note:
        _LOG.info(note)
    return geometry


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
    path = config_path(text)
    if path is None and _is_known(text):
        return None
    reading = read_model_config(path or fetch(text))
    return reading.stored_format(model, None if path is not None else lambda: fetch_beside(text))


def _is_known(name: str, find: Callable[[str], object] = find_model) -> bool:
    try:
        find(name)
    except UnknownName:
        return False
    return True
