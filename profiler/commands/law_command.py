"""What `s2d-profile law` does: time small models in turns, keep their profiles, name the next command."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
import torch

from perfmodel.core.console import Progress, keep_progress, print_err, print_out, save_or_warn, table
from perfmodel.core.cpu_contention import Contention
from perfmodel.core.disk import writable_folder
from perfmodel.core.errors import UserInputError
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Seconds, format_seconds
from perfmodel.models.geometry import DraftGeometry
from perfmodel.passes.device_key import EngineMode
from perfmodel.passes.pauses import find_pauses, pauses_text
from profiler.latency.kernel_trial import ChosenKernels, choose_kernels, recorded_kernels
from profiler.latency.latency_files import LatencyFiles
from profiler.latency.measure_law import LawGrid, law_models, law_profiles, measure_law
from profiler.latency.pass_log import PassLog
from profiler.latency.profiling_job import SAVE_EVERY_S
from profiler.machine.machine_facts import device_facts
from s2d.loading.load_model import LoadedModel
from s2d.model.torch_device import device_key, engine_for, use_device

CPU_HIDDEN_SIZES, CPU_VOCAB_SIZE = (128, 256, 512), 2048
CUDA_HIDDEN_SIZES, CUDA_VOCAB_SIZE = (1024, 2048, 4096), 32_000
"""Narrower models do not keep a GPU busy, and a wider vocabulary would be most of a CPU's small ones."""


def profile_law(args: argparse.Namespace, *, argv: Sequence[str] | None) -> int:
    """The command, its arguments parsed."""
    use_device(args.device)
    if args.threads < 1 or args.budget < 0:
        raise UserInputError(f"--threads {args.threads}, --budget {args.budget:g}: expected at least 1 and at least 0 seconds")
    engine = engine_for(args.engine, args.device, 1)
    torch.set_num_threads(args.threads)
    with writable_folder(args.output):
        return _profile_law(grid_of(args), args, engine, argv=argv)


def _profile_law(grid: LawGrid, args: argparse.Namespace, engine: EngineMode, *, argv: Sequence[str] | None) -> int:
    chosen = _kernels(grid, args, engine)
    models = law_models(grid, args.dtype, args.device, engine=engine, kernels=chosen.kernels, seed=args.seed)
    facts = device_facts(models[0].decoder.device)
    provenance = make_provenance(
        argv=argv, device=facts.label, driver=facts.driver, libraries=("torch", "numpy"), seed=args.seed
    )
    contention = Contention()
    files = [
        LatencyFiles(args.output, partial(law_profiles, model=model, kernel_trials=chosen.trials), provenance, contention)
        for model in models
    ]
    logs = [one.resumed() for one in files]
    print_out(
        f"{len(models)} models of {min(args.depths)} to {max(args.depths)} layers on {facts.label}, {args.dtype}, {engine}"
    )
    if kept := sum(map(len, logs)):
        print_err(f"going on with the {kept} passes kept in {args.output}")
    try:
        _measure(models, grid, logs, files, args)
    finally:  # whatever ended it, a disk that is full included
        if any(map(len, logs)):
            print_out("\n" + _medians(models, logs, grid))
    if (busy := contention.warning) is not None:
        print_err(f"warning: {busy}")
    for model, log in zip(models, logs, strict=True):
        if (paused := pauses_text(find_pauses(log.samples()).values())) is not None:
            print_err(f"warning: {model.geometry.name}: {paused}")
    print_out(f"wrote {sum(len(one.write(log)) for one, log in zip(files, logs, strict=True))} profiles in {args.output}")
    folder = shlex.quote(str(args.output))  # the shell fills in the asterisk behind it
    print_out(f"\nnext: s2d-plan fit {folder}/*.latency.json -o {folder}/law.fit.json")
    return 0


def _kernels(grid: LawGrid, args: argparse.Namespace, engine: EngineMode) -> ChosenKernels:
    """What all models compute with: timed on the largest."""
    largest = grid.geometries[-1]
    return choose_kernels(
        args.kernels,
        largest,
        DraftGeometry(kind="separate", model=largest, exit_layers=(largest.num_layers,)),
        args.dtype,
        args.device,
        engine=engine,
        recorded=recorded_kernels(args.output, device_key(torch.device(args.device), args.dtype, engine)),
    )


def grid_of(args: argparse.Namespace) -> LawGrid:
    """The shapes that the arguments ask for.

    Raises:
        UserInputError: a shape that cannot be made.
    """
    is_cuda = args.device.startswith("cuda")
    try:
        return LawGrid(
            shapes=tuple(product(args.depths, args.hidden_sizes or (CUDA_HIDDEN_SIZES if is_cuda else CPU_HIDDEN_SIZES))),
            rows=tuple(args.rows),
            cached_tokens=tuple(args.context_tokens),
            vocab_size=CUDA_VOCAB_SIZE if is_cuda else CPU_VOCAB_SIZE,
        )
    except ValueError as err:
        raise UserInputError(f"--depths, --hidden-sizes, --rows, --context-tokens: {err}") from err


def _measure(
    models: Sequence[LoadedModel],
    grid: LawGrid,
    logs: Sequence[PassLog],
    files: Sequence[LatencyFiles],
    args: argparse.Namespace,
) -> None:
    """Fill the logs; kept every `SAVE_EVERY_S` and at Ctrl-C."""
    progress = Progress("law", max(1, round(args.budget)))
    shown_s, saved_s = 0, time.perf_counter()

    def save() -> None:
        for one, log in zip(files, logs, strict=True):
            one.write_partial(log)

    def on_sweep(spent_s: Seconds) -> None:
        nonlocal shown_s, saved_s
        if (whole := min(round(spent_s), round(args.budget))) > shown_s:
            progress.step(f"{sum(map(len, logs))} passes", units=whole - shown_s)
            shown_s = whole
        if time.perf_counter() - saved_s >= SAVE_EVERY_S:
            save_or_warn(save)
            saved_s = time.perf_counter()

    rng = np.random.default_rng([args.seed, *map(len, logs)])
    with keep_progress(files[0].partial_paths[0]), progress:
        try:
            measure_law(models, grid, logs, args.budget, rng=rng, on_sweep=on_sweep)
        except KeyboardInterrupt:
            save()
            raise


def _medians(models: Sequence[LoadedModel], logs: Sequence[PassLog], grid: LawGrid) -> str:
    """A line per model: what one row and the widest pass take through all its layers."""
    rows = []
    for model, log in zip(models, logs, strict=True):
        seconds = {key.rows: np.median(found) for key, found in log.seconds_by_key().items() if key.kind == "verify"}
        widths = [width for width in (1, max(grid.rows)) if width in seconds]
        rows.append([model.geometry.name, str(len(log)), *(format_seconds(float(seconds[width])) for width in widths)])
        rows[-1].extend([""] * (4 - len(rows[-1])))
    return table(rows, headers=["model", "passes", "1 row", f"{max(grid.rows)} rows"])
