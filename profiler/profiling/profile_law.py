"""Profile small models of many shapes, to fit the latency law of a device."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from perfmodel.core.console import keep_progress, print_err, table
from perfmodel.core.cpu_contention import Contention
from perfmodel.core.disk import PathLike, writable_folder
from perfmodel.core.errors import UserInputError
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Seconds, format_seconds
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import DraftGeometry
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.latency_profile import PROFILE_FILE, LatencyProfile
from perfmodel.passes.pauses import find_pauses, pauses_text
from profiler.latency.budget import BudgetProgress, PeriodicSave
from profiler.latency.kernel_trial import ChosenKernels, choose_kernels, recorded_kernels
from profiler.latency.latency_files import LatencyFiles
from profiler.latency.measure_law import LawGrid, law_models, law_profiles, measure_law
from profiler.latency.pass_log import PassLog
from profiler.machine.machine_facts import device_facts
from profiler.profiling.profile_request import LawRequest
from s2d.loading.load_model import LoadedModel
from s2d.loading.memory import PairPlacement
from s2d.model.torch_device import default_device, device_key, mode_for, use_device

CPU_HIDDEN_SIZES, CPU_VOCAB_SIZE = (128, 256, 512), 2048
CUDA_HIDDEN_SIZES, CUDA_VOCAB_SIZE = (1024, 2048, 4096), 32_000
"""Narrower models do not fill a GPU. On a CPU a larger vocabulary would dominate the small models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LawProfiles:
    """The result of `profile_law`: its files and their contents. `str()` is the text that `s2d-profile law` prints."""

    paths: tuple[Path, ...]
    """Two files per model: one as a draft, one as a target."""
    profiles: tuple[LatencyProfile, ...]
    """The contents of `paths`."""
    next_command: str
    """The command that fits the law to these files."""
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.text


def profile_law(
    *,
    output: PathLike = "law",
    device: str | None = None,
    dtype: Dtype = "fp32",
    depths: Sequence[int] = LawRequest().depths,
    hidden_sizes: Sequence[int] | None = None,
    budget_s: Seconds = 120.0,
) -> LawProfiles:
    """Time passes of small models with random weights on this machine. Progress and warnings go to stderr.

    `run_law` takes a `LawRequest`, which has all options of `s2d-profile law`.

    Args:
        output: the folder for the files. A repeated call continues an interrupted measurement there.
        device: `cpu`, `cuda` or `cuda:1`. None takes the GPU if there is one.
        dtype: the number type of weights and caches: `fp32`, `bf16` or `fp16`.
        depths: layers of the models.
        hidden_sizes: multiples of 64. None takes 128, 256 and 512 on a CPU, and 1024, 2048 and 4096 on a GPU.
        budget_s: the duration of the measurement without warm-up, in seconds.

    Raises:
        UserInputError: a shape is invalid, or the device does not exist.
        Mismatch: the folder holds an unfinished measurement of other models or settings.

    Example:
        >>> law = s2d.profile_law(device="cpu", depths=(1, 2), hidden_sizes=(64, 128), budget_s=2)
        >>> law.next_command
        's2d-plan fit law/*.latency.json -o law/law.fit.json'
    """
    request = LawRequest(
        output=Path(output),
        depths=tuple(depths),
        hidden_sizes=None if hidden_sizes is None else tuple(hidden_sizes),
        device=device or default_device(),
        dtype=dtype,
        budget_s=budget_s,
    )
    return run_law(request)


def run_law(
    request: LawRequest, *, command: Sequence[str] | None = None, on_text: Callable[[str], None] = lambda text: None
) -> LawProfiles:
    """Carry out a request; see `profile_law`.

    Args:
        request: the shapes and settings.
        command: the command line for the provenance of the files; None takes that of the process.
        on_text: receives each part of the text as soon as it is known.
    """
    use_device(request.device)
    grid, mode = law_grid(request), mode_for(request.mode, request.device, 1)
    torch.set_num_threads(request.threads)
    parts: list[str] = []

    def show(text: str) -> None:
        parts.append(text)
        on_text(text)

    with writable_folder(request.output):
        measurement = _prepare(request, grid, mode, command)
        show(measurement.title)
        if num_passes := sum(map(len, measurement.logs)):
            print_err(f"continuing with the {num_passes} passes in {request.output}")
        try:
            measurement.measure(request)
        finally:  # also after an error such as a full disk
            if any(map(len, measurement.logs)):
                show("\n" + measurement.medians_text())
        for warning in measurement.warnings():
            print_err(f"warning: {warning}")
        paths = measurement.write()
    folder = shlex.quote(str(request.output))  # the shell expands the asterisk after it
    fit_command = f"s2d-plan fit {folder}/*.latency.json -o {folder}/law.fit.json"
    show(f"wrote {len(paths)} profiles in {request.output}")
    show(f"\nnext: {fit_command}")
    return LawProfiles(
        paths=paths,
        profiles=tuple(PROFILE_FILE.read(path).record for path in paths),
        next_command=fit_command,
        text="\n".join(parts),
    )


