"""How well does the latency law price models that were never timed?

    gpu tables  kernel times of one Llama-2 layer on A100 and H100 (Vidur's public tables). A law fitted to the other models and
                tensor-parallel degrees, as the shipped law was, predicts each one at every number of rows. Up to 64 rows count;
                beyond them, kernel times grow in steps of 64 or 128 rows, which the law does not model
    published   published tokens/s, predicted by a roofline from the device's datasheet row only. Points that were used for a
                number of that row are shown but not counted
    cpu         passes of small random models on this machine, timed now like `s2d-profile law`. A law fitted to the other
                models predicts each one

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
from perfmodel.core.provenance import make_provenance
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
"""Ranges of rows, by their name in the result."""
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
    """Print errors by GPU and range of rows. Also returns every counted pass."""
    if not (folder / LAYER_TABLE).is_file():
        print(f"GPU tables not measured: no {LAYER_TABLE} in {folder}. Give its folder: --data DIR")
        return {"gpu_tables_mape_frac": None, "gpu_tables_coverage_frac": None}, []
    result: Result = {}
    lines, points, covered = [], [], []
    for gpu in TABLE_GPUS:
        observations = list(layer_observations(folder / LAYER_TABLE, gpu))
        fitted = [observation for observation in observations if observation.work.rows in FITTED_ROWS]
        laws = leave_one_out_laws(fitted, launch_bound=False, allowed_terms=LAYER_TERMS)
        for name, (low, high) in GPU_BANDS.items():
            part = [observation for observation in observations if low <= observation.work.rows <= high]
            signed = np.concatenate(list(leave_one_out_errors(laws, part).values()))
            result[f"{gpu}_{name}_mape_frac"] = mape = float(np.abs(signed).mean())
            bias, worst = format_signed_frac(signed.mean()), format_frac(np.abs(signed).max())
            lines.append([gpu, f"{low} to {high}", str(len(signed)), format_frac(mape), bias, worst])
        counted = [observation for observation in observations if observation.work.rows <= MAX_COUNTED_ROWS]
        points.extend(shape_errors(table_hardware(gpu).name, counted, leave_one_out_errors(laws, counted)))
        covered.append(held_out_coverage(fitted, launch_bound=False, allowed_terms=LAYER_TERMS))
    print(table(lines, headers=["GPU", "rows", "passes", "mean error", "bias", "worst"]))
    mape_frac = float(np.mean([abs(point["error_frac"]) for point in points]))
    coverage_frac = float(np.mean(np.concatenate(covered)))
    return {"gpu_tables_mape_frac": mape_frac, "gpu_tables_coverage_frac": coverage_frac} | result, points


def shape_errors(
    device: str, observations: Sequence[Observation], errors: Mapping[str, Array]
) -> Iterator[dict[str, float | str]]:
    """The held-out error of every pass through layers, and the weights of one layer."""
    remaining = {group: iter(signed) for group, signed in errors.items()}
    for observation in observations:
        error_frac = float(next(remaining[observation.group]))
        if observation.work.num_layers:
            layer_bytes = observation.work.weight_bytes / observation.work.num_layers
            yield {"device": device, "layer_weight_bytes": layer_bytes, "error_frac": error_frac}


def published() -> Result:
    """Print errors on published speeds, like `s2d-plan validate`."""
    validation = validate()
    print(validation.explain())
    errors = {device.device: device.mape_frac for device in validation.devices if device.mode == "graph"}
    held_out = [point for point in validation.points if point.role == "held-out"]
    return {
        "published_mape_frac": errors[find_hardware("a100").name],
        "published_4090_mape_frac": errors[find_hardware("rtx-4090").name],
        "published_coverage_frac": float(np.mean([point.is_covered for point in held_out])),
    }


def cpu_profiles(grid: LawGrid, seconds: Seconds) -> tuple[list[LatencyProfile], Frac]:
    """Profiles of the grid's models, and the noise of this machine: the first half of the time against the second."""
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
    """The passes of every model, as a draft and as a target."""
    return [profile for model, log in zip(models, logs, strict=True) for profile in law_profiles(log, model).values()]


def observations_of(models: Sequence[LoadedModel], logs: Sequence[PassLog]) -> list[Observation]:
    """Typical seconds of every shape."""
    return [observation for profile in profiles_of(models, logs) for observation in profile_observations(profile)]


def noise_frac(early: Sequence[Observation], late: Sequence[Observation]) -> Frac:
    """Mean relative difference of two halves of the time over all shapes, as the error of their mean."""
    first, second = (
        {
            (observation.group, observation.work, round(observation.cached_tokens, -2)): observation.seconds
            for observation in half
        }
        for half in (early, late)
    )
    differences = [abs(first[key] / second[key] - 1) for key in first.keys() & second.keys()]
    return sum(differences) / len(differences) / 2


def kind_errors(observations: Sequence[Observation], errors: dict[str, Array]) -> dict[str, float]:
    """Mean held-out error of every kind of pass."""
    sizes: dict[str, list[float]] = defaultdict(list)
    remaining = {group: iter(signed) for group, signed in errors.items()}
    for observation in observations:
        sizes[kind_of(observation.work)].append(abs(float(next(remaining[observation.group]))))
    return {f"cpu_{kind}_mape_frac": sum(errors_frac) / len(errors_frac) for kind, errors_frac in sizes.items()}


def kind_of(work: PassWork) -> PassKind:
    """The kind of pass."""
    if not work.num_layers:
        return "exit"
    return "verify" if work.num_syncs else "segment"


def cpu(grid: LawGrid, seconds: Seconds) -> Result:
    """Print the errors on this machine."""
    use_one_thread()
    profiles, noise = cpu_profiles(grid, seconds)
    # The bookkeeping of a round runs on the host and does not depend on the model.
    observations = [
        observation for profile in profiles for observation in profile_observations(profile) if not observation.work.num_rounds
    ]
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
    parser.add_argument("--data", type=Path, default=SHARED_DATA, metavar="DIR", help="folder with gpu_layer_times.csv")

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
            provenance=make_provenance(libraries=("numpy", "scipy", "torch"), device=device, seed=SEED),
            details={"gpu_errors": gpu_errors},
        )
        return 0

    return run_command(parser, None, run)


if __name__ == "__main__":
    sys.exit(main())
