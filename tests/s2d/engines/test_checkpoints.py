"""Checkpoints for engines: checked before anything is written, whole or not at all, and right in the engines themselves."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from perfmodel.core.errors import BadFile, UnknownName, UserInputError
from perfmodel.core.provenance import make_provenance
from perfmodel.engines.known_engines import ENGINES
from perfmodel.policies.sampling import GREEDY
from s2d.decoding.generate import Session, Settings
from s2d.engines.checkpoints import FLOATS, LLAMA_QUANTIZE, MLX_BITS, ONNX_PRECISIONS, OPENVINO_FORMATS, make_checkpoint
from s2d.engines.environments import ENVIRONMENT_FILE, MARKER, EngineEnvironment
from s2d.engines.gguf_tensors import GGUF_TYPES
from s2d.loading.load_model import export_exit, load_model
from s2d.loading.model_folder import FAMILY_FOLDER
from tests.s2d.engines.engine_scripts import SCRIPTS, run_script, skip_without
from tests.s2d.engines.test_gguf_file import model_folder, spec_of
from tests.s2d.engines.test_gguf_tokenizer import sentencepiece
from tests.stubs import TinySpec

TARGET = FAMILY_FOLDER / "target-16"
PROMPT = (14, 317, 572, 283, 1820, 83)
NUM_TOKENS = 32
END_TOKEN = 0
"""Of `byte_tokenizer`."""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "tiny", spec_of())


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("S2D_ENGINES", str(tmp_path / "engines"))
    return tmp_path / "engines"


def put_interpreter(folder: Path, script: str) -> None:
    """An installed engine whose interpreter is a shell script."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    record = EngineEnvironment(engine=folder.name, packages=(), programs=(), version="1")
    ENVIRONMENT_FILE.write(folder / MARKER, record, make_provenance())