def law_grid(request: LawRequest) -> LawGrid:
    """The shapes of a request.

    Raises:
        UserInputError: a shape is impossible.
    """
    is_cuda = request.device.startswith("cuda")
    hidden_sizes = request.hidden_sizes or (CUDA_HIDDEN_SIZES if is_cuda else CPU_HIDDEN_SIZES)
    try:
        return LawGrid(
            shapes=tuple(product(request.depths, hidden_sizes)),
            rows=request.rows,
            cached_tokens=request.context_tokens,
            vocab_size=CUDA_VOCAB_SIZE if is_cuda else CPU_VOCAB_SIZE,
        )
    except ValueError as err:
        raise UserInputError(f"--depths, --hidden-sizes, --rows, --context-tokens: {err}") from err


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measurement:
    """The models, and the passes and files of each."""

    title: str
    grid: LawGrid
    models: tuple[LoadedModel, ...]
    logs: tuple[PassLog, ...]
    files: tuple[LatencyFiles, ...]

    def measure(self, request: LawRequest) -> None:
        """Fill the logs. Save them periodically and at Ctrl-C."""
        progress, save = BudgetProgress("law", request.budget_s), PeriodicSave(self._write_partial)

        def on_sweep(spent_s: Seconds) -> None:
            progress.update(spent_s, f"{sum(map(len, self.logs))} passes")
            save()

        rng = np.random.default_rng([request.seed, *map(len, self.logs)])
        with keep_progress(self.files[0].partial_paths[0]), progress:
            try:
                measure_law(self.models, self.grid, self.logs, request.budget_s, rng=rng, on_sweep=on_sweep)
            except KeyboardInterrupt:
                self._write_partial()
                raise

    def warnings(self) -> list[str]:
        """Warnings about a busy machine, and about pauses in a model's passes."""
        warnings = [self.files[0].contention_warning]
        for model, log in zip(self.models, self.logs, strict=True):
            paused = pauses_text(find_pauses(log.samples()).values())
            warnings.append(None if paused is None else f"{model.geometry.name}: {paused}")
        return [warning for warning in warnings if warning is not None]

    def write(self) -> tuple[Path, ...]:
        """Write the finished profiles."""
        return tuple(path for files, log in zip(self.files, self.logs, strict=True) for path in files.write(log))

    def _write_partial(self) -> None:
        for files, log in zip(self.files, self.logs, strict=True):
            files.write_partial(log)

    def medians_text(self) -> str:
        """A line per model: median seconds of one row, and of the widest pass, through all its layers."""
        widest = max(self.grid.rows)
        lines = []
        for model, log in zip(self.models, self.logs, strict=True):
            medians = {key.rows: np.median(values) for key, values in log.seconds_by_key().items() if key.kind == "verify"}
            cells = [format_seconds(float(medians[rows])) for rows in (1, widest) if rows in medians]
            lines.append([model.geometry.name, str(len(log)), *cells, *[""] * (2 - len(cells))])
        return table(lines, headers=["model", "passes", "1 row", f"{widest} rows"])


def _prepare(request: LawRequest, grid: LawGrid, mode: LaunchMode, command: Sequence[str] | None) -> _Measurement:
    """Make the models, and read the passes of an unfinished measurement."""
    chosen = _choose_kernels(request, grid, mode)
    models = law_models(grid, request.dtype, request.device, mode=mode, kernels=chosen.kernels, seed=request.seed)
    facts = device_facts(models[0].decoder.device)
    provenance = make_provenance(
        argv=command, device=facts.label, driver=facts.driver, libraries=("torch", "numpy"), seed=request.seed
    )
    contention = Contention()
    files = tuple(
        LatencyFiles(request.output, partial(law_profiles, model=model, kernel_trials=chosen.trials), provenance, contention)
        for model in models
    )
    names = [model.geometry.name for model in models]
    title = names[0] if len(names) == 1 else f"{len(names)} models, {names[0]} to {names[-1]},"
    return _Measurement(
        title=f"{title} on {facts.label}, {request.dtype}, {mode}",
        grid=grid,
        models=models,
        logs=tuple(file.resumed() for file in files),
        files=files,
    )


def _choose_kernels(request: LawRequest, grid: LawGrid, mode: LaunchMode) -> ChosenKernels:
    """The kernels of all models, chosen by timing the largest."""
    largest, device = grid.geometries[-1], torch.device(request.device)
    draft = DraftGeometry(kind="separate", model=largest, exit_layers=(largest.num_layers,))
    placement = PairPlacement(target=largest, draft=draft, dtype=request.dtype, device=device, mode=mode)
    recorded = recorded_kernels(request.output, device_key(device, request.dtype, mode))
    return choose_kernels(request.kernels, placement, recorded=recorded)
