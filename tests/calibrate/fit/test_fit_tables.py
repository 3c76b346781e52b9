"""Fits of the latency law to the public kernel tables, and the fits that ship with the package."""

import csv
import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest

from calibrate.fit.fit_tables import (
    ALL_REDUCE_TABLE,
    ALL_REDUCE_TERMS,
    FITTED_ROWS,
    LAYER_OPERATORS,
    LAYER_TABLE,
    LAYER_TERMS,
    TABLE_GPUS,
    TABLE_MODELS,
    fit_tables,
    table_hardware,
)
from perfmodel.core.disk import EVIDENCE_FOLDER
from perfmodel.core.errors import BadFile, BelowLowerBound, UnknownName
from perfmodel.core.units import format_bytes_per_s, format_flops_per_s, format_frac, format_seconds
from perfmodel.hardware.kernel_efficiency import kernel_costs, shipped_fit
from perfmodel.models.find_model import find_model
from perfmodel.passes.latency_law import FIT_FILE, LatencyFit, Law

PUBLIC_TABLES = Path(__file__).parents[4] / "shared" / "data"
HARDWARE_PAGE = Path(__file__).parents[3] / "docs" / "reference" / "hardware.md"
OPERATOR_COLUMNS = [f"{operator}_s" for operator in dict.fromkeys(LAYER_OPERATORS)]
FLOOR_S, ROW_S, BYTE_S, FLOP_S, REDUCE_S, LINK_S = 30e-6, 1e-7, 6e-13, 5e-15, 40e-6, 1e-11
FITTED_TERMS = (*LAYER_TERMS, *ALL_REDUCE_TERMS)

Row = dict[str, object]


def layer_s(model: str, degree: int, rows: int) -> float:
    """The law written out: floor, rows, and the overlap of reading and computing."""
    weights = find_model(TABLE_MODELS[model]).layer_params / degree
    reading_s, computing_s = BYTE_S * 2 * weights, FLOP_S * 2 * rows * weights
    return FLOOR_S + ROW_S * rows + (reading_s**3 + computing_s**3) ** (1 / 3)


def layer_rows(rows: Sequence[int] = FITTED_ROWS) -> list[Row]:
    shapes = [(model, degree, count) for model in TABLE_MODELS for degree in (1, 2, 4, 8) for count in rows]
    return [
        {"gpu": "a100", "model": model, "tensor_parallel": degree, "rows": count}
        | dict.fromkeys(OPERATOR_COLUMNS, layer_s(model, degree, count) / len(LAYER_OPERATORS))
        for model, degree, count in shapes
    ]


def all_reduce_rows() -> list[Row]:
    shapes = [(num_gpus, size) for num_gpus in (2, 4, 8) for size in (2048, 65536, 1048576, 4194304)]
    return [
        {"node": "a100_dgx", "num_gpus": n, "size": size, "all_reduce_s": REDUCE_S + LINK_S * 2 * (n - 1) / n * size}
        for n, size in shapes
    ]


