"""Read a config.json strictly, check that it describes a decoder, and find the model's name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from perfmodel.core.codec import unique_keys
from perfmodel.core.errors import BadFile, UserInputError, quoted
from perfmodel.models.hub import CONFIG
from perfmodel.models.model_roles import unsupported_role

SIDECAR_NAME: Final = "s2d.json"
"""The file in a nested draft's folder that lists its exits."""
_ORG_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SNAPSHOTS = "snapshots"
_MAX_NAME_CHARS = 96
_FIX = "Give the config.json of a model, or its folder"


def read_config_file(path: Path) -> dict[str, Any]:
    """The object in a config.json.

    Raises:
        BadFile: the file is missing, or it is not a JSON object with unique keys.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    except FileNotFoundError as err:
        raise BadFile(path, "there is no such file", _FIX) from err
    except OSError as err:
        raise BadFile(path, f"cannot be read ({err.strerror})", _FIX) from err
    except RecursionError as err:
        raise BadFile(path, "its brackets are nested too deep for a config", _FIX) from err
    except ValueError as err:
        raise BadFile(path, f"this is not a readable config ({err})", _FIX) from err
    if not isinstance(config, dict):
        raise BadFile(path, f"this is a JSON {type(config).__name__}, expected an object", _FIX)
    return config


@contextmanager
def note_file_in_errors(path: Path) -> Iterator[None]:
    """Add the file's path to every error about its content."""
    try:
        yield
    except UserInputError as err:
        err.add_note(f"Read from {str(path)!r}.")
        raise


def check_is_decoder(path: Path, config: Mapping[str, Any], name: str) -> None:
    """Refuse a model that generates no text, and a head that drafts for another model.

    Args:
        path: the config file. Its folder may contain files of sentence-transformers, which mark an embedding model.
        config: the object in the file.
        name: the model's name.

    Raises:
        UserInputError: it is such a model; the message says which kind and how it was recognised.
    """
    folder = path.parent
    folder_files = {file.name for file in folder.iterdir()} if path.name == CONFIG and folder.is_dir() else set()
    role = unsupported_role(config, name, folder_files)
    if role:
        raise UserInputError(f"model {quoted(name)} is {role}. Give a whole language model.")


def model_name(path: Path, config: Mapping[str, Any]) -> str:
    """The name of the model in a config file, on one line and cut to a readable length.

    In order: the repository's name if the file is in the hub's cache; `_name_or_path` if it has the form `org/name`; the file's
    own name if that is not config.json; the folder's name. A nested draft (a folder with an s2d.json) keeps its folder's name,
    because its config may still name the model it was made from.
    """
    resolved = path.resolve()
    if resolved.parent.parent.name == _SNAPSHOTS:  # models--ORG--NAME/snapshots/COMMIT/config.json
        return _printable(resolved.parent.parent.parent.name.rpartition("--")[2])
    origin = config.get("_name_or_path")
    if isinstance(origin, str) and _ORG_AND_NAME.fullmatch(origin) and not (resolved.parent / SIDECAR_NAME).is_file():
        return _printable(origin.rpartition("/")[2])
    return _printable(resolved.parent.name if path.name == CONFIG else path.stem)


def _printable(name: str) -> str:
    """A name without terminal control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:_MAX_NAME_CHARS] or "?"


def folder_model_name(folder: Path) -> str:
    """The name of the model in a folder; the folder's name if it has no config.

    Raises:
        BadFile: its config.json cannot be read.
    """
    path = folder / CONFIG
    return model_name(path, read_config_file(path) if path.is_file() else {})
