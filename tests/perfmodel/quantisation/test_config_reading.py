"""A config.json is read once for the model's name, shapes and weight format."""

import json
from pathlib import Path
from typing import Any

import pytest

from perfmodel.core.errors import UserInputError
from perfmodel.quantisation import config_reading
from perfmodel.quantisation.config_reading import read_model_config

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
MODELOPT = {"quantization": {"quant_algo": "W4A16_AWQ", "group_size": 128}}


def write_model(folder: Path, config: dict[str, Any], separate_file: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    if separate_file is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(separate_file), encoding="utf-8")
    return path


def test_one_reading_gives_name_shapes_and_weight_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files_read: list[str] = []
    read = config_reading.read_config_file
    monkeypatch.setattr(config_reading, "read_config_file", lambda path: files_read.append(path.name) or read(path))
    reading = read_model_config(write_model(tmp_path / "mine", LLAMA | {"quantization_config": AWQ}))
    model = reading.geometry()
    stored = reading.stored_format(model)
    assert (model.name, model.num_layers) == ("mine", 2)
    assert model.source.startswith("config.json of mine, with transformers' defaults of llama")
    assert stored is not None
    assert stored.label == "AWQ int4, groups of 128"
    assert files_read == ["config.json"]


def test_a_model_of_the_hub_has_the_name_of_its_repository(tmp_path: Path) -> None:
    reading = read_model_config(write_model(tmp_path / "snapshot", LLAMA), repository="org/My-Llama")
    assert reading.name == "My-Llama"
    assert reading.geometry().source.startswith("config.json of org/My-Llama on the Hugging Face hub")


def test_unquantised_weights_have_no_stored_format(tmp_path: Path) -> None:
    reading = read_model_config(write_model(tmp_path / "mine", LLAMA))
    assert reading.quantisation() is None
    assert reading.stored_format(reading.geometry(), lambda: None) is None


def test_the_separate_file_is_downloaded_only_if_the_config_has_no_block(tmp_path: Path) -> None:
    downloads = []
    separate_file = write_model(tmp_path / "other", LLAMA, MODELOPT).with_name("hf_quant_config.json")

    def fetch() -> Path:
        downloads.append(separate_file)
        return separate_file

    without_block, with_block = (
        read_model_config(write_model(tmp_path / name, config))
        for name, config in (("plain", LLAMA), ("awq", LLAMA | {"quantization_config": AWQ}))
    )
    assert with_block.stored_format(with_block.geometry(), fetch) is not None
    assert not downloads
    stored = without_block.stored_format(without_block.geometry(), fetch)
    assert stored is not None
    assert stored.label == "ModelOpt int4, groups of 128"
    assert downloads == [separate_file]


def test_errors_about_the_content_name_the_file(tmp_path: Path) -> None:
    reading = read_model_config(write_model(tmp_path / "mine", LLAMA | {"quantization_config": {"quant_method": "new"}}))
    with pytest.raises(UserInputError, match="by 'new', a method with unknown bits per weight") as caught:
        reading.stored_format(reading.geometry())
    assert caught.value.__notes__ == [f"Read from {str(reading.path)!r}."]


def test_two_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    fp8 = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    reading = read_model_config(write_model(tmp_path / "mine", LLAMA | {"quantization_config": AWQ}, fp8))
    with pytest.raises(UserInputError, match="Remove the wrong file, or give --dtype to override both"):
        reading.stored_format(reading.geometry())