def files_beside(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


@pytest.mark.parametrize(("weights", "dtype"), [("f32", torch.float32), ("bf16", torch.bfloat16), ("float16", torch.float16)])
def test_a_hugging_face_folder_has_all_weights_in_one_dtype(
    tmp_path: Path, tiny: Path, weights: str, dtype: torch.dtype
) -> None:
    out = make_checkpoint(tiny, "vllm", weights, tmp_path / "out")
    written, stored = load_file(out / "model.safetensors"), load_file(tiny / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {dtype}
    assert all(torch.equal(written[name], stored[name].to(dtype)) for name in stored)
    assert json.loads((out / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert (out / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    assert load_model(out, "fp32").geometry.num_layers == 2


def test_the_shards_of_a_large_model_stay(tmp_path: Path) -> None:
    from tests.s2d.loading.test_load_model import byte_tokenizer
    from tests.stubs import tiny_llama

    tiny_llama(spec_of()).save_pretrained(tmp_path / "model", max_shard_size="60KB")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    out = make_checkpoint(tmp_path / "model", "mlx-lm", "bf16", tmp_path / "out")
    assert len(list(out.glob("model-0*.safetensors"))) > 1
    assert load_model(out, "fp32").geometry.num_layers == 2


@pytest.mark.parametrize(
    ("engine", "weights", "message"),
    [
        ("vllmm", "bf16", "unknown engine 'vllmm'"),
        ("vllm", "q8_0", "unknown weights of vLLM 'q8_0'"),
        ("vllm", "fp8", "weights 'fp8' of vLLM are not written here, expected one of f32"),
        ("onnxruntime", "bf16", "weights 'bf16' of ONNX Runtime GenAI are not written here"),
        ("llama.cpp", "q4_k_m", "q4_k_m is written by llama-quantize, which is not installed"),
        ("openvino", "int8", "engine 'openvino' is not installed in .*: run s2d-engines install openvino"),
    ],
)
@pytest.mark.usefixtures("engines")
def test_what_cannot_be_written_is_refused_and_nothing_is_left(
    tmp_path: Path, tiny: Path, engine: str, weights: str, message: str
) -> None:
    with pytest.raises(UserInputError, match=message) as refused:
        make_checkpoint(tiny, engine, weights, tmp_path / "out")
    assert isinstance(refused.value, UnknownName) == message.startswith("unknown")
    assert files_beside(tmp_path / "out") == {"tiny"}


def test_a_model_that_no_engine_loads_is_refused(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(BadFile, match="this exists already"):
        make_checkpoint(tiny, "vllm", "f32", tiny)
    small = model_folder(tmp_path / "small", TinySpec(num_layers=1, vocab_size=100))
    with pytest.raises(BadFile, match="it has the token id 269, and the model's vocabulary has 100 ids"):
        make_checkpoint(small, "vllm", "f32", tmp_path / "out")
    other = json.loads((tiny / "config.json").read_text()) | {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (tiny / "config.json").write_text(json.dumps(other))
    with pytest.raises(BadFile, match="'gpt2'"):
        make_checkpoint(tiny, "vllm", "f32", tmp_path / "out")
    assert files_beside(tmp_path / "out") == {"tiny", "small"}


def test_a_draft_with_a_reduced_head_runs_in_our_runtime_alone(tmp_path: Path, tiny: Path) -> None:
    from safetensors.torch import save_file

    tensors = load_file(tiny / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"][:50].clone()}, tiny / "model.safetensors")
    with pytest.raises(BadFile, match="its head has 50 rows, expected 270, one for every token"):
        make_checkpoint(tiny, "vllm", "f32", tmp_path / "out")


def test_a_failing_converter_shows_its_last_lines_and_leaves_nothing(tmp_path: Path, tiny: Path, engines: Path) -> None:
    put_interpreter(engines / "openvino", 'echo "no memory for $2"; exit 3')
    with pytest.raises(UserInputError, match="the converter ended with code 3, expected 0") as refused:
        make_checkpoint(tiny, "openvino", "f32", tmp_path / "out")
    assert refused.value.__notes__ == ["no memory for optimum.commands.optimum_cli"]
    assert files_beside(tmp_path / "out") == {"tiny", "engines"}


def test_a_converter_that_writes_nothing_is_named(tmp_path: Path, tiny: Path, engines: Path) -> None:
    put_interpreter(engines / "openvino", "true")
    with pytest.raises(UserInputError, match="the converter of OpenVINO GenAI ended without an error and wrote nothing"):
        make_checkpoint(tiny, "openvino", "f32", tmp_path / "out")
    assert files_beside(tmp_path / "out") == {"tiny", "engines"}


def test_a_converters_files_are_the_checkpoint(tmp_path: Path, tiny: Path, engines: Path) -> None:
    put_interpreter(engines / "onnxruntime", 'for out; do :; done; mkdir -p "$out"; echo "$HF_HUB_OFFLINE $*" > "$out/words"')
    out = make_checkpoint(tiny, "onnxruntime", "int4", tmp_path / "out")
    assert [file.name for file in out.iterdir()] == ["words"]
    words = (out / "words").read_text().split()
    assert words[:7] == ["1", "-m", "onnxruntime_genai.models.builder", "-i", str(tiny), "-p", "int4"]


def test_every_storage_of_an_engine_is_written_here_or_known_to_need_its_own_tools() -> None:
    """A word that the table of engines gains is either converted, or listed here as the work of the engine's tools."""
    written = {
        "gguf": {*GGUF_TYPES, *LLAMA_QUANTIZE},
        "huggingface": {*FLOATS},
        "mlx": {*FLOATS, *MLX_BITS},
        "onnx": {*ONNX_PRECISIONS},
        "openvino": {*OPENVINO_FORMATS},
    }
    left = {(row.name, word) for row in ENGINES.values() for word in row.weights if word not in written[row.checkpoint]}
    assert left == {
        ("vllm", "fp8"),
        ("sglang", "fp8"),
        ("tensorrt-llm", "fp8"),
        ("tensorrt-llm", "nvfp4"),
        ("onnxruntime", "bf16"),
    }


def our_text(folder: Path, prompt: tuple[int, ...] = PROMPT) -> list[int]:
    """Plain greedy text of our runtime in fp32."""
    settings = Settings(policy=None, sampling=GREEDY, eos_token_id=None, max_new_tokens=NUM_TOKENS)
    return list(Session(load_model(folder, "fp32"), None, len(prompt) + NUM_TOKENS).generate(prompt, settings).tokens)


@pytest.mark.e2e
@pytest.mark.parametrize("engine", SCRIPTS)
def test_an_engine_writes_our_text_from_the_checkpoint_of_a_target_and_of_an_exit(tmp_path: Path, engine: str) -> None:
    skip_without(engine)
    export_exit(FAMILY_FOLDER / "draft", 4, tmp_path / "exit-4")
    for source in (TARGET, tmp_path / "exit-4"):
        checkpoint = make_checkpoint(source, engine, "f32", tmp_path / f"{source.name}-converted")
        assert run_script(engine, checkpoint, PROMPT, NUM_TOKENS) == our_text(source)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("engine", "weights"), [("onnxruntime", "int8"), ("openvino", "int4"), ("mlx-lm", "int4"), ("llama.cpp", "q4_0")]
)
def test_a_quantised_checkpoint_loads_and_writes_text(tmp_path: Path, engine: str, weights: str) -> None:
    skip_without(engine)
    checkpoint = make_checkpoint(TARGET, engine, weights, tmp_path / "checkpoint")
    assert len(set(run_script(engine, checkpoint, PROMPT, NUM_TOKENS))) > 4


@pytest.mark.e2e
@pytest.mark.parametrize("rope", ["default", "linear", "yarn", "llama3"])
@pytest.mark.parametrize("family", ["llama", "llama with biases", "mistral", "qwen2", "qwen3"])
def test_llama_cpp_writes_our_text_in_every_family(tmp_path: Path, family: str, rope: str) -> None:
    skip_without("llama.cpp")
    name, _, biases = family.partition(" with ")
    settings = (("attention_bias", True), ("mlp_bias", True)) if biases else ()
    source = model_folder(tmp_path / "model", spec_of(name, settings=settings, rope=rope, update_scale=0.5))
    if rope == "llama3" and name.startswith("qwen"):
        with pytest.raises(BadFile, match=r"llama\.cpp reads 'llama3' positions of Llama models only"):
            make_checkpoint(source, "llama.cpp", "f32", tmp_path / "model.gguf")
        return
    checkpoint = make_checkpoint(source, "llama.cpp", "f32", tmp_path / "model.gguf")
    prompt = tuple(range(10, 60))
    ours = [*our_text(source, prompt), END_TOKEN]
    count = ours.index(END_TOKEN)  # its option ignore_eos makes llama.cpp choose another token instead of the end token
    assert run_script("llama.cpp", checkpoint, prompt, NUM_TOKENS)[:count] == ours[:count]
    assert count > 2


@pytest.mark.e2e
def test_llama_cpp_tokenizes_as_tokenizer_json_does(tmp_path: Path) -> None:
    skip_without("llama.cpp")
    from s2d.loading.load_model import load_tokenizer

    text = "The history of  the city\n\n\tbegan in 12345, don't you know? ab abc  bab"
    for name in ("gpt2", "llama"):
        source = tmp_path / name
        if name == "gpt2":
            shutil.copytree(TARGET, source)
        else:
            tokenizer = sentencepiece()
            model_folder(source, TinySpec(num_layers=1, vocab_size=tokenizer.get_vocab_size()))
            tokenizer.save(str(source / "tokenizer.json"))
            (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
        checkpoint = make_checkpoint(source, "llama.cpp", "f32", tmp_path / f"{name}.gguf")
        assert run_script("llama.cpp", checkpoint, text) == load_tokenizer(source)(text)["input_ids"], name
