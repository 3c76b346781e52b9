"""Writes a model in the files that an engine loads.

Each format is written in the lightest way that works. GGUF: by the `gguf` package, here. Hugging Face folders: here. ONNX,
OpenVINO and quantised MLX models: by the engine's own converter, in the engine's environment.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from perfmodel.core.disk import PathLike, atomic_file, atomic_folder, check_writable
from perfmodel.core.errors import BadFile, UserInputError
from perfmodel.engines.engine import CheckpointFormat, Engine
from perfmodel.engines.find_engine import engine_weights, find_engine
from perfmodel.models.geometry import ModelGeometry
from s2d.engines.environments import engine_folder, engine_program, engine_python
from s2d.engines.gguf_file import write_gguf
from s2d.engines.gguf_tensors import GGUF_TYPES
from s2d.engines.huggingface_folder import write_huggingface
from s2d.engines.run_converter import run_converter, run_tool
from s2d.loading.checkpoint import open_weights, tensor_names
from s2d.loading.load_model import load_tokenizer
from s2d.loading.read_config import read_geometry

FLOATS = {"f32": "f32", "fp32": "f32", "bf16": "bf16", "f16": "f16", "fp16": "f16"}
"""Our word for every engine's word for floats."""
ONNX_PRECISIONS = {"f32": "fp32", "f16": "fp16", "int8": "int8", "int4": "int4"}
"""Of the engine's builder, for its CPU provider. Models in bf16 load on a GPU only."""
OPENVINO_FORMATS = {"f32": "fp32", "bf16": "fp16", "f16": "fp16", "int8": "int8", "int4": "int4"}
"""Of optimum-intel. bf16 is a precision of OpenVINO's arithmetic, not of its files: bf16 runs on weights stored as fp16."""
MLX_BITS = {"int8": "8", "int4": "4"}
LLAMA_QUANTIZE = ("q6_k", "q5_k_m", "q4_k_m")
"""Types that only llama.cpp's own program writes. Matrices whose rows are no multiple of 256 get other types from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One conversion."""

    engine: Engine
    source: Path
    weights: str
    """In the engine's words."""
    out: Path


def make_checkpoint(source: PathLike, engine: str, weights: str, out: PathLike) -> Path:
    """Write a model in the files that an engine loads, completely or not at all.

    Args:
        source: a model folder: a target, or an exit that `export_exit` wrote.
        engine: name or alias of an engine.
        weights: how the weights are stored, in the engine's words: `f32`, `bf16`, `q8_0`, `int4` …
        out: a new folder; for llama.cpp a `.gguf` file.

    Returns:
        What the engine loads: the file or the folder.

    Raises:
        UnknownName: there is no such engine, or it does not load such weights.
        BadFile: the model cannot be converted, or `out` exists or cannot be written.
        UserInputError: the engine that converts is not installed, or its converter failed.
        MissingExtra: a package that converts is not installed.
        OutOfSpace: the disk is full.
    """
    row = find_engine(engine)
    job = _Job(engine=row, source=Path(source), weights=engine_weights(row, weights), out=Path(out))
    if job.out.exists():
        raise BadFile(out, "this exists already, expected a new name", "Give another name, or move it away")
    check_model(job.source, row)
    _CONVERTERS[row.checkpoint](job)
    return job.out


def check_model(source: Path, engine: Engine) -> ModelGeometry:
    """Refuse a model that no engine, or not this one, would load. Returns its shapes.

    Raises:
        BadFile: an unsupported architecture, no tokenizer, ids beyond the vocabulary, or a head for some tokens only.
    """
    geometry = read_geometry(source)
    ids = load_tokenizer(source).get_vocab().values()
    if max(ids, default=0) >= geometry.vocab_size:
        problem = f"it has the token id {max(ids)}, and the model's vocabulary has {geometry.vocab_size} ids"
        raise BadFile(source / "tokenizer.json", problem, "Fetch the model again")
    head = "lm_head.weight"
    if engine.name != "s2d" and head in tensor_names(source):
        with open_weights(source) as read:
            rows = len(read(head))
        if rows != geometry.vocab_size:
            problem = f"its head has {rows} rows, expected {geometry.vocab_size}, one for every token"
            raise BadFile(source, problem, f"{engine.title} has no reduced heads: give the draft before s2d-train trim")
    return geometry


