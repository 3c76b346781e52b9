"""A target by path, by name, or from the hub, which no test asks: its client is replaced by a fake."""

import json
import logging
from pathlib import Path

import pytest

from calibrate.cli import main_plan
from calibrate.find_target import Fetch, FetchBeside, find_stored_format, find_target
from perfmodel.errors import BadFile, UnknownName, UserInputError
from perfmodel.geometry import find_model
from perfmodel.hub import fetch_quantisation_file
from perfmodel.trace import write_trace
from tests.calibrate.evidence import make_trace, provenance
from tests.fake_hub import Offline, fake_client

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


AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
MODELOPT = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}


def stored_text(text: str, fetch: Fetch = no_hub, fetch_beside: FetchBeside = no_hub) -> str | None:
    stored = find_stored_format(text, find_target(text, fetch), fetch, fetch_beside)
    return None if stored is None else stored.text


def test_a_quantised_target_is_stored_as_its_files_say(tmp_path: Path) -> None:
    write_config(tmp_path / "awq", QWEN | AWQ)
    write_config(tmp_path / "fp8", QWEN)
    (tmp_path / "fp8" / "hf_quant_config.json").write_text(json.dumps(MODELOPT), encoding="utf-8")
    write_config(tmp_path / "plain", QWEN)
    assert stored_text(str(tmp_path / "awq")) == "AWQ int4, groups of 128, 4.16 bits; head 16 bits"
    assert stored_text(str(tmp_path / "fp8" / "config.json")) == "ModelOpt fp8, a scale per matrix, 8 bits; head 16 bits"
    assert stored_text(str(tmp_path / "plain")) is None
    assert stored_text("llama-70b") is None


def test_of_a_repository_both_files_are_asked_for_unless_the_first_tells(tmp_path: Path) -> None:
    awq, plain = write_config(tmp_path / "awq", QWEN | AWQ), write_config(tmp_path / "plain", QWEN)
    beside = tmp_path / "beside.json"
    beside.write_text(json.dumps(MODELOPT), encoding="utf-8")
    assert stored_text("org/mine-awq", lambda _: awq) == "AWQ int4, groups of 128, 4.16 bits; head 16 bits"
    assert stored_text("org/mine", lambda _: plain, lambda _: beside) == (
        "ModelOpt fp8, a scale per matrix, 8 bits; head 16 bits"
    )
    assert stored_text("org/mine", lambda _: plain, lambda _: None) is None


def test_a_file_beside_that_is_no_json_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, QWEN)
    (tmp_path / "hf_quant_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BadFile, match=r"hf_quant_config.json': this is a JSON list, expected an object"):
        stored_text(str(tmp_path))


def test_a_hub_that_cannot_be_asked_for_the_file_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = write_config(tmp_path, QWEN)
    asked = fake_client(monkeypatch, cached=str(config), error=lambda _: Offline())
    with caplog.at_level(logging.WARNING):
        assert stored_text("org/mine", lambda _: config, fetch_quantisation_file) is None
    assert asked == ["cache org/mine hf_quant_config.json", "download org/mine hf_quant_config.json"]
    assert "weights of 'org/mine' are taken as not quantised, but that could not be checked" in caplog.text


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
