"""A fake client of the Hugging Face hub: no test uses the network."""

import sys
import types
from collections.abc import Callable

import pytest


class Offline(ConnectionError):
    """The error of the fake transport."""


class _HttpError(OSError):
    """Like the client's error, it carries the response of the hub."""

    response = types.SimpleNamespace(status_code=503)


def fake_client(
    monkeypatch: pytest.MonkeyPatch,
    *,
    cached: str | None = None,
    quant_config: str | None = None,
    error: Callable[[types.ModuleType], Exception] | None = None,
) -> list[str]:
    """Replace the used functions of the hub's client. Returns the list of requests, in order.

    Args:
        monkeypatch: replaces the client.
        cached: the config.json in the local cache.
        quant_config: the repository's hf_quant_config.json, which is not in the cache; None if it has none.
        error: the error that the client raises when it contacts the hub.
    """
    requests: list[str] = []
    errors = types.ModuleType("huggingface_hub.errors")
    errors.EntryNotFoundError = type("EntryNotFoundError", (Exception,), {})  # type: ignore[attr-defined]
    errors.LocalEntryNotFoundError = type(  # type: ignore[attr-defined]
        "LocalEntryNotFoundError", (FileNotFoundError, errors.EntryNotFoundError), {}
    )
    errors.HfHubHTTPError = _HttpError  # type: ignore[attr-defined]
    errors.RepositoryNotFoundError = type("RepositoryNotFoundError", (_HttpError,), {})  # type: ignore[attr-defined]
    errors.GatedRepoError = type("GatedRepoError", (errors.RepositoryNotFoundError,), {})  # type: ignore[attr-defined]

    def find_cached(repository: str, file: str) -> str | None:
        requests.append(f"cache {repository} {file}")
        return cached if file == "config.json" else None

    def head(url: str, timeout: float) -> None:
        requests.append(f"head {url}")
        assert timeout <= 5
        if error is not None:
            raise error(errors)

    def download(repository: str, file: str, etag_timeout: float) -> str:
        requests.append(f"download {repository} {file}")
        if file == "hf_quant_config.json":
            if quant_config is not None and error is None:
                return quant_config
            raise errors.EntryNotFoundError() if error is None else error(errors)
        return "/downloaded/config.json"

    def snapshot(repository: str, allow_patterns: list[str], etag_timeout: float) -> str:
        requests.append(f"snapshot {repository} {' '.join(allow_patterns)}")
        if error is not None:
            raise error(errors)
        return cached or "/downloaded"

    hub = types.ModuleType("huggingface_hub")
    hub.errors = errors  # type: ignore[attr-defined]
    hub.snapshot_download = snapshot  # type: ignore[attr-defined]
    hub.try_to_load_from_cache = find_cached  # type: ignore[attr-defined]
    hub.hf_hub_url = "{}/{}".format  # type: ignore[attr-defined]
    hub.get_hf_file_metadata = head  # type: ignore[attr-defined]
    hub.hf_hub_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return requests
