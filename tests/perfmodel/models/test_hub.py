"""Files from the Hugging Face hub, with a fake client: the cache comes first, and every error becomes one sentence."""

import sys
import types
from collections.abc import Callable, Iterator
from errno import ENOSPC
from fnmatch import fnmatch
from pathlib import Path

import pytest

from perfmodel.core.errors import MissingExtra, OutOfSpace, UserInputError
from perfmodel.models.hub import fetch_config, fetch_folder
from tests.fake_hub import Offline, fake_client


@pytest.fixture(autouse=True)
def empty_folder_cache() -> Iterator[None]:
    fetch_folder.cache_clear()
    yield
    fetch_folder.cache_clear()


def test_a_config_comes_from_the_local_cache_or_else_alone_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = fake_client(monkeypatch, cached="/cache/config.json")
    assert fetch_config("org/name") == Path("/cache/config.json")
    assert requests == ["cache org/name config.json"]
    requests = fake_client(monkeypatch)
    assert fetch_config("org/name") == Path("/downloaded/config.json")
    assert requests == ["cache org/name config.json", "head org/name/config.json", "download org/name config.json"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lambda _: Offline("no network"), r"the hub cannot be reached \(Offline\)"),
        (lambda errors: errors.GatedRepoError(), "the hub requires that you accept its terms and log in"),
        (lambda errors: errors.RepositoryNotFoundError(), "the hub has no such repository, or it is private"),
        (lambda errors: errors.EntryNotFoundError(), "its repository has no config.json"),
        (lambda _: ValueError("-- in a name"), "the hub does not allow such a repository name"),
        (lambda errors: errors.HfHubHTTPError(), r"answered with an error \(503\)"),
    ],
)
def test_an_error_of_the_hub_is_explained_after_one_request(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[types.ModuleType], Exception], reason: str
) -> None:
    requests = fake_client(monkeypatch, error=error)
    with pytest.raises(UserInputError, match=reason) as caught:
        fetch_config("org/name")
    assert "no config of 'org/name': it is not a known model, a folder here or in the local hub cache" in str(caught.value)
    assert str(caught.value).endswith("give its config.json by path: --target path/to/config.json.")
    assert requests == ["cache org/name config.json", "head org/name/config.json"]


def test_a_missing_client_is_named_with_an_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"needs huggingface_hub, .*: pip install 's2d\[run\]'") as caught:
        fetch_config("org/name")
    assert caught.value.__notes__ == ["Or give its config.json by path: --target path/to/config.json."]


def test_a_folder_is_fetched_once_without_code_pickles_or_second_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = fake_client(monkeypatch)
    assert fetch_folder("org/name") == fetch_folder("org/name") == Path("/downloaded")
    (line,) = requests
    patterns = line.split()[2:]

    def is_fetched(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    wanted = ("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "s2d.json")
    assert all(map(is_fetched, (*wanted, "config.json", "tokenizer.json", "chat_template.jinja")))
    assert not any(map(is_fetched, ("consolidated.safetensors", "pytorch_model.bin", "modeling_mine.py", "original/x.pth")))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lambda errors: errors.LocalEntryNotFoundError(), "the hub cannot be reached"),
        (lambda errors: errors.GatedRepoError(), "the hub requires that you accept its terms"),
        (lambda _: Offline(), "the hub cannot be reached"),
    ],
)
def test_a_folder_that_is_not_available_is_reported(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[types.ModuleType], Exception], reason: str
) -> None:
    fake_client(monkeypatch, error=error)
    with pytest.raises(UserInputError, match=f"no model 'org/name': .* and {reason}.*give its folder"):
        fetch_folder("org/name")


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_client(monkeypatch, error=lambda _: OSError(ENOSPC, "No space left on device"))
    with pytest.raises(OutOfSpace, match="the hub's local cache"):
        fetch_folder("org/name")
