"""Fit the latency law to public tables of GPU kernel times.

One table times the kernels of one decoder layer, the other all-reduces. The tables are excerpts from `microsoft/vidur`,
data/profiling (MIT). They are not shipped; the fits are, as `perfmodel/evidence/*.latency-fit.json`. The layers are those
of Llama-2 in fp16, with attention over the cache timed separately. The fit therefore has no terms for the cache, the host and
the head.

Standard errors are jackknife errors, from leaving out each combination of model and tensor-parallel degree. Kernels of one
shape have similar errors at all numbers of rows; the usual formula assumes independent errors and would give standard errors
that are up to twice too small.
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
    fit_law,
    law_from_terms,
    leave_one_out_errors,
    leave_one_out_laws,
    pooled_abs_errors,
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
"""GPU names in the tables: A100 80 GB and H100, both in nodes with a switch between the GPUs."""
TABLE_MODELS = {"Llama-2-7b-hf": "llama-2-7b", "Llama-2-70b-hf": "llama-2-70b"}
TABLE_DTYPE: Dtype = "fp16"
LAYER_OPERATORS = (
    "input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "add",
    "post_attention_layernorm", "mlp_up_proj", "mlp_act", "mlp_down_proj", "add",
)  # fmt: skip
"""In execution order. Attention over the cache runs between the second and the third projection and was timed separately."""

FITTED_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Powers of two and values half-way between them, which weight every scale of rows equally. The table's own steps of 8 would
give passes of more than 64 rows three quarters of the weight. Kernels compute tiles of 64 or 128 rows, so above 64 rows some
tiles are full and some half empty, as in practice.
"""
LAYER_TERMS = ("layer_s", "row_layer_s", "weight_byte_s", "flop_s")
"""Terms that the layer table determines. In it, the step from one row to several is within the measurement error."""
ALL_REDUCE_TERMS = ("all_reduce_s", "link_byte_s")
MAX_GPUS = 8
"""GPUs in one node; the table also covers two nodes."""
MIN_GROUPS = 3
"""Smallest number of groups (model and degree, or number of GPUs) for leaving one out and fitting the others."""

_FIX = "Give the folder with the unmodified public tables"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One row of a table, with its line number for messages."""

    path: Path
    number: int
    cells: Mapping[str, str | None]

    def text(self, column: str) -> str:
        return self.cells[column] or ""

    def count(self, column: str) -> int:
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
    """A fitted law, its jackknife standard errors, and its held-out errors."""

    fitted: FittedLaw
    standard_error: Law
    errors: Array
    """Absolute relative errors on groups that were left out."""


def fit_tables(folder: Path, gpu: str) -> tuple[LatencyFit, dict[str, str]]:
    """Fit the law to the tables of one GPU; also returns the hash of each file by name.

    The residual and the held-out errors are those of layers. All-reduces are fitted separately; the fit's source states their
    errors.

    Raises:
        UnknownName: the tables have no such GPU.
        BadFile: a table is missing, lacks a column, has a bad value, or too few rows of the GPU.
        BelowLowerBound: a layer takes less than the GPU's lower bound.
    """
    hardware, paths = table_hardware(gpu), (folder / LAYER_TABLE, folder / ALL_REDUCE_TABLE)
    layers = [layer for layer in layer_observations(paths[0], gpu) if layer.work.rows in FITTED_ROWS]
    reduces = list(all_reduce_observations(paths[1], gpu))
    layer_fit, reduce_fit = _fit_groups(layers, LAYER_TERMS, paths[0]), _fit_groups(reduces, ALL_REDUCE_TERMS, paths[1])
    fit = LatencyFit(
        device=DeviceKey(device=hardware.name, num_devices=1, num_threads=None, dtype=TABLE_DTYPE, mode="graph"),
        models=tuple(sorted({layer.group.partition(" / ")[0] for layer in layers})),
        source=_source_text(gpu, reduce_fit, len(reduces)),
        pads_rows=False,
        law=_combined(layer_fit.fitted.law, reduce_fit.fitted.law),
        standard_error=_combined(layer_fit.standard_error, reduce_fit.standard_error),
        domain=_domain([layer.work for layer in layers]),
        num_samples=len(layers),
        residual_frac=layer_fit.fitted.residual_frac,
        held_out_error_frac=float(np.mean(layer_fit.errors)),
        held_out_90_frac=float(np.quantile(layer_fit.errors, INTERVAL_FRAC)),
    )
    return fit, {path.name: hashlib.sha256(read_bytes(path)).hexdigest() for path in paths}


def table_hardware(gpu: str) -> Hardware:
    """The device of a GPU in the tables.

    Raises:
        UnknownName: the tables have no such GPU.
    """
    if gpu not in TABLE_GPUS:
        raise UnknownName("GPU of the public tables", gpu, TABLE_GPUS, listed_in="s2d-plan fit --help")
    return find_hardware(gpu)


def layer_observations(path: Path, gpu: str) -> Iterator[Observation]:
    """Kernel seconds of one decoder layer at each number of rows, without attention over the cache."""
    hardware = table_hardware(gpu)
    columns = ("gpu", "model", "tensor_parallel", "rows", *(f"{operator}_s" for operator in set(LAYER_OPERATORS)))
    for row in _rows(path, columns):
        if row.text("gpu") != gpu:
            continue
        if row.text("model") not in TABLE_MODELS:
            raise row.error("model", " or ".join(TABLE_MODELS))
        model, degree = find_model(TABLE_MODELS[row.text("model")]), row.count("tensor_parallel")
        work = _kernel_work(model, rows=row.count("rows"), num_devices=degree)
        seconds = sum(row.seconds(f"{operator}_s") for operator in LAYER_OPERATORS)
        subject = f"line {row.number} of {path.name}, a layer of {model.name}"
        work_lower_bound(work, 0, hardware, plain_format(TABLE_DTYPE)).check(seconds, subject, hardware.name, fix=_FIX)
        yield Observation(
            group=f"{model.name} / {degree}",
            work=work,
            cached_tokens=0.0,
            max_cached_tokens=model.max_context_tokens,
            seconds=seconds,
        )


def all_reduce_observations(path: Path, gpu: str) -> Iterator[Observation]:
    """Seconds of one all-reduce of each size on 2, 4 and 8 GPUs connected by a switch."""
    for row in _rows(path, ("node", "num_gpus", "size", "all_reduce_s")):
        if row.text("node") == f"{gpu}_dgx" and (num_gpus := row.count("num_gpus")) <= MAX_GPUS:
            sent_bytes = 2 * (num_gpus - 1) / num_gpus * row.count("size")
            yield Observation(
                group=f"{num_gpus} GPUs",
                work=PassWork(num_all_reduces=1, link_bytes=sent_bytes),
                cached_tokens=0.0,
                max_cached_tokens=0,
                seconds=row.seconds("all_reduce_s"),
            )


def _kernel_work(model: ModelGeometry, *, rows: int, num_devices: int) -> PassWork:
    """A layer's work on one of several devices, without all-reduces and attention, which are timed separately."""
    setting = PassSetting(model=model, weights=plain_format(TABLE_DTYPE), num_devices=num_devices)
    work = setting.layers_work(1, rows=rows)
    flops = matrix_flops(model.layer_params, rows) / num_devices
    return replace(work, num_passes=0, layer_flops=flops, num_all_reduces=0, link_bytes=0.0)


