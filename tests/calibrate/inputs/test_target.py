"""Targets by path, by name or from the hub, whose client is a fake."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrate.commands.plan_cli import main_plan
from calibrate.inputs.target import FetchConfig, FetchQuantisationFile, resolve_target
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core.errors import BadFile, UnknownName, UserInputError
from perfmodel.models.find_model import find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.models.hub import fetch_quantisation_file
from tests.calibrate.factories import make_trace, provenance
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


def find_target(text: str, fetch: FetchConfig = no_hub) -> ModelGeometry:
    return resolve_target(text, reads_format=False, fetch=fetch).geometry


def test_a_repository_that_is_not_in_the_table_is_fetched_and_named_by_its_last_part(tmp_path: Path) -> None:
    fetched: list[str] = []

    def fetch(repository: str) -> Path:
        fetched.append(repository)
        return write_config(tmp_path, QWEN)

    target = find_target("somebody/My-Qwen", fetch)
    assert fetched == ["somebody/My-Qwen"]
    assert (target.name, target.source) == ("My-Qwen", "config.json of somebody/My-Qwen on the Hugging Face hub")
    assert target.layer_params == find_model("qwen2.5-7b").layer_params


def test_local_and_known_models_do_not_use_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path / "mine", QWEN)
    monkeypatch.chdir(tmp_path.parent)
    by_folder = f"{tmp_path.name}/mine"
    assert find_target(by_folder, no_hub) == find_target(f"{by_folder}/config.json", no_hub)
    assert find_target(by_folder, no_hub).source == "config.json of mine"
    assert find_target("Qwen/Qwen2.5-7B-Instruct", no_hub) == find_model("qwen2.5-7b")


def test_a_name_that_is_not_a_repository_does_not_use_the_hub() -> None:
    for name in ("llama-2-71b", "a/b/c", "what is this/model"):
        with pytest.raises(UnknownName):
            find_target(name, no_hub)


def test_a_fetched_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, QWEN | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8})
    with pytest.raises(UserInputError, match="'Mixtral-8x7B': the latency law does not cover 'MixtralForCausalLM'"):
        find_target("mistralai/Mixtral-8x7B", lambda _: config)


AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
MODELOPT = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}


def stored_text(text: str, fetch: FetchConfig = no_hub, fetch_quantisation: FetchQuantisationFile = no_hub) -> str | None:
    stored = resolve_target(text, fetch=fetch, fetch_quantisation=fetch_quantisation).stored
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


def test_the_second_file_of_a_repository_is_fetched_only_if_the_first_has_no_format(tmp_path: Path) -> None:
    awq, plain = write_config(tmp_path / "awq", QWEN | AWQ), write_config(tmp_path / "plain", QWEN)
    beside = tmp_path / "beside.json"
    beside.write_text(json.dumps(MODELOPT), encoding="utf-8")
    assert stored_text("org/mine-awq", lambda _: awq) == "AWQ int4, groups of 128, 4.16 bits; head 16 bits"
    assert stored_text("org/mine", lambda _: plain, lambda _: beside) == (
        "ModelOpt fp8, a scale per matrix, 8 bits; head 16 bits"
    )
    assert stored_text("org/mine", lambda _: plain, lambda _: None) is None


def test_a_quantisation_file_that_is_not_an_object_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, QWEN)
    (tmp_path / "hf_quant_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BadFile, match=r"hf_quant_config.json': this is a JSON list, expected an object"):
        stored_text(str(tmp_path))


def test_an_unreachable_quantisation_file_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = write_config(tmp_path, QWEN)
    requests = fake_client(monkeypatch, cached=str(config), error=lambda _: Offline())
    with caplog.at_level(logging.WARNING):
        assert stored_text("org/mine", lambda _: config, fetch_quantisation_file) is None
    assert requests == ["cache org/mine hf_quant_config.json", "download org/mine hf_quant_config.json"]
    assert "weights of 'org/mine' are assumed not to be quantised, which could not be checked" in caplog.text


def test_without_a_network_the_command_ends_with_2_and_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_client(monkeypatch, error=lambda _: Offline())
    assert main_plan(["--target", "meta-llama/Llama-2-71b-hf"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    message, near = captured.err.splitlines()
    assert message.startswith("s2d-plan: no config of 'meta-llama/Llama-2-71b-hf': it is not a known model, a folder here")
    assert near == "Known models of that family: llama-2-70b, llama-3.1-70b, llama-3.3-70b."


@pytest.mark.parametrize("by", ["file", "folder", "hub"])
def test_a_config_plans_end_to_end_with_a_trace_of_its_shapes(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(), provenance())
    config = write_config(tmp_path / "mine", REFERENCE)
    fake_client(monkeypatch, cached=str(config))
    target = {"file": str(config), "folder": str(config.parent), "hub": "org/name"}[by]
    assert main_plan(["--target", target, "--trace", str(tmp_path / "trace.npz"), "--device", "a100"]) == 0
    assert "ref-target-16, 16 layers" in capsys.readouterr().out


EAGLE_3 = {**REFERENCE, "architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": 512}
IS_A_HEAD = "is an EAGLE-3 head ('LlamaForCausalLMEagle3'), which reads its target's hidden states: it is neither a target nor"


@pytest.mark.parametrize("flags", [["--target", "HEAD"], ["--target", "vicuna-7b", "--draft", "HEAD"], ["--draft", "HEAD"]])
def test_an_eagle_head_is_named_whichever_flag_gives_it(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "head", EAGLE_3)
    for path in (config, config.parent):
        assert main_plan([str(path) if flag == "HEAD" else flag for flag in flags]) == 2
        message, place = capsys.readouterr().err.splitlines()
        assert message.startswith(f"s2d-plan: model 'head' {IS_A_HEAD}")
        assert place == f"Read from {str(config)!r}."


def test_an_embedding_model_is_recognised_by_the_file_beside_its_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_config(tmp_path / "gte", REFERENCE).parent
    assert find_target(str(folder), no_hub).name == "gte"
    (folder / "modules.json").write_text("[]", encoding="utf-8")
    assert main_plan(["design", "--target", str(folder), "--params", "1e6"]) == 2
    assert "model 'gte' is an embedding model (modules.json of sentence-transformers" in capsys.readouterr().err


def test_a_model_has_the_name_of_a_file_that_is_not_called_config(tmp_path: Path) -> None:
    path = tmp_path / "qwen3-8b.json"
    path.write_text(json.dumps(QWEN), encoding="utf-8")
    target = find_target(str(path), no_hub)
    assert (target.name, target.source) == ("qwen3-8b", "config.json of qwen3-8b")


MALFORMED = [
    b'{"architectures": 3}',
    b'{"architectures": ["LlamaForCausalLM"], "model_type": []}',
    b'{"model_type": "llama", "layer_types": 3}',
    b'{"model_type": "llama", "hidden_size": 1000000000000000000000000000000}',
    b'{"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 3}',
    b'{"model_type": "llama", "vocab_size": "' + b"9" * 20_000 + b'"}',
    b'{"model_type": "' + b"x" * 20_000 + b'"}',
    b'{"model_type": "llama", "model_type": "opt"}',
    b"[" * 5000 + b"]" * 5000,
    b'{"text_config": {"model_type": 3}}',
    b'{"model_type": "llava", "text_config": {"hidden_size": "4096"}}',
    b'{"model_type": "llama", "head_dim": 0}',
    b'{"model_type": "gpt2", "n_inner": -1}',
    b"{}",
]


@pytest.mark.parametrize("content", MALFORMED, ids=[content[:40].decode() for content in MALFORMED])
def test_a_malformed_file_ends_with_2_and_one_short_message_that_names_it(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert main_plan(["design", "--target", str(path), "--params", "1e6"]) == 2
    message = capsys.readouterr().err
    assert repr(str(path)) in message
    assert len(message) - message.count(str(path)) * len(str(path)) <= 330


def test_a_note_names_what_a_config_leaves_out_and_what_is_not_priced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    llava = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064, "num_hidden_layers": 40}}
    write_config(tmp_path / "llava", llava)
    write_config(tmp_path / "sparse", {**REFERENCE, "vocab_size": None} | {"model_type": "gpt2", "vocab_size": 50257})
    write_config(tmp_path / "whole", REFERENCE)
    write_config(tmp_path / "sees", {**llava, "text_config": REFERENCE})
    with caplog.at_level(logging.INFO):
        for name in ("llava", "sparse", "whole", "sees"):
            find_target(str(tmp_path / name), no_hub)
    assert [record.getMessage() for record in caplog.records] == [
        "only the text decoder of llava is priced; its config leaves out sizes, taken from transformers' llama: hidden_size "
        "4096, intermediate_size 11008, num_attention_heads 32",
        "only the text decoder of sees is priced",
    ]


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b", "llama\x1b[2J"])
def test_a_text_that_cannot_be_a_path_is_an_unknown_name(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["--target", text]) == 2
    message = capsys.readouterr().err.rstrip("\n")
    assert message.startswith("s2d-plan: unknown target '")
    assert len(message) <= 300
    assert message.isprintable()


BLOCK: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["lm_head"]}
QUANTISED: dict[str, Any] = REFERENCE | {"quantization_config": BLOCK}
VALUES = st.sampled_from(
    (*(None, True, 0, -1, 1.5, "", "x", "\x1b[2J" * 50, 10**9, 10**30, math.nan), *([], {}, [None], [[[]]], {"a": 1}))
)
KEYS = st.sampled_from((*REFERENCE, *BLOCK, "quantization", "quantization_config", "text_config"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=5000)
@given(st.sampled_from((REFERENCE, QUANTISED)), st.dictionaries(KEYS, VALUES, max_size=3), st.booleans())
def test_any_config_is_read_or_refused_in_one_short_message_that_names_it(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Any], is_block_changed: bool
) -> None:
    whole = dict(config)
    if is_block_changed:
        whole["quantization_config"] = {**whole.get("quantization_config", {}), **changes}
    else:
        whole |= changes
    path = write_config(tmp_path / "mine", whole)
    try:
        resolve_target(str(path), fetch=no_hub)
    except UserInputError as err:
        message = "\n".join([str(err), *getattr(err, "__notes__", [])])
        assert repr(str(path)) in message
        assert len(message) - message.count(str(path)) * len(str(path)) <= 600
        assert message.replace("\n", "").isprintable()
