"""How well does the latency law price a model that nobody timed?

    gpu tables  kernel times of one Llama-2 layer on A100 and H100 (Vidur's public tables): each model and tensor-parallel
                degree is predicted at every number of rows by a law fitted to the others as the shipped one was; up to 64
                rows are counted, beyond them kernels go in steps of 64 or 128 rows that the law does not have
    published   tokens/s that others published, predicted by the roofline of the device's row alone; points from which a
                number of that row was taken are shown and not counted
    cpu         passes of small random models on this machine, timed now as `s2d-profile law` does: each model is predicted
                by a law fitted to the others

Example: python benchmarks/latency_law.py --quick --data ../shared/data
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from calibrate.fit.fit_latency import profile_observations
from calibrate.fit.fit_law import (
    Array,
    Observation,
    held_out_coverage,
    held_out_errors,
    leave_one_out_errors,
    leave_one_out_laws,
)
from calibrate.fit.fit_tables import FITTED_ROWS, LAYER_TABLE, LAYER_TERMS, TABLE_GPUS, layer_observations, table_hardware
from calibrate.fit.validate import validate
from perfmodel.core.console import run_command, table
from perfmodel.core.units import Frac, Seconds, format_frac, format_signed_frac
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.passes.flops_bytes import PassWork
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.passes.passes import PassKind
from profiler.latency.measure_law import LawGrid, law_models, law_profiles, measure_law
from profiler.latency.pass_log import PassLog
from s2d.loading.load_model import LoadedModel
from shared.common import SHARED_DATA, finish, make_parser, use_one_thread

Result: TypeAlias = dict[str, float | None]

NAME = "latency_law"
SEED = 20260701

GPU_BANDS = {"one_row": (1, 1), "rows": (1, 16), "batch": (17, 64), "wide": (65, 256)}
"""Ranges of rows, by what they are called in the result."""
MAX_COUNTED_ROWS = 64

WIDE_SHAPES = ((2, 256), (12, 256), (6, 384), (20, 384), (2, 512), (8, 512), (24, 512))
CPU_GRID = LawGrid(
    shapes=((2, 64), (8, 64), (24, 64), (4, 128), (16, 128), (8, 192), (24, 192), *WIDE_SHAPES),
    rows=(1, 2, 3, 4, 6, 8, 12, 16),
    cached_tokens=(64, 192, 320),
    vocab_size=2048,
)
CPU_QUICK_GRID = replace(CPU_GRID, shapes=((2, 64), (24, 64), (8, 128), (4, 192), (16, 192), (8, 256)))
CPU_SECONDS, CPU_QUICK_SECONDS = 420.0, 16.0


def gpu_tables(folder: Path) -> tuple[Result, list[dict[str, float | str]]]:
    """Errors by GPU and range of rows, printed; and every counted pass."""
    if not (folder / LAYER_TABLE).is_file():
        print(f"GPU tables not measured: there is no {LAYER_TABLE} in {folder}. Give its folder: --data DIR")
        return {"gpu_tables_mape_frac": None, "gpu_tables_coverage_frac": None}, []
    result: Result = {}
    lines, points, covered = [], [], []
    for gpu in TABLE_GPUS:
        observations = list(layer_observations(folder / LAYER_TABLE, gpu))
        fitted = [one for one in observations if one.work.rows in FITTED_ROWS]
        laws = leave_one_out_laws(fitted, launch_bound=False, allowed_terms=LAYER_TERMS)
        for name, (low, high) in GPU_BANDS.items():
            part = [one for one in observations if low <= one.work.rows <= high]
            signed = np.concatenate(list(leave_one_out_errors(laws, part).values()))
            result[f"{gpu}_{name}_mape_frac"] = mape = float(np.abs(signed).mean())
            bias, worst = format_signed_frac(signed.mean()), format_frac(np.abs(signed).max())
            lines.append([gpu, f"{low} to {high}", str(len(signed)), format_frac(mape), bias, worst])
        counted = [one for one in observations if one.work.rows <= MAX_COUNTED_ROWS]
        points.extend(shape_errors(table_hardware(gpu).name, counted, leave_one_out_errors(laws, counted)))
        covered.append(held_out_coverage(fitted, launch_bound=False, allowed_terms=LAYER_TERMS))
    print(table(lines, headers=["GPU", "rows", "passes", "mean error", "bias", "worst"]))
    mape_frac = float(np.mean([abs(point["error_frac"]) for point in points]))
    coverage_frac = float(np.mean(np.concatenate(covered)))
    return {"gpu_tables_mape_frac": mape_frac, "gpu_tables_coverage_frac": coverage_frac} | result, points


def shape_errors(
    device: str, observations: Sequence[Observation], errors: Mapping[str, Array]
) -> Iterator[dict[str, float | str]]:
    """The held-out error of every pass through layers, and how heavy its layers are."""
    left = {group: iter(signed) for group, signed in errors.items()}
    for one in observations:
        error_frac = float(next(left[one.group]))
        if one.work.num_layers:
            layer_bytes = one.work.weight_bytes / one.work.num_layers
            yield {"device": device, "layer_weight_bytes": layer_bytes, "error_frac": error_frac}


def published() -> Result:
    """Errors on published speeds, printed as `s2d-plan validate` does."""
    validation = validate()
    print(validation.explain())
    errors = {one.device: one.mape_frac for one in validation.devices if one.engine == "graph"}
    return {
        "published_mape_frac": errors[find_hardware("a100").name],
        "published_4090_mape_frac": errors[find_hardware("rtx-4090").name],
        "published_coverage_frac": float(np.mean([one.is_covered for one in validation.points if one.role == "held-out"])),
    }


def cpu_profiles(grid: LawGrid, seconds: Seconds) -> tuple[list[LatencyProfile], Frac]:
    """Profiles of the grid's models, and the noise of this machine: the passes of one half of the time against the other's."""
    models = law_models(grid, "fp32", "cpu", seed=SEED)
    halves = []
    for half in range(2):
        logs = [PassLog() for _ in models]
        measure_law(models, grid, logs, seconds / 2, rng=np.random.default_rng([SEED, half]))
        halves.append(logs)
    noise = noise_frac(*([observations_of(models, logs) for logs in halves]))
    for early, late in zip(*halves, strict=True):
        early.add(late.samples())
    return profiles_of(models, halves[0]), noise


def profiles_of(models: Sequence[LoadedModel], logs: Sequence[PassLog]) -> list[LatencyProfile]:
    """Every model's passes as a draft and as a target."""
    return [profile for model, log in zip(models, logs, strict=True) for profile in law_profiles(log, model).values()]


