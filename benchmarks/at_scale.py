"""What speedup does a plan give at the size of real models, without their weights?

Target and draft have the shapes of real models and random weights. Every pass, exit check, verification and rollback of the
runtime runs, while the tokens of exits and target come from an acceptance trace (`s2d.decoding.scripted_acceptance`). The
shipped traces belong to the published S2D draft (docs/published-acceptance.md). --acceptance selects the trace of another
target instead.

The prompts of the trace are split into halves. On the calibration half, pass times are measured in the running loop, and a
policy is searched with them (or read with --plan). Profiling continues with one run before every measured prompt, because a
machine may change. On the evaluation half, the arms are plain decoding, the plan, the published thresholds, the same running
ahead, and the best single exit. They run on every prompt in a random order and then in reverse. The benchmark stops if the
rounds of a run differ from the replayed rounds. The acceptance therefore has no error, and the error of a prediction is one of
seconds.

    bandwidth   bytes of weights and KV cache that plain decoding reads per second, against the device's datasheet
    exit check  seconds of one check on an idle device, and the part for choosing and reading on the host
    noise       plain decoding against itself, forward against reverse runs

Both models compute with the fastest kernels of the device (`profiler.latency.kernel_trial`), or with those of --kernels.

A target that does not fit in the device's memory is refused, unless --layers cuts it; the result then names the cut. `--layers
fit` keeps as many layers as fit. With --quick, both models keep their kind but are tiny. This only shows that everything runs.

With -o, FOLDER also gets the evidence: draft.latency.json and target.latency.json with the pass times, as s2d-profile writes
them, and trace.npz with the acceptance, labelled with these models. s2d-plan can plan from these files.

Example: python benchmarks/at_scale.py --target llama-2-7b --acceptance vicuna-7b --device cuda
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from calibrate.planning.candidates import paper_policies
from calibrate.search.scenario import Scenario
from calibrate.search.search import search
from details.scale_models import acceptance_of, draft_of, tiny
from details.scale_result import AHEAD, PAPER, PLAN, SINGLE, ScaleResult, arms_table, readings_text
from perfmodel.acceptance.trace import TRACE_FILE, Trace
from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command
from perfmodel.core.errors import Mismatch, OutOfDomain, UserInputError
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import MIB, Seconds
from perfmodel.latency.lower_bound import MAX_CACHE_BYTES
from perfmodel.models.find_model import find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.policies.policy import Policy
from perfmodel.replay.estimate import Speedup
from perfmodel.results.plan import PLAN_FILE, Plan
from profiler.latency.kernel_trial import choose_kernels, recorded_kernels
from profiler.latency.latency_files import LatencyFiles, pair_profiles
from profiler.latency.measure_latency import measure_latency
from profiler.latency.pass_log import PassLog
from profiler.machine.machine_facts import DeviceFacts, device_facts
from profiler.profiling.profile_request import TRACE_NAME
from s2d.decoding.pair import ModelPair
from s2d.decoding.random_pair import fitting_layers, random_pair, with_layers
from s2d.loading.memory import PairPlacement, TextLimits, free_device_bytes
from s2d.model.torch_device import device_key, mode_for, use_device
from shared.common import RESULTS, add_device_flags, finish, make_parser, use_one_thread
from shared.device_readings import datasheet_models, measure_exit_check, plain_bandwidth, release_memory
from shared.interleaved import Models, measured_models
from shared.scripted import PLAIN, ScriptedArm, Texts, measure, predict, profiling_steps, shortened, texts_from_half

NAME = "at_scale"
SEED = 20261121
QUICK_TRIAL_BYTES = MIB // 16
"""Total weights of the layers that kernels are timed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Amount of measurement, unless flags change it."""

    prompt_tokens: int
    max_new_tokens: int
    num_prompts: int
    num_repeats: int
    budget_s: Seconds
    """Seconds for pass times."""


FULL = Size(prompt_tokens=512, max_new_tokens=128, num_prompts=6, num_repeats=1, budget_s=120.0)
QUICK = Size(prompt_tokens=32, max_new_tokens=32, num_prompts=6, num_repeats=1, budget_s=15.0)


def plan_for(path: Path | None, target: ModelGeometry) -> Plan | None:
    """A plan file, if one is given.

    Raises:
        Mismatch: it was made for another target.
    """
    if path is None:
        return None
    plan = PLAN_FILE.read(path).record
    if plan.target.name != target.name:
        fix = "Give the target it was made for, or another plan"
        raise Mismatch(f"plan {str(path)!r}", made_for=plan.target.name, given=target.name, fix=fix)
    return plan


def policies_of(plan: Plan | None, texts: Texts, models: Models) -> dict[str, Policy | None]:
    """The policies to measure, with plain decoding first. A policy with two names is measured once."""
    result, paper = search([Scenario(texts.trace, *models)]), next(iter(paper_policies(texts.trace)), None)
    named = {
        PLAIN: None,
        PLAN: plan.chosen.policy if plan else result.chosen.policy,
        PAPER: paper,
        AHEAD: paper and replace(paper, runs_ahead=True),
        SINGLE: next(iter(result.single_exits), None),
    }
    by_policy = {policy: name for name, policy in reversed(named.items())}
    return {name: policy for name, policy in named.items() if by_policy[policy] == name}


def trace_for(trace: Trace, pair: ModelPair) -> Trace:
    """The trace of the acceptance, labelled with a pair's models.

    A published trace has no weights' hashes. The copy has none either, because a plan calls acceptance *traced* only if it has
    them.
    """
    header = replace(trace.header, target_model=pair.target.geometry)
    if header.target_sha256 is None:
        return replace(trace, header=header.with_draft(pair.geometry, None))
    header = replace(header.with_draft(pair.geometry, pair.draft.sha256), target_sha256=pair.target.sha256)
    return replace(trace, header=header)


def write_evidence(measured: ScaleResult, folder: Path, facts: DeviceFacts) -> tuple[Path, ...]:
    """Write the evidence for a plan: pass times, their provenance, and acceptance. Returns the files."""
    inputs = {"acceptance": measured.acceptance.evidence.sha256 or ""}
    provenance = make_provenance(
        device=facts.label, driver=facts.driver, libraries=("torch", "numpy"), seed=SEED, inputs=inputs
    )
    TRACE_FILE.write(folder / TRACE_NAME, trace_for(measured.trace, measured.pair), provenance)
    if not len(measured.log):
        return (folder / TRACE_NAME,)
    sampling = measured.trace.header.sampling
    profiles_of = partial(pair_profiles, pair=measured.pair, sampling=sampling, kernel_trials=measured.kernel_trials)
    return (*LatencyFiles(folder, profiles_of, provenance).write(measured.log), folder / TRACE_NAME)


def layers_of(requested: str | None, models: PairPlacement, text: TextLimits) -> int | None:
    """The number of layers that the target keeps; None for all.

    Raises:
        UserInputError: not a number of layers.
    """
    if requested is None:
        return None
    if requested != "fit":
        if not requested.isdecimal():
            raise UserInputError(
                f"--layers {requested}: expected a number of layers, or fit: as many as fit in the device's memory."
            )
        return int(requested)
    # If no layer fits, None leads to the refusal of the whole target, with its reasons.
    return fitting_layers(models, text, free_device_bytes(models.device)) or None


def measure_pair(args: argparse.Namespace) -> ScaleResult:
    """Build a pair, profile it, search a policy and measure the arms."""
    model = find_model(args.target)
    target = tiny(model) if args.quick else model
    acceptance, plan = acceptance_of(args.acceptance, model), plan_for(args.plan, model)
    trace = shortened(acceptance.trace, prompt_tokens=args.prompt_tokens, new_tokens=args.max_new_tokens)
    draft = draft_of(args.draft, target, trace.header.draft, is_tiny=args.quick)
    calibration, evaluation = (
        texts_from_half(trace, half, vocab_size=target.vocab_size, max_prompts=max_prompts, seed=SEED)
        for half, max_prompts in (("calibration", None), ("evaluation", args.num_prompts))
    )
    max_tokens = max(prompt.prompt_tokens for prompt in trace.header.prompts) + trace.header.max_new_tokens
    mode, device = mode_for(args.mode, args.device, 1), torch.device(args.device)
    recorded = recorded_kernels(args.output, device_key(device, args.dtype, mode))
    min_weight_bytes = QUICK_TRIAL_BYTES if args.quick else 2 * MAX_CACHE_BYTES
    models = PairPlacement(target=target, draft=draft, dtype=args.dtype, device=device, mode=mode)
    chosen = choose_kernels(args.kernels, models, recorded=recorded, min_weight_bytes=min_weight_bytes)
    print_err(f"kernels {chosen.kernels.label}, {'measured' if chosen.trials else 'not measured'}")
    release_memory(device)
    text = TextLimits(
        max_tokens=max_tokens,
        prompt_tokens=max_tokens,
        num_noise_tables=int(trace.header.sampling.rule == "shared-noise"),
    )
    cut = with_layers(target, layers_of(args.layers, models, text))
    draft = replace(draft, model=cut) if draft.kind == "self" else draft
    pair = random_pair(replace(models, target=cut, draft=draft), text, kernels=chosen.kernels, seed=SEED)
    print_err(f"{pair.label}, random weights, {args.dtype} on {args.device}, {mode}")
    session, rng = pair.session(max_tokens), np.random.default_rng(SEED)
    log, sampling = PassLog(), trace.header.sampling
    profiling = profiling_steps(session, calibration, log, seed=SEED)
    policies: dict[str, Policy | None] = {PLAIN: None}
    if not args.plain_only:
        print_err(f"pass times, {args.budget:g} s")
        measure_latency(profiling, args.budget)
        policies = policies_of(plan, calibration, measured_models(log, pair, sampling))
    print_err(f"measuring {', '.join(policies)}")
    between = profiling.__next__ if len(log) else lambda: None
    arms = measure(session, evaluation, policies, num_repeats=args.repeats, rng=rng, between=between)
    return ScaleResult(
        pair=pair,
        acceptance=acceptance,
        stands_in=acceptance.trace.header.target.name != model.name or args.draft is not None,
        is_whole=cut is model,
        trace=trace,
        log=log,
        kernel_trials=chosen.trials,
        arms=arms,
        measured={arm.name: arm.measured(arms[0]) for arm in arms},
        predicted=predictions(arms, evaluation, measured_models(log, pair, sampling)) if len(log) else {},
        by_datasheet=predictions(arms, evaluation, roofline) if (roofline := datasheet_models(pair)) else {},
        bandwidth=plain_bandwidth(pair, [run.rounds for run in arms[0].all_runs], arms[0].decode_s),
        exit_check=measure_exit_check(pair),
    )


def predictions(arms: Sequence[ScriptedArm], texts: Texts, models: Models) -> dict[str, Speedup]:
    """Predictions of all arms from replay and pass times. An arm that needs an unprofiled pass is reported and left out."""
    speedups = {}
    for arm in arms:
        try:
            speedups[arm.name] = predict(arm.policy, texts, models)
        except OutOfDomain as err:
            print_err(f"{arm.name} has no prediction: {err}")
    return speedups


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    size = QUICK if args.quick else FULL
    for name in ("prompt_tokens", "max_new_tokens", "num_prompts"):
        setattr(args, name, getattr(args, name) or getattr(size, name))
    args.repeats, args.budget = args.repeats or size.num_repeats, args.budget or size.budget_s
    args.dtype = args.dtype or ("bf16" if args.device.startswith("cuda") else "fp32")
    use_device(args.device)
    use_one_thread()
    measured = measure_pair(args)
    facts = device_facts(measured.pair.device)
    print_out(f"{measured.pair.label}, random weights, {args.dtype} on {facts.label}\n\n{arms_table(measured)}\n")
    print_out(readings_text(measured))
    finish(
        NAME if args.output == RESULTS else f"{NAME}.{args.target}{'.plain' if args.plain_only else ''}",
        quick=args.quick,
        result=measured.as_json,
        provenance=make_provenance(
            libraries=("torch", "numpy"),
            device=facts.label,
            driver=facts.driver,
            seed=SEED,
            inputs={"acceptance": measured.acceptance.evidence.sha256 or ""},
        ),
        details={"arms": measured.details(), "kernel_trials": [asdict(trial) for trial in measured.kernel_trials]},
        folder=args.output,
    )
    if args.output != RESULTS:  # after the result, so that a failed write does not lose it
        print_err("wrote " + ", ".join(map(str, write_evidence(measured, args.output, facts))))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    target_help = "a known model; with --quick a tiny one of its kind (default: vicuna-7b)"
    add("--target", default="vicuna-7b", metavar="NAME", help=target_help)
    add("--draft", metavar="NAME", help="a model whose first layers draft, with the traced exits (default: the traced draft)")
    add("--acceptance", metavar="NAME", help="a target with a shipped trace, or trace.npz (default: the target's own)")
    add("--layers", metavar="N", help="keep the target's first N layers; fit: as many as fit in memory")
    add("--plan", type=Path, metavar="FILE", help="a plan from s2d-plan (default: search a policy)")
    add("--plain-only", action="store_true", help="measure plain decoding only")
    add_device_flags(parser)
    add("--dtype", choices=("fp32", "bf16", "fp16"), help="compute dtype (default: bf16 on a GPU, else fp32)")
    add("--mode", choices=("eager", "graph"), help="launch kernels one by one, or as CUDA graphs (default: graph on a GPU)")
    kernels_help = "measured, standard, or names as for s2d-profile (default: measured on a GPU, else standard)"
    add("--kernels", metavar="NAMES", help=kernels_help)
    add("--prompt-tokens", type=int, metavar="TOKENS", help=f"default: {FULL.prompt_tokens}")
    add("--max-new-tokens", type=int, metavar="TOKENS", help=f"default: {FULL.max_new_tokens}")
    add("--num-prompts", type=int, metavar="N", help=f"maximum number of measured prompts (default: {FULL.num_prompts})")
    add("--repeats", type=int, metavar="N", help="repeats of every prompt, forward and reverse (default: 1)")
    add("--budget", type=float, metavar="SECONDS", help=f"duration of the latency measurement (default: {FULL.budget_s:g})")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
