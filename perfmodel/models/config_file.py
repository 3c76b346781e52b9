"""A model's config.json on disk: read strictly, checked for what it is, and the model's own name."""

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
from perfmodel.models.model_roles import other_role

SIDECAR_NAME: Final = "s2d.json"
"""The file of a draft of ours that holds its exits."""
_ORG_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SNAPSHOTS = "snapshots"
_MAX_NAME_CHARS = 96
_FIX = "Give a model's config.json, or the folder it is in"


def read_config_file(path: Path) -> dict[str, Any]:
    """The object in a config.json.

    Raises:
        BadFile: there is none, or it is no JSON object with each key once.
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
def about_file(path: Path) -> Iterator[None]:
    """Add the file to every error about what is in it."""
    try:
        yield
    except UserInputError as err:
        err.add_note(f"Read from {str(path)!r}.")
        raise


def check_is_decoder(path: Path, config: Mapping[str, Any], name: str) -> None:
    """Refuse a model that writes no text, and a head that drafts for another model.

    Args:
        path: the file, whose folder may hold the marks of sentence-transformers.
        config: the object in it.
        name: what the model calls itself.

    Raises:
        UserInputError: it is one; says what it is and by which mark.
    """
    folder = path.parent
    beside = {one.name for one in folder.iterdir()} if path.name == CONFIG and folder.is_dir() else set()
    role = other_role(config, name, beside)
    if role:
        raise UserInputError(f"model {quoted(name)} is {role}. Give a whole language model.")


def model_name(path: Path, config: Mapping[str, Any]) -> str:
    """What the model of a config file calls itself, on one line and cut to a readable length.

    The repository's name in the hub's cache, else the `_name_or_path` of its file where that is `org/name`, else the name of a
    file that is not called config.json, else the folder's. A draft of ours (with an s2d.json) keeps its folder's name: its
    file may still name the model it was made from.
    """
    whole = path.resolve()
    if whole.parent.parent.name == _SNAPSHOTS:  # models--ORG--NAME/snapshots/COMMIT/config.json
        return _printable(whole.parent.parent.parent.name.rpartition("--")[2])
    named = config.get("_name_or_path")
    if isinstance(named, str) and _ORG_AND_NAME.fullmatch(named) and not (whole.parent / SIDECAR_NAME).is_file():
        return _printable(named.rpartition("/")[2])
    return _printable(whole.parent.name if path.name == CONFIG else path.stem)


def _printable(name: str) -> str:
    """A name without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:_MAX_NAME_CHARS] or "?"


def name_of_folder(folder: Path) -> str:
    """What the model in a folder calls itself; the folder's name where it has no config.

    Raises:
        BadFile: its config.json cannot be read.
    """
    path = folder / CONFIG
    return model_name(path, read_config_file(path) if path.is_file() else {})
