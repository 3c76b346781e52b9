"""What `s2d-profile` does, in order: load, print what was understood, measure, trace, name the next command."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from perfmodel.acceptance.trace import TRACE_FILE, Trace
from perfmodel.core.console import Progress, keep_progress, print_err, print_out
from perfmodel.core.cpu_contention import Contention
from perfmodel.core.disk import writable_folder
from perfmodel.core.errors import UserInputError
from perfmodel.core.provenance import Provenance, make_provenance
from perfmodel.core.units import Seconds
from perfmodel.models.geometry import SELF_DRAFT, tensor_parallel_degrees
from perfmodel.policies.sampling import AcceptanceRule, Sampling
from profiler.acceptance.record_acceptance import check_resumable, empty_trace, record_acceptance
from profiler.commands.profile_inputs import PARTIAL_TRACE_NAME, TRACE_NAME
from profiler.commands.profile_text import (
    acceptance_text,
    energy_text,
    latency_text,
    latency_warnings,
    off_path_text,
    repetition_text,
    understood_text,
)
from profiler.latency.kernel_trial import ChosenKernels, choose_kernels, recorded_kernels
from profiler.latency.latency_files import LatencyFiles, pair_profiles
from profiler.latency.pass_log import missing_passes
from profiler.latency.profiling_job import ProfilingJob, fill_log
from profiler.machine.machine_facts import DeviceFacts, device_facts
from profiler.machine.measure_energy import measure_energy, nvml_sensor
from s2d.decoding.encode_prompts import encode_prompts
from s2d.decoding.pair import PairRequest, load_pair, pair_placement
from s2d.loading.exits import requested_exits
from s2d.model.torch_device import device_key, engine_for, use_device
from s2d.parallel.ranks import Ranks
from s2d.parallel.shard import Shard
from s2d.prompts.conversation import Prompt
from s2d.prompts.special_tokens import special_tokens_note


def profile(
    args: argparse.Namespace, prompts: Sequence[Prompt], *, argv: Sequence[str] | None, ranks: Ranks | None = None
) -> int:
    """The command, its arguments parsed and its prompts read, with the processes that torchrun started, if it did."""
    use_device(args.device)
    _check_sharing(args, ranks)
    torch.set_num_threads(args.threads)
    with writable_folder(args.output):
        return _profile(job_of(args, prompts, ranks), args, argv=argv)


def _profile(job: ProfilingJob, args: argparse.Namespace, *, argv: Sequence[str] | None) -> int:
    facts = device_facts(job.pair.device)
    provenance = make_provenance(
        argv=argv, device=facts.label, driver=facts.driver, libraries=("torch", "transformers", "numpy"), seed=args.seed
    )
    print_out(understood_text(job, facts, args.split))
    if args.what == "latency" or (args.what == "all" and not _was_interrupted_later(args.output)):
        _latency(job, args, facts, provenance)
    if args.what in ("all", "acceptance"):
        _acceptance(job, args.output, provenance)
    print_out(f"\nnext: {next_command(args.output, sys.argv if argv is None else argv, args.what)}")
    return 0


def job_of(args: argparse.Namespace, prompts: Sequence[Prompt], ranks: Ranks | None = None) -> ProfilingJob:
    """Load what the arguments name.

    Raises:
        UserInputError: the models, or the caches of their longest text, do not fit in the device's memory.
    """
    sampling = sampling_of(args)
    engine = engine_for(args.engine, args.device, ranks.num_ranks if ranks else 1)
    request = PairRequest(
        target=args.target,
        draft=args.draft,
        dtype=args.dtype,
        device=args.device,
        exits=requested_exits(args.exits),
        engine=engine,
        shares_draft=args.share_draft,
    )
    choice = _kernels(args, request, ranks)
    pair = load_pair(replace(request, kernels=choice.kernels), ranks)
    if (note := pair.exits.note) is not None:
        print_err(f"note: {note}")
    if (note := special_tokens_note(pair.tokenizer, prompts, args.special_tokens)) is not None:
        print_err(note)
    job = ProfilingJob(
        pair=pair,
        prompts=encode_prompts(
            pair, prompts, max_new_tokens=args.max_new_tokens, is_chat=args.chat, special_tokens=args.special_tokens
        ),
        sampling=sampling,
        confidence=args.confidence,
        max_new_tokens=args.max_new_tokens,
        draft_cap=args.draft_cap,
        seed=args.seed,
        kernel_trials=choice.trials,
        num_mistakes=args.off_path,
    )
    pair.check_memory(job.text_limits)
    return job


def _kernels(args: argparse.Namespace, request: PairRequest, ranks: Ranks | None) -> ChosenKernels:
    """The kernels of the pair; rank 0 of several processes times its share."""
    models = pair_placement(request, ranks)
    here = device_key(models.device, models.dtype, models.engine, models.target_ranks)
    # A number of processes that cannot share the target is refused when it is loaded.
    num_ranks = models.target_ranks if models.target_ranks in tensor_parallel_degrees(models.target) else 1
    return choose_kernels(
        args.kernels,
        Shard(rank=0, num_ranks=num_ranks).geometry(models.target),
        models.draft,
        request.dtype,
        request.device,
        engine=request.engine,
        recorded=recorded_kernels(args.output, here),
    )


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The sampling that the flags ask for; without a rule, shared noise above temperature 0.

    Raises:
        UserInputError: flags that contradict each other.
    """
    rule: AcceptanceRule = args.rule or ("greedy" if args.temperature == 0 else "shared-noise")
    try:
        return Sampling(
            rule=rule,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=None if rule == "greedy" else args.seed,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            presence_penalty=args.presence_penalty,
            frequency_penalty=args.frequency_penalty,
        )
    except ValueError as err:
        raise UserInputError(f"sampling flags: {err}") from err


