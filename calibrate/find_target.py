"""A target by name, by a config.json, or by its place on the Hugging Face hub: its shapes, never its weights."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

from perfmodel.errors import BadFile, MissingExtra, UnknownName, UserInputError, near_misses
from perfmodel.geometry import ModelGeometry, find_model
from perfmodel.known_models import ALIASES, KNOWN_MODELS
from perfmodel.model_config import geometry_from_config, quantisation_note
from perfmodel.units import Seconds

HUB_TIMEOUT_S: Seconds = 3.0
"""For the hub's first answer; it is asked once."""

_CONFIG = "config.json"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_BY_PATH = "give its config.json by path: --target path/to/config.json"

_LOG = logging.getLogger(__name__)

Fetch = Callable[[str], Path]
"""A repository's name -> its config.json on disk."""


def fetch_config(repository: str) -> Path:
    """The config.json of a hub repository, and nothing else of it: from the local cache, else from the hub.

    Raises:
        MissingExtra: the hub's client is not installed.
        UserInputError: it is in neither, or the hub cannot be reached or does not give it.
    """
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    except ModuleNotFoundError as err:
        missing = MissingExtra("huggingface_hub", "run")
        missing.add_note(f"Or {_BY_PATH}.")
        raise missing from err
    try:
        cached = try_to_load_from_cache(repository, _CONFIG)
        if isinstance(cached, str):
            return Path(cached)
        get_hf_file_metadata(hf_hub_url(repository, _CONFIG), timeout=HUB_TIMEOUT_S)  # asks once; a download asks six times
        return Path(hf_hub_download(repository, _CONFIG, etag_timeout=HUB_TIMEOUT_S))
    except GatedRepoError as err:
        raise _not_given(repository, "the hub gives it to those only who accepted its terms and are logged in") from err
    except RepositoryNotFoundError as err:
        raise _not_given(repository, "the hub knows no such repository, or it is private") from err
    except EntryNotFoundError as err:
        raise _not_given(repository, f"its repository has no {_CONFIG}") from err
    except HfHubHTTPError as err:
        raise _not_given(repository, f"the hub answered with an error ({err.response.status_code})") from err
    except ValueError as err:
        raise _not_given(repository, "the hub has no repositories of such names") from err
    except Exception as err:  # no network: the client's transport has raised other types with every release
        raise _not_given(repository, f"the hub cannot be reached ({type(err).__name__})") from err


def _not_given(repository: str, why: str) -> UserInputError:
    return UserInputError(
        f"no config of {repository!r}: it is no known model, no folder here and not in the local hub cache, and {why}. "
        f"Download it where you can, and {_BY_PATH}."
    )


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
        if not _REPOSITORY.fullmatch(text):
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
