"""Public kernel tables -> LatencyFit: the law's coefficients of a GPU from times of one layer's kernels and of all-reduces.

The tables are trimmed from `microsoft/vidur`, data/profiling (MIT), and stay where they are: only what is fitted to them
ships, as `perfmodel/evidence/*.latency-fit.json`. They time one decoder layer of Llama-2 in fp16, attention over the cache
apart, so the terms of the cache, the host and the head are not in the fit.

Standard errors are jackknife ones, from leaving each model x tensor-parallel degree out: kernels of one shape err alike at
all rows, and the usual formula, which takes them for independent, would have them up to twice too small.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibrate.fit.fit_law import (
    LAW_TERMS,
    Array,
    FittedLaw,
    Observation,
    errors_without,
    fit_law,
    law_of_terms,
    laws_without_each,
    pooled,
)
from perfmodel.core.disk import read_bytes
from perfmodel.core.errors import BadFile, UnknownName
from perfmodel.core.stats import INTERVAL_FRAC
from perfmodel.core.units import Seconds, format_frac
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.hardware import Hardware
from perfmodel.latency.lower_bound import work_lower_bound
from perfmodel.models.dtypes import Dtype
from perfmodel.models.find_model import find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.flops_bytes import PassSetting, PassWork, matrix_flops
from perfmodel.passes.latency_law import FitDomain, LatencyFit, Law
from perfmodel.quantisation.weight_format import plain_format

LAYER_TABLE, ALL_REDUCE_TABLE = "gpu_layer_times.csv", "gpu_all_reduce.csv"

TABLE_GPUS = ("a100", "h100")
"""As the tables call them: A100 80 GB and H100, both of a node whose GPUs a switch joins."""
TABLE_MODELS = {"Llama-2-7b-hf": "llama-2-7b", "Llama-2-70b-hf": "llama-2-70b"}
TABLE_DTYPE: Dtype = "fp16"
LAYER_OPERATORS = (
    "input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "add",
    "post_attention_layernorm", "mlp_up_proj", "mlp_act", "mlp_down_proj", "add",
)  # fmt: skip
"""In the order they run; attention over the cache lies between the second and the third projection and was timed apart."""

FITTED_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Powers of two and what lies half-way, so that every scale of rows counts alike: the table's own steps of 8 would give
passes of more than 64 rows three quarters of the weight. Kernels compute tiles of 64 or 128 rows, so above 64 some are full
and some are half empty, as in use.
"""
LAYER_TERMS = ("layer_s", "row_layer_s", "weight_byte_s", "flop_s")
"""What the layer table shows. A step between one row and several does not stand out from its own error there."""
ALL_REDUCE_TERMS = ("all_reduce_s", "link_byte_s")
MAX_GPUS = 8
"""One node. The table goes on to two."""
MIN_GROUPS = 3
"""Models x degrees, or numbers of GPUs: one is left out, the others are fitted."""

