"""What the Hugging Face hub has of a model: its config alone, or the folder that the runtime loads."""

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
"""What `org/name` looks like."""
TIMEOUT_S: Seconds = 3.0
"""For the hub's first answer."""

_LOG = logging.getLogger(__name__)

CONFIG = "config.json"
QUANTISATION_FILE = "hf_quant_config.json"
"""Where NVIDIA's modelopt says how weights are stored: its older config.json does not."""
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
"""All that the runtime reads: no code, no pickles, no second copy of the weights."""


def fetch_config(repository: str) -> Path:
    """The config.json of a hub repository, and nothing else of it: from the local cache, else from the hub, asked once.

    Raises:
        MissingExtra: the hub's client is not installed.
        UserInputError: it is in neither, or the hub cannot be reached or does not give it.
    """
    known = f"no config of {repository!r}: it is no known model, no folder here and not in the local hub cache"
    with _asking(known, otherwise="give its config.json by path: --target path/to/config.json"):
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

        cached = try_to_load_from_cache(repository, CONFIG)
        if isinstance(cached, str):
            return Path(cached)
        get_hf_file_metadata(hf_hub_url(repository, CONFIG), timeout=TIMEOUT_S)  # asks once; a download asks six times
        return Path(hf_hub_download(repository, CONFIG, etag_timeout=TIMEOUT_S))


def fetch_quantisation_file(repository: str) -> Path | None:
    """The hf_quant_config.json of a hub repository whose config.json is here; None where the repository has none.

    A warning says so where that is not in the local cache and the hub cannot be asked: its weights are then taken as plain.
    """
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, QUANTISATION_FILE)
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:  # known to be missing
        return None
    try:
        with _asking(f"no {QUANTISATION_FILE} of {repository!r} in the local hub cache", otherwise="give --dtype"):
            try:
                return Path(hf_hub_download(repository, QUANTISATION_FILE, etag_timeout=TIMEOUT_S))
            except errors.LocalEntryNotFoundError:
                raise
            except errors.EntryNotFoundError:
                return None
    except UserInputError as err:
        _LOG.warning("weights of %r are taken as not quantised, but that could not be checked: %s", repository, err)
        return None


@cache
def fetch_folder(repository: str) -> Path:
    """A folder with a hub repository's config, tokenizer and safetensors, in the local cache; fetched where it is not there.

    Raises:
        MissingExtra: the hub's client is not installed.
        UserInputError: it is not there, and the hub cannot be reached or does not give it.
        OutOfSpace: the disk is full.
    """
    known = f"no model {repository!r}: it is none of the box, no folder here and not in the local hub cache"
    with _asking(known, otherwise="give the folder it is in"):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, allow_patterns=list(_FOLDER_FILES), etag_timeout=TIMEOUT_S))


@contextmanager
def _asking(known: str, otherwise: str) -> Iterator[None]:
    """Ask the hub's client; what it raises is told in one sentence.

    Args:
        known: what was looked for in vain before the hub was asked.
        otherwise: another way to say what was meant.
    """
    try:
        from huggingface_hub import errors
    except ModuleNotFoundError as err:
        missing = MissingExtra("huggingface_hub", "run")
        missing.add_note(f"Or {otherwise}.")
        raise missing from err
    try:
        yield
    except errors.GatedRepoError as err:
        why = "the hub gives it to those only who accepted its terms and are logged in"
        raise _not_given(known, why, otherwise) from err
    except errors.RepositoryNotFoundError as err:
        raise _not_given(known, "the hub knows no such repository, or it is private", otherwise) from err
    except errors.LocalEntryNotFoundError as err:
        raise _not_given(known, "the hub cannot be reached", otherwise) from err
    except errors.EntryNotFoundError as err:
        raise _not_given(known, f"its repository has no {CONFIG}", otherwise) from err
    except errors.HfHubHTTPError as err:
        raise _not_given(known, f"the hub answered with an error ({err.response.status_code})", otherwise) from err
    except ValueError as err:
        raise _not_given(known, "the hub has no repositories of such names", otherwise) from err
    except Exception as err:  # no network: the client's transport has raised other types with every release
        if isinstance(err, OSError) and err.errno == errno.ENOSPC:
            raise OutOfSpace(err.filename or "the hub's local cache") from err
        raise _not_given(known, f"the hub cannot be reached ({type(err).__name__})", otherwise) from err


def _not_given(known: str, why: str, otherwise: str) -> UserInputError:
    return UserInputError(f"{known}, and {why}. Download it where you can, and {otherwise}.")
