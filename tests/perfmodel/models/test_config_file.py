"""A config.json on disk: unreadable files and the model's name."""

import json
from pathlib import Path

import pytest

from perfmodel.core.errors import BadFile
from perfmodel.models.config_file import folder_model_name, model_name, read_config_file

UNREADABLE: list[tuple[bytes, str]] = [
    (b"", "this is not a readable config"),
    (b"{", "this is not a readable config"),
    (b"[1]", "this is a JSON list, expected an object"),
    (b"3", "this is a JSON int, expected an object"),
    (b'{"a": 1, "hidden_size": 2, "hidden_size": 3}', "the key 'hidden_size' is repeated"),
    (b'{"text_config": {"a": 1, "a": 1}}', "the key 'a' is repeated"),
    (b"[" * 5000 + b"]" * 5000, "its brackets are nested too deep"),
    (b'{"vocab_size": ' + b"9" * 5000 + b"}", "this is not a readable config"),
    (b'{"a": "\xff"}', "this is not a readable config"),
]


@pytest.mark.parametrize(("content", "problem"), UNREADABLE, ids=[problem for _, problem in UNREADABLE])
def test_an_unreadable_file_is_refused_in_one_short_sentence(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BadFile) as caught:
        read_config_file(path)
    assert problem in str(caught.value)
    assert repr(str(path)) in str(caught.value)
    assert len(str(caught.value)) - len(str(path)) <= 300


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="there is no such file"):
        read_config_file(tmp_path / "config.json")


MODEL_NAMES: list[tuple[str, dict[str, object], str]] = [
    ("models/mine/config.json", {}, "mine"),
    ("configs/qwen3-8b.json", {}, "qwen3-8b"),
    ("models/mine/config.json", {"_name_or_path": "lmsys/vicuna-7b-v1.5"}, "vicuna-7b-v1.5"),
    ("configs/x.json", {"_name_or_path": "lmsys/vicuna-7b-v1.5"}, "vicuna-7b-v1.5"),
    ("models/mine/config.json", {"_name_or_path": "/home/ann/checkpoints/vicuna"}, "mine"),
    ("models/mine/config.json", {"_name_or_path": "./vicuna"}, "mine"),
    ("models/mine/config.json", {"_name_or_path": "vicuna"}, "mine"),
    ("models/mine/config.json", {"_name_or_path": ["a/b"]}, "mine"),
    ("hub/models--org--Their-7B/snapshots/0a1b2c/config.json", {"_name_or_path": "org/Base-7B"}, "Their-7B"),
    ("models/a\x1b[2Jb/config.json", {}, "a?[2Jb"),
    (f"models/{'x' * 200}/config.json", {}, "x" * 96),
]


def test_a_model_is_named_by_the_hub_cache_its_origin_its_file_or_its_folder(tmp_path: Path) -> None:
    assert not [
        (path, name, given) for path, config, name in MODEL_NAMES if (given := model_name(tmp_path / path, config)) != name
    ]


def test_a_nested_draft_is_named_by_its_folder(tmp_path: Path) -> None:
    """Its config may still name the model it was made from."""
    config = {"_name_or_path": "lmsys/vicuna-7b-v1.5"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert folder_model_name(tmp_path) == "vicuna-7b-v1.5"
    (tmp_path / "s2d.json").write_text("{}", encoding="utf-8")
    assert folder_model_name(tmp_path) == tmp_path.name


def test_a_model_without_a_config_is_named_by_its_folder(tmp_path: Path) -> None:
    assert folder_model_name(tmp_path / "nowhere") == "nowhere"