_FIX = "Give the folder that holds the public tables, untouched"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One line of a table, with its place for messages."""

    path: Path
    number: int
    cells: Mapping[str, str | None]

    def text(self, column: str) -> str:
        return self.cells[column] or ""

    def count(self, column: str) -> int:
        """A whole number above 0."""
        text = self.text(column)
        if not text.isdecimal() or not int(text):
            raise self.error(column, "a whole number above 0")
        return int(text)

    def seconds(self, column: str) -> Seconds:
        try:
            value = float(self.text(column))
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise self.error(column, "seconds above 0")
        return value

    def error(self, column: str, expected: str) -> BadFile:
        return BadFile(self.path, f"line {self.number}: {column} is {self.text(column)!r}, expected {expected}", _FIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    """A law with what leaving each group out tells of it."""

    fitted: FittedLaw
    standard_error: Law
    errors: Array
    """Sizes of the relative errors on what was left out."""


def fit_tables(folder: Path, gpu: str) -> tuple[LatencyFit, dict[str, str]]:
    """Fit the law to the tables of one GPU; and what was read: the hash of each file, by name.

    The residual and the held-out errors are those of layers. All-reduces are fitted apart, and what they are off by stands in
    the source.

    Raises:
        UnknownName: the tables have no such GPU.
        BadFile: a table is missing, lacks a column, holds something else than a number, or too little of the GPU.
        BelowLowerBound: a layer is faster than the GPU can be.
    """
    hardware, paths = table_hardware(gpu), (folder / LAYER_TABLE, folder / ALL_REDUCE_TABLE)
    layers = [one for one in layer_observations(paths[0], gpu) if one.work.rows in FITTED_ROWS]
    reduces = list(all_reduce_observations(paths[1], gpu))
    of_layers, of_reduces = _fit(layers, LAYER_TERMS, paths[0]), _fit(reduces, ALL_REDUCE_TERMS, paths[1])
    fit = LatencyFit(
        device=DeviceKey(device=hardware.name, num_devices=1, num_threads=None, dtype=TABLE_DTYPE, engine="graph"),
        models=tuple(sorted({one.group.partition(" / ")[0] for one in layers})),
        source=_source_text(gpu, of_reduces, len(reduces)),
        pads_rows=False,
        law=_joined(of_layers.fitted.law, of_reduces.fitted.law),
        standard_error=_joined(of_layers.standard_error, of_reduces.standard_error),
        domain=_domain([one.work for one in layers]),
        num_samples=len(layers),
        residual_frac=of_layers.fitted.residual_frac,
        held_out_error_frac=float(np.mean(of_layers.errors)),
        held_out_90_frac=float(np.quantile(of_layers.errors, INTERVAL_FRAC)),
    )
    return fit, {path.name: hashlib.sha256(read_bytes(path)).hexdigest() for path in paths}


def table_hardware(gpu: str) -> Hardware:
    """The device of a GPU of the tables.

    Raises:
        UnknownName: it has no such GPU.
    """
    if gpu not in TABLE_GPUS:
        raise UnknownName("GPU of the public tables", gpu, TABLE_GPUS, listed_in="s2d-plan fit --help")
    return find_hardware(gpu)


def layer_observations(path: Path, gpu: str) -> Iterator[Observation]:
    """Kernel seconds of one decoder layer at each number of rows, attention over the cache apart."""
    hardware = table_hardware(gpu)
    columns = ("gpu", "model", "tensor_parallel", "rows", *(f"{operator}_s" for operator in set(LAYER_OPERATORS)))
    for line in _lines(path, columns):
        if line.text("gpu") != gpu:
            continue
        if line.text("model") not in TABLE_MODELS:
            raise line.error("model", " or ".join(TABLE_MODELS))
        model, degree = find_model(TABLE_MODELS[line.text("model")]), line.count("tensor_parallel")
        work = _kernel_work(model, rows=line.count("rows"), num_devices=degree)
        seconds = sum(line.seconds(f"{operator}_s") for operator in LAYER_OPERATORS)
        subject = f"line {line.number} of {path.name}, a layer of {model.name}"
        work_lower_bound(work, 0, hardware, plain_format(TABLE_DTYPE)).check(seconds, subject, hardware.name, fix=_FIX)
        yield Observation(
            group=f"{model.name} / {degree}",
            work=work,
            cached_tokens=0.0,
            max_cached_tokens=model.max_context_tokens,
            seconds=seconds,
        )


def all_reduce_observations(path: Path, gpu: str) -> Iterator[Observation]:
    """Seconds of one all-reduce of each size on 2, 4 and 8 GPUs that a switch joins."""
    for line in _lines(path, ("node", "num_gpus", "size", "all_reduce_s")):
        if line.text("node") == f"{gpu}_dgx" and (num_gpus := line.count("num_gpus")) <= MAX_GPUS:
            sent_bytes = 2 * (num_gpus - 1) / num_gpus * line.count("size")
            yield Observation(
                group=f"{num_gpus} GPUs",
                work=PassWork(num_all_reduces=1, link_bytes=sent_bytes),
                cached_tokens=0.0,
                max_cached_tokens=0,
                seconds=line.seconds("all_reduce_s"),
            )


def _kernel_work(model: ModelGeometry, *, rows: int, num_devices: int) -> PassWork:
    """A layer's work on one of several devices, without all-reduces and attention, which are timed apart."""
    setting = PassSetting(model=model, weights=plain_format(TABLE_DTYPE), num_devices=num_devices)
    work = setting.layers_work(1, rows=rows)
    flops = matrix_flops(model.layer_params, rows) / num_devices
    return replace(work, num_passes=0, layer_flops=flops, num_all_reduces=0, link_bytes=0.0)