def _make_gguf(job: _Job) -> None:
    if job.weights in LLAMA_QUANTIZE:
        _make_with_llama_quantize(job)
    else:
        write_gguf(job.source, job.weights, job.out)


def _make_with_llama_quantize(job: _Job) -> None:
    """Write a bf16 file, and let llama.cpp's own program quantise it."""
    program = engine_program(job.engine.name, "llama-quantize")
    if program is None:
        raise UserInputError(
            f"{job.weights} is written by llama-quantize, which is not installed: run s2d-engines install llama.cpp "
            f"--from-source, or use one of {', '.join(GGUF_TYPES)}."
        )
    check_writable(job.out)
    with atomic_file(job.out) as partial:
        unquantised = partial.with_suffix(".bf16")
        try:
            write_gguf(job.source, "bf16", unquantised)
            run_tool([str(program), str(unquantised), str(partial), job.weights.upper(), "1"])
        finally:
            unquantised.unlink(missing_ok=True)


def _make_huggingface(job: _Job) -> None:
    write_huggingface(job.source, _known(job, FLOATS), job.out)


def _make_mlx(job: _Job) -> None:
    if job.weights in FLOATS:
        _make_huggingface(job)
        return
    bits = _known(job, MLX_BITS)
    words = ("-m", "mlx_lm", "convert", "--hf-path", _source(job), "-q", "--q-bits", bits)
    _convert(job, lambda made: (*words, "--mlx-path", str(made)))


def _make_onnx(job: _Job) -> None:
    precision = _known(job, ONNX_PRECISIONS)
    words = ("-m", "onnxruntime_genai.models.builder", "-i", _source(job), "-p", precision, "-e", "cpu")
    _convert(job, lambda made: (*words, "-c", str(made.with_name("cache")), "-o", str(made)))


def _make_openvino(job: _Job) -> None:
    weight_format = _known(job, OPENVINO_FORMATS)
    words = ("-m", "optimum.commands.optimum_cli", "export", "openvino", "-m", _source(job))
    options = ["--task", "text-generation-with-past", "--weight-format", weight_format]
    if weight_format == "int4":
        options += ["--group-size", str(_group_size(read_geometry(job.source)))]
    _convert(job, lambda made: (*words, *options, str(made)))


def _group_size(geometry: ModelGeometry) -> int:
    """Weights that share one int4 scale: the converter's own 128, or the largest size below it that divides every row."""
    widths = (geometry.hidden_size, geometry.intermediate_size, geometry.num_heads * geometry.head_dim)
    return next((size for size in (128, 64, 32) if not any(width % size for width in widths)), -1)


def _convert(job: _Job, arguments: Callable[[Path], tuple[str, ...]]) -> None:
    """Run the engine's converter.

    Args:
        job: the conversion.
        arguments: of the engine's interpreter, by the folder that the converter is to make.
    """
    engine_python(job.engine.name)  # refused before any folder is made
    with atomic_folder(job.out) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        made = scratch / "made"
        run_converter(job.engine.name, arguments(made))
        if not made.is_dir() or not any(made.iterdir()):
            raise UserInputError(
                f"the converter of {job.engine.title} ended without an error and wrote nothing, expected a model. Install the "
                f"engine anew: remove {str(engine_folder(job.engine.name))!r}, then s2d-engines install {job.engine.name}."
            )
        for path in made.iterdir():
            path.rename(folder / path.name)
        shutil.rmtree(scratch)


def _source(job: _Job) -> str:
    return str(job.source.absolute())


def _known(job: _Job, words: Mapping[str, str]) -> str:
    """A converter's word for the weights.

    Raises:
        UserInputError: it does not write such weights.
    """
    if job.weights not in words:
        raise UserInputError(
            f"weights {job.weights!r} of {job.engine.title} are not written here, expected one of {', '.join(words)}. Quantise "
            "the model with the engine's own tools."
        )
    return words[job.weights]


_CONVERTERS: dict[CheckpointFormat, Callable[[_Job], None]] = {
    "gguf": _make_gguf,
    "huggingface": _make_huggingface,
    "mlx": _make_mlx,
    "onnx": _make_onnx,
    "openvino": _make_openvino,
}