def write_table(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_tables(folder: Path, layers: Sequence[Row] | None = None, reduces: Sequence[Row] | None = None) -> Path:
    write_table(folder / LAYER_TABLE, layers or layer_rows())
    write_table(folder / ALL_REDUCE_TABLE, reduces or all_reduce_rows())
    return folder


@pytest.fixture(scope="module")
def exact_fit(tmp_path_factory: pytest.TempPathFactory) -> LatencyFit:
    return fit_tables(write_tables(tmp_path_factory.mktemp("tables")), "a100")[0]


def test_a_known_law_is_recovered_from_its_tables(exact_fit: LatencyFit) -> None:
    law = exact_fit.law
    coefficients = (law.layer_s, law.row_layer_s, law.weight_byte_s, law.flop_s, law.all_reduce_s, law.link_byte_s)
    assert coefficients == pytest.approx((FLOOR_S, ROW_S, BYTE_S, FLOP_S, REDUCE_S, LINK_S), rel=1e-3)
    assert exact_fit.residual_frac < 1e-4
    assert exact_fit.held_out_error_frac is not None
    assert exact_fit.held_out_error_frac < 1e-4


def test_terms_that_the_tables_do_not_determine_are_0_with_error_0(exact_fit: LatencyFit) -> None:
    others = {field.name for field in fields(Law)} - {*FITTED_TERMS, "head_byte_s", "head_flop_s"}
    assert {getattr(exact_fit.law, term) for term in others} == {0.0}
    assert {getattr(exact_fit.standard_error, term) for term in others} == {0.0}


def test_the_fit_states_its_device_models_and_domain(exact_fit: LatencyFit) -> None:
    assert (exact_fit.device.device, exact_fit.device.dtype, exact_fit.device.num_devices) == ("A100-80GB-SXM", "fp16", 1)
    assert exact_fit.models == ("llama-2-70b", "llama-2-7b")
    assert exact_fit.num_samples == 8 * len(FITTED_ROWS)
    domain = exact_fit.domain
    assert (domain.max_rows, domain.max_layers, domain.max_cached_tokens) == (256, 1, 0)
    assert domain.min_layer_weight_bytes == 2 * find_model("llama-2-7b").layer_params / 8
    assert domain.max_layer_weight_bytes == 2 * find_model("llama-2-70b").layer_params
    for part in ("microsoft/vidur data/profiling (MIT)", LAYER_TABLE, ALL_REDUCE_TABLE, "12 all-reduces", "mean error 0.0 %"):
        assert part in exact_fit.source


def test_a_shape_that_violates_the_law_increases_held_out_and_standard_errors(exact_fit: LatencyFit, tmp_path: Path) -> None:
    layers = layer_rows()
    for row in layers:
        if (row["model"], row["tensor_parallel"]) == ("Llama-2-7b-hf", 8):
            row |= {column: 1.5 * float(str(row[column])) for column in OPERATOR_COLUMNS}
    fit, _ = fit_tables(write_tables(tmp_path, layers), "a100")
    assert fit.held_out_90_frac is not None
    assert fit.held_out_90_frac > 0.2, "one shape in eight takes 50 % longer than predicted"
    assert fit.standard_error.layer_s > 1000 * exact_fit.standard_error.layer_s
    assert abs(fit.law.layer_s - FLOOR_S) < 2 * fit.standard_error.layer_s


def test_other_gpus_nodes_and_rows_do_not_change_the_fit(exact_fit: LatencyFit, tmp_path: Path) -> None:
    layers = layer_rows() + [row | dict.fromkeys(OPERATOR_COLUMNS, 1.0) for row in layer_rows((40, 512))]
    layers += [row | {"gpu": "h100"} | dict.fromkeys(OPERATOR_COLUMNS, 1.0) for row in layer_rows()]
    reduces = all_reduce_rows()
    for other in ({"node": "a100_pairwise_nvlink"}, {"node": "h100_dgx"}, {"num_gpus": 16}):
        reduces += [row | other | {"all_reduce_s": 1.0} for row in all_reduce_rows()]
    fit, _ = fit_tables(write_tables(tmp_path, layers, reduces), "a100")
    assert fit == exact_fit


def test_the_fit_lists_the_hashes_of_its_tables(tmp_path: Path) -> None:
    _, inputs = fit_tables(write_tables(tmp_path), "a100")
    files = (tmp_path / LAYER_TABLE, tmp_path / ALL_REDUCE_TABLE)
    assert inputs == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def changed(table: list[Row], number: int, /, **cells: object) -> list[Row]:
    return [row | cells if index == number else row for index, row in enumerate(table)]


def without(rows: list[Row], column: str) -> list[Row]:
    return [{name: cell for name, cell in row.items() if name != column} for row in rows]


FIX = r"Give the folder with the unmodified public tables\."
BAD_LAYERS: dict[str, tuple[Callable[[], list[Row]], str]] = {
    "a missing column": (lambda: without(layer_rows(), "mlp_act_s"), rf"csv': it has no column mlp_act_s\. {FIX}"),
    "a word for a time": (
        lambda: changed(layer_rows(), 1, add_s="fast"),
        rf"csv': line 3: add_s is 'fast', expected seconds above 0\. {FIX}",
    ),
    "no number": (lambda: changed(layer_rows(), 0, mlp_up_proj_s="nan"), "line 2: mlp_up_proj_s is 'nan', expected seconds"),
    "an empty cell": (lambda: changed(layer_rows(), 0, add_s=""), "line 2: add_s is '', expected seconds above 0"),
    "a negative time": (lambda: changed(layer_rows(), 0, add_s=-1e-6), "line 2: add_s is '-1e-06', expected seconds above 0"),
    "half a row": (lambda: changed(layer_rows(), 0, rows=1.5), r"line 2: rows is '1\.5', expected a whole number above 0"),
    "no GPU at all": (lambda: changed(layer_rows(), 0, tensor_parallel=0), "tensor_parallel is '0', expected a whole number"),
    "another model": (
        lambda: changed(layer_rows(), 0, model="GPT-3"),
        "line 2: model is 'GPT-3', expected Llama-2-7b-hf or Llama-2-70b-hf",
    ),
    "another GPU": (lambda: [row | {"gpu": "v100"} for row in layer_rows()], "has nothing for this GPU, expected 3 or more"),
    "two shapes": (
        lambda: [row for row in layer_rows() if row["model"] == "Llama-2-7b-hf" and row["tensor_parallel"] in (1, 2)],
        "has llama-2-7b / 1, llama-2-7b / 2 for this GPU, expected 3 or more groups to leave one out",
    ),
}


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_a_bad_layer_table_is_refused_in_one_message(case: str, tmp_path: Path) -> None:
    make, message = BAD_LAYERS[case]
    with pytest.raises(BadFile, match=message):
        fit_tables(write_tables(tmp_path, make()), "a100")


BAD_REDUCES: dict[str, tuple[Callable[[], list[Row]], str]] = {
    "a missing column": (lambda: without(all_reduce_rows(), "size"), f"it has no column size. {FIX}"),
    "a word for a time": (
        lambda: changed(all_reduce_rows(), 0, all_reduce_s="slow"),
        "line 2: all_reduce_s is 'slow', expected seconds above 0",
    ),
    "no size": (lambda: changed(all_reduce_rows(), 2, size="4MiB"), "line 4: size is '4MiB', expected a whole number above 0"),
    "one number of GPUs": (
        lambda: [row | {"num_gpus": 2} for row in all_reduce_rows()],
        "has 2 GPUs for this GPU, expected 3 or more groups to leave one out",
    ),
}


@pytest.mark.parametrize("case", BAD_REDUCES)
def test_a_bad_all_reduce_table_is_refused_in_one_message(case: str, tmp_path: Path) -> None:
    make, message = BAD_REDUCES[case]
    with pytest.raises(BadFile, match=message):
        fit_tables(write_tables(tmp_path, None, make()), "a100")


@pytest.mark.parametrize("name", [LAYER_TABLE, ALL_REDUCE_TABLE])
def test_a_missing_or_binary_table_is_refused(name: str, tmp_path: Path) -> None:
    path = write_tables(tmp_path) / name
    path.write_bytes(b"gpu,rows\n\xff\xfe\n")
    with pytest.raises(BadFile, match=rf"{name}': this is not a table \(.*\)\. {FIX}"):
        fit_tables(tmp_path, "a100")
    path.unlink()
    with pytest.raises(BadFile, match=rf"{name}': this table does not exist\. {FIX}"):
        fit_tables(tmp_path, "a100")


def test_a_gpu_outside_the_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown GPU of the public tables 'h100x': did you mean 'h100'"):
        fit_tables(tmp_path, "h100x")


def test_a_layer_below_the_lower_bound_is_refused(tmp_path: Path) -> None:
    layers = changed(layer_rows(), len(FITTED_ROWS) * 4, **dict.fromkeys(OPERATOR_COLUMNS, 1e-6))
    with pytest.raises(BelowLowerBound, match=rf"line 54 of {LAYER_TABLE}, a layer of llama-2-70b takes 10\.0 µs, .* 1\.71 GB"):
        fit_tables(write_tables(tmp_path, layers), "a100")


@pytest.fixture(params=TABLE_GPUS)
def gpu(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_shipped_fits_name_their_device_command_and_inputs(gpu: str) -> None:
    name = table_hardware(gpu).name
    stored = FIT_FILE.read(EVIDENCE_FOLDER / f"{name.casefold()}.latency-fit.json")
    assert stored.record.device.device == name
    command = f"s2d-plan fit --tables data --device {gpu} -o {name.casefold()}.latency-fit.json"
    assert stored.provenance.command == command, "without a folder of the machine that made it"
    assert {file: len(sha256) for file, sha256 in stored.provenance.inputs.items()} == {LAYER_TABLE: 64, ALL_REDUCE_TABLE: 64}


def test_shipped_fits_have_the_documented_errors(gpu: str) -> None:
    fit = shipped_fit(table_hardware(gpu).name)
    relative_errors = {term: getattr(fit.standard_error, term) / getattr(fit.law, term) for term in FITTED_TERMS}
    assert all(error > 0 for error in relative_errors.values())
    assert relative_errors["layer_s"] < 0.1
    assert relative_errors["weight_byte_s"] < 0.025
    assert relative_errors["flop_s"] < 0.1
    assert fit.held_out_error_frac is not None
    assert fit.residual_frac < fit.held_out_error_frac < 0.05
    assert fit.error_frac < kernel_costs(fit.device.device).error_frac, (
        "a complete pass has a larger error than the kernels of its layers"
    )


def test_kernel_costs_are_the_coefficients_of_the_shipped_fits(gpu: str) -> None:
    hardware = table_hardware(gpu)
    costs, law = kernel_costs(hardware.name), shipped_fit(hardware.name).law
    assert costs.layer_floor_s == law.layer_s
    for dtype in ("fp32", "bf16", "fp16"):
        assert 1 / (costs.weight_bandwidth_frac[dtype] * hardware.memory_bytes_per_s) == pytest.approx(law.weight_byte_s)
    fitted_frac = 1 / (law.flop_s * hardware.peak_flops_per_s["fp16"])
    error_frac = shipped_fit(hardware.name).standard_error.flop_s / law.flop_s
    if gpu == "a100":
        assert costs.flops_frac == pytest.approx(fitted_frac)
    else:
        assert "0.68 of the peak is assumed" in costs.source
        assert costs.flops_frac == pytest.approx(fitted_frac, rel=2 * error_frac)


def test_the_source_of_kernel_costs_states_the_errors_of_the_fit() -> None:
    for part in (
        "floor 35.7 µs ± 8.7 %",
        "1.55 TB/s ± 1.5 %",
        "187 TFLOP/s ± 3.8 %",
        "mean error 3.7 %",
        "held-out shape 4.3 %",
    ):
        assert part in kernel_costs("A100-80GB-SXM").source


def test_the_hardware_page_shows_the_shipped_fits() -> None:
    fits = [shipped_fit(table_hardware(gpu).name) for gpu in TABLE_GPUS]
    page = HARDWARE_PAGE.read_text(encoding="utf-8")
    for term in ("layer_s", "row_layer_s", "all_reduce_s"):
        cells = [format_seconds(getattr(part, term)) for fit in fits for part in (fit.law, fit.standard_error)]
        assert f"| {' | '.join(cells)} |" in page
    for term, format_rate in (("weight_byte_s", format_bytes_per_s), ("flop_s", format_flops_per_s)):
        values = [(getattr(fit.law, term), getattr(fit.standard_error, term)) for fit in fits]
        cells = [format_rate(rate) for value, error in values for rate in (1 / value, error / value**2)]
        assert f"| {' | '.join(cells)} |" in page
    for name in ("residual_frac", "held_out_error_frac", "held_out_90_frac"):
        assert f"| {' | '.join(format_frac(getattr(fit, name)) for fit in fits)} |" in page


def test_importing_the_device_table_reads_no_fit() -> None:
    code = (
        "import perfmodel.hardware.known_hardware\n"
        "from perfmodel.hardware.kernel_efficiency import shipped_fit\n"
        "assert shipped_fit.cache_info().currsize == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=EVIDENCE_FOLDER.parent.parent)


@pytest.mark.skipif(not PUBLIC_TABLES.is_dir(), reason="the public tables are not available")
def test_fitting_the_public_tables_reproduces_the_shipped_fits(gpu: str) -> None:
    """Up to a thousandth of a standard error, because the last digits depend on the optimiser."""
    again, inputs = fit_tables(PUBLIC_TABLES, gpu)
    stored = FIT_FILE.read(EVIDENCE_FOLDER / f"{table_hardware(gpu).name.casefold()}.latency-fit.json")
    assert inputs == stored.provenance.inputs
    shipped = stored.record
    for term in FITTED_TERMS:
        error = getattr(shipped.standard_error, term)
        assert getattr(again.law, term) == pytest.approx(getattr(shipped.law, term), rel=1e-9, abs=1e-3 * error)
        assert getattr(again.standard_error, term) == pytest.approx(error, rel=1e-3)
    errors = (again.residual_frac, again.held_out_error_frac, again.held_out_90_frac)
    assert errors == pytest.approx((shipped.residual_frac, shipped.held_out_error_frac, shipped.held_out_90_frac), rel=1e-3)
    checked = dict.fromkeys(("law", "standard_error", "residual_frac", "held_out_error_frac", "held_out_90_frac"))
    assert replace(again, **checked) == replace(shipped, **checked)
