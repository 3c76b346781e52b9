"""A target by path, by name, or from the hub, which no test asks: its client is replaced by a fake."""

import json
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from calibrate.cli import main_plan
from calibrate.find_target import fetch_config, find_target
from perfmodel.errors import MissingExtra, UnknownName, UserInputError
from perfmodel.geometry import find_model
from perfmodel.trace import write_trace
from tests.calibrate.evidence import make_trace, provenance

QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
REFERENCE = {
    "model_type": "llama",
    "num_hidden_layers": 16,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_attention_heads": 2,
    "vocab_size": 2048,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}


def write_config(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def no_hub(repository: str) -> Path:
    raise AssertionError(f"the hub was asked for {repository!r}")


def test_a_repository_that_is_not_in_the_table_is_fetched_and_named_by_its_last_part(tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(repository: str) -> Path:
        asked.append(repository)
        return write_config(tmp_path, QWEN)

    target = find_target("somebody/My-Qwen", fetch)
    assert asked == ["somebody/My-Qwen"]
    assert (target.name, target.source) == ("My-Qwen", "config.json of somebody/My-Qwen on the Hugging Face hub")
    assert target.layer_params == find_model("qwen2.5-7b").layer_params


def test_what_is_on_disk_or_in_the_table_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path / "mine", QWEN)
    monkeypatch.chdir(tmp_path.parent)
    by_folder = f"{tmp_path.name}/mine"
    assert find_target(by_folder, no_hub) == find_target(f"{by_folder}/config.json", no_hub)
    assert find_target(by_folder, no_hub).source == "config.json of mine"
    assert find_target("Qwen/Qwen2.5-7B-Instruct", no_hub) == find_model("qwen2.5-7b")


def test_a_name_that_is_no_repository_asks_no_hub_either() -> None:
    for name in ("llama-2-71b", "a/b/c", "what is this/model"):
        with pytest.raises(UnknownName):
            find_target(name, no_hub)


def test_a_fetched_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, QWEN | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8})
    with pytest.raises(UserInputError, match="'Mixtral-8x7B': the latency law does not cover 'MixtralForCausalLM'"):
        find_target("mistralai/Mixtral-8x7B", lambda _: config)


def test_a_quantised_file_is_said_to_be_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_config(tmp_path, QWEN | {"quantization_config": {"quant_method": "awq", "bits": 4}})
    with caplog.at_level(logging.WARNING):
        find_target(str(tmp_path), no_hub)
    assert "is stored quantised (awq, 4 bits), and priced in the dtype asked for: give --dtype int4" in caplog.text


class Offline(ConnectionError):
    """What the fake's transport raises."""


class _HttpError(OSError):
    """As the client's: it carries the hub's answer."""

    response = types.SimpleNamespace(status_code=503)


def fake_client(
    monkeypatch: pytest.MonkeyPatch, *, cached: str | None = None, error: Callable[[types.ModuleType], Exception] | None = None
) -> list[str]:
    """The hub's client as far as it is used; what it was asked, in order."""
    asked: list[str] = []
    errors = types.ModuleType("huggingface_hub.errors")
    errors.EntryNotFoundError = type("EntryNotFoundError", (Exception,), {})  # type: ignore[attr-defined]
    errors.HfHubHTTPError = _HttpError  # type: ignore[attr-defined]
    errors.RepositoryNotFoundError = type("RepositoryNotFoundError", (_HttpError,), {})  # type: ignore[attr-defined]
    errors.GatedRepoError = type("GatedRepoError", (errors.RepositoryNotFoundError,), {})  # type: ignore[attr-defined]

    def look(repository: str, file: str) -> str | None:
        asked.append(f"cache {repository} {file}")
        return cached

    def head(url: str, timeout: float) -> None:
        asked.append(f"head {url}")
        assert timeout <= 5
        if error is not None:
            raise error(errors)

    def download(repository: str, file: str, etag_timeout: float) -> str:
        asked.append(f"download {repository} {file}")
        return "/downloaded/config.json"

    hub = types.ModuleType("huggingface_hub")
    hub.try_to_load_from_cache = look  # type: ignore[attr-defined]
    hub.hf_hub_url = "{}/{}".format  # type: ignore[attr-defined]
    hub.get_hf_file_metadata = head  # type: ignore[attr-defined]
    hub.hf_hub_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return asked


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


def test_offline_the_command_ends_with_2_and_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_client(monkeypatch, error=lambda _: Offline())
    assert main_plan(["--target", "meta-llama/Llama-2-71b-hf"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    said, near = captured.err.splitlines()
    assert said.startswith("s2d-plan: no config of 'meta-llama/Llama-2-71b-hf': it is no known model, no folder here")
    assert near.startswith("Known under a like name: llama-2-7")


@pytest.mark.parametrize("by", ["file", "folder", "hub"])
def test_a_config_plans_end_to_end_with_a_trace_of_its_shapes(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_trace(tmp_path / "trace.npz", make_trace(), provenance())
    config = write_config(tmp_path / "mine", REFERENCE)
    fake_client(monkeypatch, cached=str(config))
    target = {"file": str(config), "folder": str(config.parent), "hub": "org/name"}[by]
    assert main_plan(["--target", target, "--trace", str(tmp_path / "trace.npz"), "--device", "a100"]) == 0
    assert "ref-target-16, 16 layers" in capsys.readouterr().out