def _fit_groups(observations: Sequence[Observation], terms: Collection[str], path: Path) -> _Fitted:
    groups = {observation.group for observation in observations}
    if len(groups) < MIN_GROUPS:
        content = ", ".join(sorted(groups)) or "nothing"
        raise BadFile(path, f"has {content} for this GPU, expected {MIN_GROUPS} or more groups to leave one out", _FIX)
    laws = leave_one_out_laws(observations, launch_bound=False, allowed_terms=terms)
    errors = pooled_abs_errors(leave_one_out_errors(laws, observations))
    assert errors is not None
    fitted = fit_law(observations, launch_bound=False, allowed_terms=terms)
    return _Fitted(fitted=fitted, standard_error=_jackknife(list(laws.values())), errors=errors)


def _jackknife(laws: Sequence[Law]) -> Law:
    """Standard errors from n fits that each leave one group out: sqrt((n - 1) / n times the sum of squared deviations)."""
    factor = (len(laws) - 1) / len(laws)
    values = {term: np.array([getattr(law, term) for law in laws]) for term in LAW_TERMS}
    return law_from_terms({term: float(np.sqrt(factor * np.sum((fits - fits.mean()) ** 2))) for term, fits in values.items()})


def _combined(layer_law: Law, reduce_law: Law) -> Law:
    """The law with the layer terms of one fit and the all-reduce terms of the other."""
    return replace(layer_law, **{term: getattr(reduce_law, term) for term in ALL_REDUCE_TERMS})


def _domain(works: Sequence[PassWork]) -> FitDomain:
    layer_bytes = [work.weight_bytes for work in works]
    return FitDomain(
        min_layer_weight_bytes=min(layer_bytes),
        max_layer_weight_bytes=max(layer_bytes),
        max_layers=1,
        max_rows=max(work.rows for work in works),
        max_cached_tokens=0,
    )


def _source_text(gpu: str, reduce_fit: _Fitted, num_reduces: int) -> str:
    mean_error, held_out_error = format_frac(reduce_fit.fitted.residual_frac), format_frac(float(np.mean(reduce_fit.errors)))
    return (  # the shipped fits contain this text
        f"kernels of one layer, attention apart, from microsoft/vidur data/profiling (MIT): {LAYER_TABLE}; and {num_reduces} "
        f"all-reduces of node {gpu}_dgx, launch and waiting included: {ALL_REDUCE_TABLE}, mean error {mean_error}, "
        f"on a number of GPUs left out {held_out_error}"
    )


def _rows(path: Path, columns: Collection[str]) -> list[_Row]:
    """The rows of a table with a header.

    Raises:
        BadFile: the table is missing, or it lacks a column.
    """
    if not path.exists():
        raise BadFile(path, "this table does not exist", _FIX)
    try:
        reader = csv.DictReader(io.StringIO(read_bytes(path).decode(), newline=""))
        rows = [_Row(path=path, number=reader.line_num, cells=cells) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as err:
        raise BadFile(path, f"this is not a table ({err})", _FIX) from err
    missing = sorted(set(columns) - set(reader.fieldnames or ()))
    if missing:
        raise BadFile(path, f"it has no column {', '.join(missing)}", _FIX)
    return rows
