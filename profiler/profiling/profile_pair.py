"""Profile a target and its draft: pass times, and acceptance at every exit."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from perfmodel.acceptance.trace import TRACE_FILE, Trace
from perfmodel.core.console import Progress, keep_progress, print_err
from perfmodel.core.cpu_contention import Contention
from perfmodel.core.disk import PathLike, writable_folder
from perfmodel.core.errors import UserInputError
from perfmodel.core.provenance import Provenance, make_provenance
from perfmodel.core.torchrun import torchrun_command
from perfmodel.core.units import Seconds, Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import SELF_DRAFT, tensor_parallel_degrees
from perfmodel.passes.latency_profile import PROFILE_FILE, LatencyProfile
from perfmodel.policies.sampling import GREEDY, Sampling
from profiler.acceptance.record_acceptance import check_resumable, empty_trace, record_acceptance
from profiler.latency.budget import BudgetProgress
from profiler.latency.kernel_trial import ChosenKernels, choose_kernels, recorded_kernels
from profiler.latency.latency_files import LatencyFiles, pair_profiles
from profiler.latency.pass_log import missing_passes
from profiler.latency.profiling_job import ProfilingJob, fill_log
from profiler.machine.machine_facts import DeviceFacts, device_facts
from profiler.machine.measure_energy import measure_energy, nvml_sensor
from profiler.profiling.profile_request import (
    PARTIAL_TRACE_NAME,
    TRACE_NAME,
    Measurement,
    ProfileRequest,
    command_line,
    read_profile_prompts,
)
from profiler.profiling.profile_text import (
    acceptance_text,
    energy_text,
    latency_text,
    latency_warnings,
    off_path_text,
    repetition_text,
    understood_text,
)
from s2d.decoding.encode_prompts import encode_prompts
from s2d.decoding.pair import PairRequest, load_pair, pair_placement
from s2d.loading.exits import requested_exits
from s2d.model.torch_device import default_device, device_key, mode_for, use_device
from s2d.parallel.ranks import Ranks
from s2d.parallel.shard import Shard
from s2d.prompts.conversation import Prompt
from s2d.prompts.special_tokens import special_tokens_note

OnText = Callable[[str], None]
"""Receives each part of the text as soon as it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The result of `profile`: its files and their contents. `str()` is the text that `s2d-profile` prints."""

    latency_paths: tuple[Path, ...]
    """The profiles of draft and target, or of a target that drafts for itself; empty if latency was not measured."""
    latency: tuple[LatencyProfile, ...]
    """The contents of `latency_paths`."""
    trace_path: Path | None
    """None if acceptance was not measured."""
    trace: Trace | None
    next_command: str
    """The command that plans from these files, or that measures the other half."""
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.text


def profile(
    target: str,
    *,
    draft: str | None = None,
    prompts: PathLike | Sequence[str | Prompt] | None = None,
    output: PathLike = "profile",
    what: Measurement = "all",
    device: str | None = None,
    dtype: Dtype = "fp32",
    sampling: Sampling = GREEDY,
    num_prompts: int = 60,
    max_new_tokens: Tokens = 128,
    budget_s: Seconds = 90.0,
) -> Profile:
    """Measure pass times and acceptance on this machine. Progress and warnings go to stderr.

    `run_profile` takes a `ProfileRequest`, which has all options of `s2d-profile`.

    Args:
        target: a model folder, a name of the reference family (`ref-target-16`), or `org/name` on the Hugging Face hub.
        draft: as for `target`. None: the target drafts for itself with its first layers.
        prompts: a prompt file, or the prompts themselves. None takes the prompts of the reference family.
        output: the folder for the files. A repeated call continues an interrupted measurement there.
        what: `latency`, `acceptance` or `all`.
        device: `cpu`, `cuda` or `cuda:1`. None takes the GPU if there is one.
        dtype: the number type of weights and caches: `fp32`, `bf16` or `fp16`.
        sampling: how the target chooses its tokens, and when it accepts a drafted token.
        num_prompts: the maximum number of prompts to choose from a file.
        max_new_tokens: the maximum number of tokens that the target writes after each prompt.
        budget_s: the maximum duration of the latency measurement, in seconds.

    Raises:
        UserInputError: an input is missing, cannot be read, or does not fit the others or the memory.
        Mismatch: the folder holds an unfinished measurement of other models or settings.

    Example:
        >>> measured = s2d.profile("ref-target-16", draft="ref-draft", output="measured", num_prompts=2, budget_s=5)
        >>> [path.name for path in measured.latency_paths], measured.trace_path.name
        (['draft.latency.json', 'target.latency.json'], 'trace.npz')
        >>> measured.trace.confidence.shape[1]  # exits
        4
    """
    request = ProfileRequest(
        target=target,
        draft=SELF_DRAFT if draft is None else draft,
        what=what,
        output=Path(output),
        sampling=sampling,
        prompts=prompts,
        num_prompts=num_prompts,
        max_new_tokens=max_new_tokens,
        device=device or default_device(),
        dtype=dtype,
        budget_s=budget_s,
    )
    return run_profile(request, read_profile_prompts(request))


def run_profile(
    request: ProfileRequest,
    prompts: Sequence[Prompt],
    *,
    ranks: Ranks | None = None,
    command: Sequence[str] | None = None,
    on_text: OnText = lambda text: None,
) -> Profile:
    """Carry out a request; see `profile`.

    Args:
        request: the models and settings.
        prompts: from `read_profile_prompts`.
        ranks: the processes started by torchrun; None for one process.
        command: the command line for the provenance of the files; None takes that of the process.
        on_text: receives each part of the text as soon as it is known.
    """
    use_device(request.device)
    _check_sharing(request, ranks)
    torch.set_num_threads(request.threads)
    parts: list[str] = []

    def show(text: str) -> None:
        parts.append(text)
        on_text(text)

    with writable_folder(request.output):
        job = load_job(request, prompts, ranks)
        facts = device_facts(job.pair.device)
        libraries = ("torch", "transformers", "numpy")
        provenance = make_provenance(
            argv=command, device=facts.label, driver=facts.driver, libraries=libraries, seed=request.seed
        )
        show(understood_text(job, facts, request.split))
        latency_paths: tuple[Path, ...] = ()
        if request.measures_latency:
            files = _latency_files(job, request.output, provenance)
            if not _is_latency_finished(request, files):
                _measure_latency(job, files, request.budget_s, facts, show)
            latency_paths = files.paths
        trace = _record_trace(job, request.output, provenance, show) if request.measures_acceptance else None
        suggestion = next_command(request, ranks.num_ranks if ranks else 1)
        show(f"\nnext: {suggestion}")
        return Profile(
            latency_paths=latency_paths,
            latency=tuple(PROFILE_FILE.read(path).record for path in latency_paths),
            trace_path=None if trace is None else request.output / TRACE_NAME,
            trace=trace,
            next_command=suggestion,
            text="\n".join(parts),
        )


def load_job(request: ProfileRequest, prompts: Sequence[Prompt], ranks: Ranks | None = None) -> ProfilingJob:
    """Load the models of a request and encode its prompts.

    Raises:
        UserInputError: the models, or their caches for the longest text, do not fit in the device's memory.
    """
    mode = mode_for(request.mode, request.device, ranks.num_ranks if ranks else 1)
    models = PairRequest(
        target=request.target,
        draft=request.draft,
        dtype=request.dtype,
        device=request.device,
        exits=requested_exits(request.exits),
        mode=mode,
        shares_draft=request.share_draft,
    )
    chosen = _choose_kernels(request, models, ranks)
    pair = load_pair(replace(models, kernels=chosen.kernels), ranks)
    if (note := pair.exits.note) is not None:
        print_err(f"note: {note}")
    if (note := special_tokens_note(pair.tokenizer, prompts, request.special_tokens)) is not None:
        print_err(note)
    job = ProfilingJob(
        pair=pair,
        prompts=encode_prompts(
            pair,
            prompts,
            max_new_tokens=request.max_new_tokens,
            is_chat=request.chat,
            special_tokens=request.special_tokens,
        ),
        sampling=request.sampling,
        confidence=request.confidence,
        max_new_tokens=request.max_new_tokens,
        draft_cap=request.draft_cap,
        seed=request.seed,
        kernel_trials=chosen.trials,
        num_mistakes=request.num_mistakes,
    )
    pair.check_memory(job.text_limits)
    return job


def next_command(request: ProfileRequest, num_processes: int = 1) -> str:
    """The command that plans from the folder of a request, or first measures what the folder lacks.

    Args:
        request: the finished request.
        num_processes: processes that shared the target.
    """
    folder = request.output
    profiles = [word for path in sorted(folder.glob("*.latency.json")) for word in ("--profile", str(path))]
    trace_path = folder / TRACE_NAME
    if profiles and trace_path.exists():
        return shlex.join(["s2d-plan", *profiles, "--trace", str(trace_path), "-o", str(folder / "plan.json")])
    missing: Measurement = "acceptance" if profiles else "latency"
    return shlex.join(torchrun_command(command_line(replace(request, what=missing)), num_processes))


def _choose_kernels(request: ProfileRequest, models: PairRequest, ranks: Ranks | None) -> ChosenKernels:
    """The kernels of the pair. With several processes, rank 0 times its shard."""
    placement = pair_placement(models, ranks)
    here = device_key(placement.device, placement.dtype, placement.mode, placement.target_ranks)
    # If the target cannot be split over these processes, loading it raises the error.
    num_ranks = placement.target_ranks if placement.target_ranks in tensor_parallel_degrees(placement.target) else 1
    share = Shard(rank=0, num_ranks=num_ranks).geometry(placement.target)
    recorded = recorded_kernels(request.output, here)
    return choose_kernels(request.kernels, replace(placement, target=share), recorded=recorded)


def _check_sharing(request: ProfileRequest, ranks: Ranks | None) -> None:
    if request.share_draft and ranks is None:
        raise UserInputError("--share-draft: expected several processes to share it. Start s2d-profile with torchrun.")
    if request.share_draft and request.draft == SELF_DRAFT:
        raise UserInputError("--share-draft: a self-draft is always shared with its target. Leave --share-draft out.")


def _latency_files(job: ProfilingJob, folder: Path, provenance: Provenance) -> LatencyFiles:
    make_profiles = partial(pair_profiles, pair=job.pair, sampling=job.sampling, kernel_trials=job.kernel_trials)
    return LatencyFiles(folder, make_profiles, provenance, Contention())


def _is_latency_finished(request: ProfileRequest, files: LatencyFiles) -> bool:
    """Whether an interrupted request for both measurements had finished latency and stopped in acceptance."""
    is_finished = (
        request.what == "all" and (request.output / PARTIAL_TRACE_NAME).exists() and all(path.exists() for path in files.paths)
    )
    if is_finished:
        print_err(f"latency was measured before the interruption and is in {request.output}")
    return is_finished


def _measure_latency(job: ProfilingJob, files: LatencyFiles, budget_s: Seconds, facts: DeviceFacts, show: OnText) -> None:
    log = files.resumed()
    if len(log):
        print_err(f"continuing with the {len(log)} passes in {files.folder}")
    progress = BudgetProgress("latency", budget_s)

    def on_run(spent_s: Seconds, num_missing: int) -> None:
        progress.update(spent_s, f"{num_missing} shapes need more samples")

    try:
        with keep_progress(files.partial_paths[0]), progress, measure_energy(nvml_sensor(job.pair.device)) as meter:
            fill_log(job, log, budget_s, save=files.write_partial, on_run=on_run)
    finally:  # also after an error such as a full disk
        if len(log):
            show("\n" + latency_text(log))
    if meter is not None and meter.failure is None:
        show(energy_text(meter, facts))
    warnings = latency_warnings(log, unseen=missing_passes(log, job.needed_passes(), 1))
    if (busy := files.contention_warning) is not None:
        warnings.append(busy)
    if meter is not None and meter.failure is not None:
        warnings.append(f"the power sensor failed ({meter.failure}): energy is left out; all other values are complete")
    for warning in warnings:
        print_err(f"warning: {warning}")
    show("wrote " + ", ".join(map(str, files.write(log))))


def _record_trace(job: ProfilingJob, folder: Path, provenance: Provenance, show: OnText) -> Trace:
    path, partial_path = folder / TRACE_NAME, folder / PARTIAL_TRACE_NAME
    recorder = job.exit_recorder(job.session())
    trace = empty_trace(recorder.header)
    if partial_path.exists():
        trace = TRACE_FILE.read(partial_path).record
        check_resumable(partial_path, trace.header, recorder.header, job.prompts)
        print_err(f"continuing after the {len(trace.header.prompts)} prompts in {partial_path}")

    def save(unfinished: Trace) -> None:
        nonlocal trace
        trace = unfinished
        TRACE_FILE.write(partial_path, unfinished, provenance)

    num_left = len(job.prompts) - len(trace.header.prompts)
    try:
        with keep_progress(partial_path), Progress("acceptance", num_left) as progress:
            trace = record_acceptance(
                lambda index: recorder.trace(job.prompts[index]),
                len(job.prompts),
                trace,
                save=save,
                on_prompt=lambda prompt: progress.step(prompt.name),
            )
    finally:  # also after an error such as a full disk
        if trace.header.prompts:
            lines = [acceptance_text(trace, job.pair.draft.calibration), repetition_text(trace), *off_path_text(trace)]
            show("\n" + "\n".join(lines))
    TRACE_FILE.write(path, trace, provenance)
    partial_path.unlink(missing_ok=True)
    show(f"wrote {path}")
    return trace
