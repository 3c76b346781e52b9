"""The hub's client, replaced: no test asks the network."""

import sys
import types
from collections.abc import Callable

import pytest


class Offline(ConnectionError):
    """What the fake's transport raises."""


class _HttpError(OSError):
    """As the client's: it carries the hub's answer."""

    response = types.SimpleNamespace(status_code=503)


def fake_client(
    monkeypatch: pytest.MonkeyPatch,
    *,
    cached: str | None = None,
    beside: str | None = None,
    error: Callable[[types.ModuleType], Exception] | None = None,
) -> list[str]:
    """The hub's client as far as it is used; what it was asked, in order.

    Args:
        monkeypatch: replaces the client.
        cached: the config.json in the local cache.
        beside: the repository's hf_quant_config.json, which is not in the cache; None where it has none.
        error: what the client raises where it asks the hub.
    """
    asked: list[str] = []
    errors = types.ModuleType("huggingface_hub.errors")
    errors.EntryNotFoundError = type("EntryNotFoundError", (Exception,), {})  # type: ignore[attr-defined]
    errors.LocalEntryNotFoundError = type(  # type: ignore[attr-defined]
        "LocalEntryNotFoundError", (FileNotFoundError, errors.EntryNotFoundError), {}
    )
    errors.HfHubHTTPError = _HttpError  # type: ignore[attr-defined]
    errors.RepositoryNotFoundError = type("RepositoryNotFoundError", (_HttpError,), {})  # type: ignore[attr-defined]
    errors.GatedRepoError = type("GatedRepoError", (errors.RepositoryNotFoundError,), {})  # type: ignore[attr-defined]

    def look(repository: str, file: str) -> str | None:
        asked.append(f"cache {repository} {file}")
        return cached if file == "config.json" else None

    def head(url: str, timeout: float) -> None:
        asked.append(f"head {url}")
        assert timeout <= 5
        if error is not None:
            raise error(errors)

    def download(repository: str, file: str, etag_timeout: float) -> str:
        asked.append(f"download {repository} {file}")
        if file == "hf_quant_config.json":
            if beside is not None and error is None:
                return beside
            raise errors.EntryNotFoundError() if error is None else error(errors)
        return "/downloaded/config.json"

    def snapshot(repository: str, allow_patterns: list[str], etag_timeout: float) -> str:
        asked.append(f"snapshot {repository} {' '.join(allow_patterns)}")
        if error is not None:
            raise error(errors)
        return cached or "/downloaded"

    hub = types.ModuleType("huggingface_hub")
    hub.errors = errors  # type: ignore[attr-defined]
    hub.snapshot_download = snapshot  # type: ignore[attr-defined]
    hub.try_to_load_from_cache = look  # type: ignore[attr-defined]
    hub.hf_hub_url = "{}/{}".format  # type: ignore[attr-defined]
    hub.get_hf_file_metadata = head  # type: ignore[attr-defined]
    hub.hf_hub_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked
