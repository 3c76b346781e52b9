"""The names in "did you mean": of the same family and the nearest size, never by spelling alone."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.core.errors import UnknownName
from perfmodel.core.near_names import edit_distance, near_models, near_words
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.hardware import Hardware
from perfmodel.hardware.known_hardware import KNOWN_HARDWARE
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.models.known_architectures import ARCHITECTURES
from perfmodel.models.known_models import KNOWN_MODELS
from perfmodel.models.model_config import geometry_from_config

Find = Callable[[str], object]


def find_architecture(name: str) -> object:
    return geometry_from_config({"architectures": [name]}, "mine")


def find_dtype(name: str) -> object:
    raise UnknownName("dtype", name, ("fp32", "bf16", "fp16"), listed_in="--help")


SUGGESTIONS: list[tuple[Find, str, tuple[str, ...]]] = [
    (find_model, "llama-7b0", ("llama-2-7b", "llama-1-7b", "llama-3.1-8b")),
    (find_model, "meta-llama/Llama-2-71b-hf", ("llama-2-70b", "llama-3.1-70b", "llama-3.3-70b")),
    (find_model, "lama-2-7b", ("llama-2-7b", "llama-1-7b", "llama-3.1-8b")),
    (find_model, "qwne3-8b", ("qwen3-8b", "qwen2.5-7b", "qwen3-14b")),
    (find_model, "opt7b", ("opt-6.7b", "opt-13b", "opt-2.7b")),
    (find_model, "DeepSeek-R1-Distill-Qwen-7B", ("qwen2.5-7b", "qwen3-8b", "qwen3-4b")),
    (find_model, "qwen3-32", ("qwen3-32b", "qwen2.5-32b", "qwen3-14b")),
    (find_model, "llama-70", ("llama-2-70b", "llama-3.1-70b", "llama-3.3-70b")),
    (find_model, "llama3", ("llama-3-8b", "llama-3-70b", "llama-2-7b")),
    (find_model, "phi4", ("phi-4", "phi-4-mini", "phi-3-mini")),
    (find_model, "DeepSeek-R1-Distill-Llama-70B", ("llama-2-70b", "llama-3.1-70b", "llama-3.3-70b")),
    (find_model, "llama-4-scout", ()),
    (find_model, "mixtral", ()),
    (find_model, "mixtral-8x7b", ()),
    (find_model, "llava-1.5-7b", ()),
    (find_model, "OLMoE-1B-7B-0924", ()),
    (find_model, "QwQ-32B", ()),
    (find_model, "gpt-7b", ()),
    (find_model, "falcon-7b", ()),
    (find_model, "7b", ()),
    (find_draft, "ref-drafts", ("ref-draft",)),
    (find_draft, "opt-125m", ()),
    (find_architecture, "Qwen9ForCausalLM", ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen2VLForConditionalGeneration")),
    (find_architecture, "Phi5ForCausalLM", ("Phi3ForCausalLM", "PhiForCausalLM")),
    (find_architecture, "GLM5ForCausalLM", ("GlmForCausalLM", "Glm4ForCausalLM")),
    (find_architecture, "FalconForCausalLM", ()),
    (find_architecture, "BloomForCausalLM", ()),
    (find_architecture, "XverseForCausalLM", ()),
    (find_architecture, "PersimmonForCausalLM", ()),
    (find_architecture, "GPTJForCausalLM", ()),
    (find_architecture, "OlmForCausalLM", ()),
    (find_hardware, "h100x", ("h100-sxm", "h100-pcie", "h100-nvl")),
    (find_hardware, "H-100", ("h100-sxm", "h100-pcie", "h100-nvl")),
    (find_hardware, "nvidia rtx 4090", ("rtx-4090",)),
    (find_hardware, "nvidia rtx 5090", ("rtx-5090",)),
    (find_hardware, "mi300", ("mi300x",)),
    (find_hardware, "mi250x", ()),
    (find_hardware, "h101", ()),
    (find_hardware, "h800", ()),
    (find_hardware, "b100", ()),
    (find_hardware, "rtx-3060", ()),
    (find_hardware, "4070 ti", ()),
    (find_hardware, "gb200", ()),
    (find_hardware, "m4 pro", ()),
    (find_hardware, "h1000", ("h100-sxm", "h100-pcie", "h100-nvl")),
    (find_hardware, "geforce rtx 4090", ("rtx-4090",)),
    (find_hardware, "rtx-4900", ("rtx-4090",)),
    (find_hardware, "h10", ()),
    (find_hardware, "gtx 4090", ()),
    (find_hardware, "tpu", ()),
    (find_dtype, "fp8", ()),
    (find_dtype, "bf-16", ("bf16",)),
    (find_dtype, "int8", ()),
]


def suggestions(find: Find, name: str) -> tuple[str, ...]:
    with pytest.raises(UnknownName) as caught:
        find(name)
    hint = re.search(r"did you mean (.*?)\?", str(caught.value))
    return tuple(re.findall(r"'([^']+)'", hint[1]) if hint else ())


def test_only_names_that_are_close_in_meaning_are_suggested() -> None:
    actual = {name: suggestions(find, name) for find, name, _ in SUGGESTIONS}
    assert actual == {name: expected for _, name, expected in SUGGESTIONS}


@pytest.mark.parametrize(
    ("find", "name", "understood"),
    [
        (find_model, "Llama 3.1 8B Instruct", "llama-3.1-8b"),
        (find_model, "meta-llama/Meta-Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        (find_model, "qwen2.5_7b", "qwen2.5-7b"),
        (find_hardware, "RTX 4090", "RTX-4090"),
        (find_hardware, "a100_80gb", "A100-80GB-SXM"),
        (find_hardware, "NVIDIA H100 80GB HBM3", "H100-SXM"),
    ],
)
def test_blanks_underscores_and_capitals_do_not_matter(
    find: Callable[[str], ModelGeometry | Hardware], name: str, understood: str
) -> None:
    assert find(name).name == understood


def test_no_long_list_is_printed() -> None:
    for find in (find_model, find_architecture, find_hardware):
        for name in ("nothing-like-it", "q" * 5000, "\x1b[2J"):
            with pytest.raises(UnknownName) as caught:
                find(name)
            assert len(str(caught.value)) <= 300
            assert re.search(r"docs/reference/(models|hardware)\.md lists all \d+\.", str(caught.value))
            assert str(caught.value).isprintable()


def test_the_nearest_name_to_a_known_name_is_itself_and_the_others_are_of_its_family() -> None:
    models = [model.name for model in KNOWN_MODELS]
    for names in (models, [architecture.class_name for architecture in ARCHITECTURES]):
        for name in names:
            near = near_models(name, names)
            assert near[0] == name or near_models(near[0], names)[0] == near[0]
            assert len({re.split(r"\d|-|For|LMHead|VL|Den|Model", other)[0].casefold() for other in near}) == 1
    devices = [hardware.name.casefold() for hardware in KNOWN_HARDWARE]
    assert all(name in near_words(name, devices) for name in devices)


@given(st.text(alphabet="abcd", max_size=6), st.text(alphabet="abcd", max_size=6))
def test_edit_distance_is_one_per_change_and_symmetric(left: str, right: str) -> None:
    distance = edit_distance(left, right)
    assert distance == edit_distance(right, left)
    assert abs(len(left) - len(right)) <= distance <= max(len(left), len(right))
    assert (distance == 0) == (left == right)
    assert edit_distance(left, left + "x") == 1


def test_swapped_letters_are_one_change() -> None:
    assert edit_distance("qwne", "qwen") == 1
    assert edit_distance("kitten", "sitting") == 3