def observations_of(models: Sequence[LoadedModel], logs: Sequence[PassLog]) -> list[Observation]:
    """Typical seconds of every shape."""
    return [one for profile in profiles_of(models, logs) for one in profile_observations(profile)]


def noise_frac(early: Sequence[Observation], late: Sequence[Observation]) -> Frac:
    """Mean difference of two halves of the time, shape by shape, as the error of their mean."""
    first, second = (
        {(one.group, one.work, round(one.cached_tokens, -2)): one.seconds for one in half} for half in (early, late)
    )
    differences = [abs(first[key] / second[key] - 1) for key in first.keys() & second.keys()]
    return sum(differences) / len(differences) / 2


def kind_errors(observations: Sequence[Observation], errors: dict[str, Array]) -> dict[str, float]:
    """Mean held-out error of every kind of pass."""
    sizes: dict[str, list[float]] = defaultdict(list)
    left = {group: iter(signed) for group, signed in errors.items()}
    for one in observations:
        sizes[kind_of(one.work)].append(abs(float(next(left[one.group]))))
    return {f"cpu_{kind}_mape_frac": sum(found) / len(found) for kind, found in sizes.items()}


def kind_of(work: PassWork) -> PassKind:
    """Which kind of pass some work is."""
    if not work.num_layers:
        return "exit"
    return "verify" if work.num_syncs else "segment"


def cpu(grid: LawGrid, seconds: Seconds) -> Result:
    """Errors on this machine, printed."""
    use_one_thread()
    profiles, noise = cpu_profiles(grid, seconds)
    # A round's bookkeeping is the host's, whatever the model.
    observations = [one for profile in profiles for one in profile_observations(profile) if not one.work.num_rounds]
    errors = held_out_errors(observations, launch_bound=False)
    lines = [
        [group, str(len(signed)), format_frac(np.abs(signed).mean()), format_signed_frac(signed.mean())]
        for group, signed in errors.items()
    ]
    print(table(lines, headers=["CPU, left out", "passes", "mean error", "bias"]))
    print(f"\nthis machine against itself: {format_frac(noise)}")
    return {
        "cpu_mape_frac": float(np.abs(np.concatenate(list(errors.values()))).mean()),
        "cpu_noise_frac": noise,
        "cpu_coverage_frac": float(np.mean(held_out_coverage(observations, launch_bound=False))),
        **kind_errors(observations, errors),
    }


def main() -> int:
    """Print three tables and the result."""
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, default=SHARED_DATA, metavar="DIR", help="holds gpu_layer_times.csv")

    def run(args) -> int:
        import torch

        from profiler.machine.machine_facts import device_facts

        result, gpu_errors = gpu_tables(args.data)
        print()
        result |= published()
        print()
        grid, seconds = (CPU_QUICK_GRID, CPU_QUICK_SECONDS) if args.quick else (CPU_GRID, CPU_SECONDS)
        result |= cpu(grid, seconds)
        device = device_facts(torch.device("cpu")).label
        finish(
            NAME,
            quick=args.quick,
            result=result,
            libraries=("numpy", "scipy", "torch"),
            device=device,
            seed=SEED,
            details={"gpu_errors": gpu_errors},
        )
        return 0

    return run_command(parser, None, run)


if __name__ == "__main__":
    sys.exit(main())