def next_command(folder: Path, command: Sequence[str], what: str) -> str:
    """How to turn what is in a folder into a plan.

    Args:
        folder: holds what was measured.
        command: the one that measured it, its program first.
        what: of `all`, `latency` and `acceptance` it measured.
    """
    profiles = [word for path in sorted(folder.glob("*.latency.json")) for word in ("--profile", str(path))]
    traced = folder / TRACE_NAME
    if not profiles or not traced.exists():
        return shlex.join(_measuring(command, what, "acceptance" if profiles else "latency"))
    return shlex.join(["s2d-plan", *profiles, "--trace", str(traced), "-o", str(folder / "plan.json")])


def _measuring(command: Sequence[str], what: str, other: str) -> list[str]:
    """The same command, measuring the other thing: `what` is its one word that is no flag and follows none that takes one."""
    words, before = list(command), ""
    for place, word in enumerate(words):
        if word == what and (not before.startswith("-") or "=" in before or before in ("-v", "--verbose")):
            words[place] = other
        before = word
    return words


def _was_interrupted_later(folder: Path) -> bool:
    """Whether an earlier command had finished latency and stopped inside acceptance."""
    if not (folder / PARTIAL_TRACE_NAME).exists() or not any(folder.glob("*.latency.json")):
        return False
    print_err(f"latency was measured before the interruption and is in {folder}")
    return True


def _latency(job: ProfilingJob, args: argparse.Namespace, facts: DeviceFacts, provenance: Provenance) -> None:
    contention = Contention()
    profiles_of = partial(pair_profiles, pair=job.pair, sampling=job.sampling, kernel_trials=job.kernel_trials)
    files = LatencyFiles(args.output, profiles_of, provenance, contention)
    log = files.resumed()
    if len(log):
        print_err(f"going on with the {len(log)} passes kept in {args.output}")
    progress = Progress("latency", max(1, round(args.budget)))
    shown_s = 0

    def on_run(spent_s: Seconds, num_missing: int) -> None:
        nonlocal shown_s
        if (whole := min(round(spent_s), round(args.budget))) > shown_s:
            progress.step(f"{num_missing} shapes need more samples", units=whole - shown_s)
            shown_s = whole

    try:
        with keep_progress(files.partial_paths[0]), progress, measure_energy(nvml_sensor(job.pair.device)) as meter:
            fill_log(job, log, args.budget, save=files.write_partial, on_run=on_run)
    finally:  # whatever ended it, a disk that is full included
        if len(log):
            print_out("\n" + latency_text(log))
    if meter is not None and meter.failure is None:
        print_out(energy_text(meter, facts))
    warnings = latency_warnings(log, never=missing_passes(log, job.needed_passes(), 1))
    if (busy := contention.warning) is not None:
        warnings.append(busy)
    if meter is not None and meter.failure is not None:
        warnings.append(f"the power sensor failed ({meter.failure}): energy is left out, and everything else was measured")
    for warning in warnings:
        print_err(f"warning: {warning}")
    print_out("wrote " + ", ".join(map(str, files.write(log))))


def _acceptance(job: ProfilingJob, folder: Path, provenance: Provenance) -> None:
    path, partial = folder / TRACE_NAME, folder / PARTIAL_TRACE_NAME
    recorder = job.exit_recorder(job.session())
    trace = empty_trace(recorder.header)
    if partial.exists():
        trace = TRACE_FILE.read(partial).record
        check_resumable(partial, trace.header, recorder.header, job.prompts)
        print_err(f"going on after the {len(trace.header.prompts)} prompts kept in {partial}")

    def save(unfinished: Trace) -> None:
        nonlocal trace
        trace = unfinished
        TRACE_FILE.write(partial, unfinished, provenance)

    num_left = len(job.prompts) - len(trace.header.prompts)
    try:
        with keep_progress(partial), Progress("acceptance", num_left) as progress:
            trace = record_acceptance(
                lambda number: recorder.trace(job.prompts[number]),
                len(job.prompts),
                trace,
                save=save,
                on_prompt=lambda prompt: progress.step(prompt.name),
            )
    finally:  # whatever ended it, a disk that is full included
        if trace.header.prompts:
            lines = [acceptance_text(trace, job.pair.draft.calibration), repetition_text(trace), *off_path_text(trace)]
            print_out("\n" + "\n".join(lines))
    TRACE_FILE.write(path, trace, provenance)
    partial.unlink(missing_ok=True)
    print_out(f"wrote {path}")


def _check_sharing(args: argparse.Namespace, ranks: Ranks | None) -> None:
    if args.share_draft and ranks is None:
        raise UserInputError("--share-draft: expected several processes to share it. Start s2d-profile with torchrun.")
    if args.share_draft and args.draft == SELF_DRAFT:
        raise UserInputError("--share-draft: a self-draft is shared with its target in any case. Leave it out.")