def _fit(observations: Sequence[Observation], terms: Collection[str], path: Path) -> _Fitted:
    groups = {one.group for one in observations}
    if len(groups) < MIN_GROUPS:
        found = ", ".join(sorted(groups)) or "nothing"
        raise BadFile(path, f"holds {found} of this GPU, expected {MIN_GROUPS} or more, to leave one out", _FIX)
    laws = laws_without_each(observations, launch_bound=False, among=terms)
    errors = pooled(errors_without(laws, observations))
    assert errors is not None
    fitted = fit_law(observations, launch_bound=False, among=terms)
    return _Fitted(fitted=fitted, standard_error=_jackknife(list(laws.values())), errors=errors)


def _jackknife(laws: Sequence[Law]) -> Law:
    """Standard errors: sqrt((n - 1) / n times the sum of squared deviations) of n fits that each leave one group out."""
    share = (len(laws) - 1) / len(laws)
    values = {term: np.array([getattr(law, term) for law in laws]) for term in LAW_TERMS}
    return law_of_terms({term: float(np.sqrt(share * np.sum((found - found.mean()) ** 2))) for term, found in values.items()})


def _joined(of_layers: Law, of_reduces: Law) -> Law:
    """One law of two that share no term."""
    return replace(of_layers, **{term: getattr(of_reduces, term) for term in ALL_REDUCE_TERMS})


def _domain(works: Sequence[PassWork]) -> FitDomain:
    layer_bytes = [work.weight_bytes for work in works]
    return FitDomain(
        min_layer_weight_bytes=min(layer_bytes),
        max_layer_weight_bytes=max(layer_bytes),
        max_layers=1,
        max_rows=max(work.rows for work in works),
        max_cached_tokens=0,
    )


def _source_text(gpu: str, of_reduces: _Fitted, num_reduces: int) -> str:
    off, left_out = format_frac(of_reduces.fitted.residual_frac), format_frac(float(np.mean(of_reduces.errors)))
    return (
        f"kernels of one layer, attention apart, from microsoft/vidur data/profiling (MIT): {LAYER_TABLE}; and {num_reduces} "
        f"all-reduces of node {gpu}_dgx, launch and waiting included: {ALL_REDUCE_TABLE}, mean error {off}, on a number of "
        f"GPUs left out {left_out}"
    )


def _lines(path: Path, columns: Collection[str]) -> list[_Line]:
    """The lines of a table with a header.

    Raises:
        BadFile: there is no such table, or it lacks one of the columns.
    """
    if not path.exists():
        raise BadFile(path, "there is no such table", _FIX)
    try:
        reader = csv.DictReader(io.StringIO(read_bytes(path).decode(), newline=""))
        found = [_Line(path=path, number=reader.line_num, cells=cells) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as err:
        raise BadFile(path, f"this is no table ({err})", _FIX) from err
    missing = sorted(set(columns) - set(reader.fieldnames or ()))
    if missing:
        raise BadFile(path, f"it has no column {', '.join(missing)}", _FIX)
    return found
