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
def nothing_fetched() -> Iterator[None]:
    fetch_folder.cache_clear()
    yield
    fetch_folder.cache_clear()


def test_the_local_cache_comes_first_and_the_hub_gives_the_config_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_client(monkeypatch, cached="/cache/config.json")
    assert fetch_config("org/name") == Path("/cache/config.json")
    assert asked == ["cache org/name config.json"]
    asked = fake_client(monkeypatch)
    assert fetch_config("org/name") == Path("/downloaded/config.json")
    assert asked == ["cache org/name config.json", "head org/name/config.json", "download org/name config.json"]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (lambda _: Offline("no network"), r"the hub cannot be reached \(Offline\)"),
        (lambda errors: errors.GatedRepoError(), "gives it to those only who accepted its terms and are logged in"),
        (lambda errors: errors.RepositoryNotFoundError(), "knows no such repository, or it is private"),
        (lambda errors: errors.EntryNotFoundError(), "its repository has no config.json"),
        (lambda _: ValueError("-- in a name"), "the hub has no repositories of such names"),
        (lambda errors: errors.HfHubHTTPError(), r"answered with an error \(503\)"),
    ],
)
def test_a_hub_that_gives_nothing_is_asked_once_and_the_answer_says_what_was_tried(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[types.ModuleType], Exception], why: str
) -> None:
    asked = fake_client(monkeypatch, error=error)
    with pytest.raises(UserInputError, match=why) as caught:
        fetch_config("org/name")
    assert "no config of 'org/name': it is no known model, no folder here and not in the local hub cache" in str(caught.value)
    assert str(caught.value).endswith("give its config.json by path: --target path/to/config.json.")
    assert asked == ["cache org/name config.json", "head org/name/config.json"]


def test_without_the_client_it_is_named_with_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"needs huggingface_hub, .*: pip install 's2d\[run\]'") as caught:
        fetch_config("org/name")
    assert caught.value.__notes__ == ["Or give its config.json by path: --target path/to/config.json."]


def test_a_folder_is_fetched_once_without_code_pickles_or_second_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_client(monkeypatch)
    assert fetch_folder("org/name") == fetch_folder("org/name") == Path("/downloaded")
    (line,) = asked
    patterns = line.split()[2:]

    def is_fetched(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    wanted = ("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "s2d.json")
    assert all(map(is_fetched, (*wanted, "config.json", "tokenizer.json", "chat_template.jinja")))
    assert not any(map(is_fetched, ("consolidated.safetensors", "pytorch_model.bin", "modeling_mine.py", "original/x.pth")))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (lambda errors: errors.LocalEntryNotFoundError(), "the hub cannot be reached"),
        (lambda errors: errors.GatedRepoError(), "the hub gives it to those only who accepted its terms"),
        (lambda _: Offline(), "the hub cannot be reached"),
    ],
)
def test_a_folder_that_cannot_be_had_is_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[types.ModuleType], Exception], why: str
) -> None:
    fake_client(monkeypatch, error=error)
    with pytest.raises(UserInputError, match=f"no model 'org/name': .* and {why}.*give the folder it is in"):
        fetch_folder("org/name")


def test_a_full_disk_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_client(monkeypatch, error=lambda _: OSError(ENOSPC, "No space left on device"))
    with pytest.raises(OutOfSpace, match="the hub's local cache"):
        fetch_folder("org/name")
