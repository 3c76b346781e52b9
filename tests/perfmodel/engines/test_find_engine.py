"""Engines and weights are found by the words that people use, and a wrong word names the nearest."""

import pytest

from perfmodel.core.errors import UnknownName
from perfmodel.engines.find_engine import engine_weights, find_engine


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("ort", "onnxruntime"),
        ("onnxruntime-genai", "onnxruntime"),
        ("OpenVINO_GenAI", "openvino"),
        ("hf", "transformers"),
        ("llama-cpp", "llama.cpp"),
        ("llama cpp", "llama.cpp"),
        ("trt-llm", "tensorrt-llm"),
        ("MLX", "mlx-lm"),
        ("vLLM", "vllm"),
    ],
)
def test_an_engine_is_found_by_any_of_its_names(word: str, name: str) -> None:
    assert find_engine(word).name == name


def test_an_unknown_engine_is_answered_with_the_nearest_or_with_the_list() -> None:
    with pytest.raises(
        UnknownName, match=r"^unknown engine 'openvno': did you mean 'openvino'\? s2d-engines list lists all 9\.$"
    ):
        find_engine("openvno")
    with pytest.raises(UnknownName, match=r"^unknown engine 'frog': s2d-engines list lists all 9\.$"):
        find_engine("frog")


def test_weights_are_found_by_any_of_their_common_words() -> None:
    words = [("vllm", "float16"), ("s2d", "f32"), ("llama.cpp", "FP32"), ("llama.cpp", "Q8_0"), ("onnxruntime", "bfloat16")]
    assert [engine_weights(find_engine(name), word) for name, word in words] == ["f16", "fp32", "f32", "q8_0", "bf16"]


def test_weights_that_an_engine_does_not_load_are_an_error_that_names_its_own() -> None:
    with pytest.raises(UnknownName, match=r"^unknown weights of vLLM 'q8_0': expected 'f32', 'bf16', 'f16' or 'fp8'\.$"):
        engine_weights(find_engine("vllm"), "q8_0")
