"""Fetch a model's config.json, or all files the runtime loads, from the Hugging Face hub."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from perfmodel.core.errors import MissingExtra, OutOfSpace, UserInputError
from perfmodel.core.units import Seconds

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
"""The form `org/name`."""
TIMEOUT_S: Seconds = 3.0
"""Time to wait for the hub's first answer."""

_LOG = logging.getLogger(__name__)

CONFIG = "config.json"
QUANTISATION_FILE = "hf_quant_config.json"
"""NVIDIA ModelOpt's description of the stored weights, which older versions do not repeat in config.json."""
_FOLDER_FILES = (
    CONFIG,
    QUANTISATION_FILE,
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "s2d.json",
)
"""All files that the runtime reads: no code, no pickles, no second copy of the weights."""


def fetch_config(repository: str) -> Path:
    """The config.json of a hub repository, from the local cache or else from the hub with a single request.

    Raises:
        MissingExtra: the hub's client is not installed.
        UserInputError: the file is in neither place, or the hub cannot be reached or denies access.
    """
    problem = f"no config of {repository!r}: it is not a known model, a folder here or in the local hub cache"
    with _hub_errors_explained(problem, alternative="give its config.json by path: --target path/to/config.json"):
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

        cached = try_to_load_from_cache(repository, CONFIG)
        if isinstance(cached, str):
            return Path(cached)
        get_hf_file_metadata(hf_hub_url(repository, CONFIG), timeout=TIMEOUT_S)  # one request; a failing download makes six
        return Path(hf_hub_download(repository, CONFIG, etag_timeout=TIMEOUT_S))


def fetch_quantisation_file(repository: str) -> Path | None:
    """The hf_quant_config.json of a hub repository whose config.json is already here; None if the repository has none.

    If the file is not in the local cache and the hub cannot be reached, logs a warning and returns None: the weights then
    count as not quantised.
    """
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, QUANTISATION_FILE)
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:  # known to be missing
        return None
    try:
        with _hub_errors_explained(
            f"no {QUANTISATION_FILE} of {repository!r} in the local hub cache", alternative="give --dtype"
        ):
            try:
                return Path(hf_hub_download(repository, QUANTISATION_FILE, etag_timeout=TIMEOUT_S))
            except errors.LocalEntryNotFoundError:
                raise
            except errors.EntryNotFoundError:
                return None
    except UserInputError as err:
        _LOG.warning("the weights of %r are assumed not to be quantised, which could not be checked: %s", repository, err)
        return None


@cache
def fetch_folder(repository: str) -> Path:
    """The local folder with a hub repository's config, tokenizer and safetensors; downloaded if it is not in the cache.

    Raises:
        MissingExtra: the hub's client is not installed.
        UserInputError: it is not in the cache, and the hub cannot be reached or denies access.
        OutOfSpace: the disk is full.
    """
    problem = f"no model {repository!r}: it is not a shipped model, a folder here or in the local hub cache"
    with _hub_errors_explained(problem, alternative="give its folder"):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, allow_patterns=list(_FOLDER_FILES), etag_timeout=TIMEOUT_S))


@contextmanager
def _hub_errors_explained(problem: str, alternative: str) -> Iterator[None]:
    """Turn every error of the hub's client into a message of one sentence.

    Args:
        problem: what is missing and where it was looked for.
        alternative: another way to name the model.
    """
    try:
        from huggingface_hub import errors
    except ModuleNotFoundError as err:
        missing = MissingExtra("huggingface_hub", "run")
        missing.add_note(f"Or {alternative}.")
        raise missing from err
    try:
        yield
    except errors.GatedRepoError as err:
        reason = "the hub requires that you accept its terms and log in"
        raise _not_available(problem, reason, alternative) from err
    except errors.RepositoryNotFoundError as err:
        raise _not_available(problem, "the hub has no such repository, or it is private", alternative) from err
    except errors.LocalEntryNotFoundError as err:
        raise _not_available(problem, "the hub cannot be reached", alternative) from err
    except errors.EntryNotFoundError as err:
        raise _not_available(problem, f"its repository has no {CONFIG}", alternative) from err
    except errors.HfHubHTTPError as err:
        raise _not_available(problem, f"the hub answered with an error ({err.response.status_code})", alternative) from err
    except ValueError as err:
        raise _not_available(problem, "the hub does not allow such a repository name", alternative) from err
    except Exception as err:  # no network: the type differs between releases of the client
        if isinstance(err, OSError) and err.errno == errno.ENOSPC:
            raise OutOfSpace(err.filename or "the hub's local cache") from err
        raise _not_available(problem, f"the hub cannot be reached ({type(err).__name__})", alternative) from err


def _not_available(problem: str, reason: str, alternative: str) -> UserInputError:
    return UserInputError(f"{problem}, and {reason}. Download it elsewhere, and {alternative}.")
