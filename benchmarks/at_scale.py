"""What would a plan give at the size of real models, without anyone's checkpoint?

Target and draft have the shapes of real models and random weights; every pass, exit check, verification and rollback of the
runtime runs, while what exits and target say is taken from an acceptance trace (`s2d.script`). A trace in the box is that of
the published S2D draft (docs/published-acceptance.md); one of another target stands in where --acceptance says so.

The trace's prompts are halved. On the calibration half pass times are taken inside the running loop, and a policy is searched
with them (or read: --plan); one more turn of them comes before every prompt that is measured, as a machine may change. On the
evaluation half the arms are measured: plain decoding, the plan, the published thresholds, the same running ahead, and the best
single exit, on every prompt in a random order and then backwards. A run whose rounds are not the replayed ones ends the
benchmark, so that acceptance has no error and a prediction's error is one of seconds.

    bandwidth   bytes of weights and cache that plain decoding reads a second, against the device's datasheet
    exit check  seconds of one check on an idle device, and what of it is choosing and reading on the host
    noise       plain decoding against itself, forward against backward turns

A target that the device does not hold is refused, or cut by --layers, which the result names. With --quick both models keep
their kind and lose their size, so that any CPU shows that everything runs, and nothing else.

Example: python benchmarks/at_scale.py --target llama-2-7b --acceptance vicuna-7b --device cuda
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from arms import Models, models_of
from common import RESULTS, finish, make_parser, one_thread
from readings import bandwidth_of, datasheet_models, exit_check_of
from scale_models import acceptance_of, draft_of, tiny
from scale_result import AHEAD, PAPER, PLAN, SINGLE, Found, arms_table, readings_text
from scripted import PLAIN, ScriptedArm, Texts, measure, predict, shortened, texts_of, turns_of

from calibrate.cases import case_of
from calibrate.plan import paper_policies
from calibrate.search import search
from perfmodel.console import add_verbose_flag, print_err, print_out, run_command
from perfmodel.errors import Mismatch, OutOfDomain
from perfmodel.estimate import Speedup
from perfmodel.geometry import ModelGeometry, find_model
from perfmodel.plan import Plan, read_plan
from perfmodel.policy import ExitPolicy
from perfmodel.units import Seconds
from profiler.device import device_facts
from profiler.measure_latency import measure_latency
from profiler.pass_log import PassLog
from s2d.device import engine_for, use_device
from s2d.random_pair import random_pair, with_layers

NAME = "at_scale"
SEED = 20261121


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much to measure, where no flag says otherwise."""

    prompt_tokens: int
    max_new_tokens: int
    num_prompts: int
    num_repeats: int
    budget_s: Seconds
    """For pass times."""


FULL = Size(prompt_tokens=512, max_new_tokens=128, num_prompts=6, num_repeats=1, budget_s=120.0)
QUICK = Size(prompt_tokens=32, max_new_tokens=32, num_prompts=6, num_repeats=1, budget_s=15.0)


def plan_for(path: Path | None, target: ModelGeometry) -> Plan | None:
    """A plan file, where one is given.

    Raises:
        Mismatch: it was made for another target.
    """
    if path is None:
        return None
    plan = read_plan(path).record
    if plan.target.name != target.name:
        fix = "Give the target it was made for, or another plan"
        raise Mismatch(f"plan {str(path)!r}", made_for=plan.target.name, given=target.name, fix=fix)
    return plan


def policies_of(plan: Plan | None, texts: Texts, models: Models) -> dict[str, ExitPolicy | None]:
    """What is measured: policies searched on some texts beside plain decoding; one that comes twice is measured once."""
    found, paper = search([case_of(texts.trace, *models)]), next(iter(paper_policies(texts.trace)), None)
    wanted = {
        PLAIN: None,
        PLAN: plan.chosen.policy if plan else found.chosen.policy,
        PAPER: paper,
        AHEAD: paper and replace(paper, runs_ahead=True),
        SINGLE: next(iter(found.single_exits), None),
    }
    by_policy = {policy: name for name, policy in reversed(wanted.items())}
    return {name: policy for name, policy in wanted.items() if by_policy[policy] == name}


def found_of(args: argparse.Namespace) -> Found:
    """Build, profile, search and measure."""
    model = find_model(args.target)
    target = with_layers(tiny(model) if args.quick else model, args.layers)
    acceptance, plan = acceptance_of(args.acceptance, model), plan_for(args.plan, model)
    trace = shortened(acceptance.trace, prompt_tokens=args.prompt_tokens, new_tokens=args.max_new_tokens)
    draft = draft_of(args.draft, target, trace.header.draft, is_tiny=args.quick)
    calibration, evaluation = (
        texts_of(trace, half, vocab_size=target.vocab_size, most=most, seed=SEED)
        for half, most in (("calibration", None), ("evaluation", args.num_prompts))
    )
    max_tokens = max(prompt.prompt_tokens for prompt in trace.header.prompts) + trace.header.max_new_tokens
    engine = engine_for(args.engine, args.device, 1)
    pair = random_pair(
        target,
        draft,
        args.dtype,
        args.device,
        engine=engine,
        max_tokens=max_tokens,
        seed=SEED,
        num_noise_tables=int(trace.header.sampling.rule == "shared-noise"),
    )
    print_err(f"{pair.label}, random weights, {args.dtype} on {args.device}, {engine}")
    session, rng = pair.session(max_tokens), np.random.default_rng(SEED)
    log, sampling = PassLog(), trace.header.sampling
    turns = turns_of(session, calibration, log, seed=SEED)
    policies: dict[str, ExitPolicy | None] = {PLAIN: None}
    if not args.plain_only:
        print_err(f"pass times, {args.budget:g} s")
        measure_latency(turns, args.budget)
        policies = policies_of(plan, calibration, models_of(log, pair, sampling))
    print_err(f"measuring {', '.join(policies)}")
    between = turns.__next__ if len(log) else lambda: None
    arms = measure(session, evaluation, policies, num_repeats=args.repeats, rng=rng, between=between)
    return Found(
        pair=pair,
        acceptance=acceptance,
        stands_in=acceptance.trace.header.target.name != model.name or args.draft is not None,
        is_whole=target is model,
        arms=arms,
        measured={arm.name: arm.measured(arms[0]) for arm in arms},
        predicted=predictions(arms, evaluation, models_of(log, pair, sampling)) if len(log) else {},
        by_datasheet=predictions(arms, evaluation, roofline) if (roofline := datasheet_models(pair)) else {},
        bandwidth=bandwidth_of(pair, [run.rounds for run in arms[0].all_runs], arms[0].decode_s),
        exit_check=exit_check_of(pair),
    )


def predictions(arms: Sequence[ScriptedArm], texts: Texts, models: Models) -> dict[str, Speedup]:
    """What replay and pass times say of each arm; one that needs a pass nobody profiled is left out, and told."""
    found = {}
    for arm in arms:
        try:
            found[arm.name] = predict(arm.policy, texts, models)
        except OutOfDomain as err:
            print_err(f"{arm.name} has no prediction: {err}")
    return found


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    size = QUICK if args.quick else FULL
    for name in ("prompt_tokens", "max_new_tokens", "num_prompts"):
        setattr(args, name, getattr(args, name) or getattr(size, name))
    args.repeats, args.budget = args.repeats or size.num_repeats, args.budget or size.budget_s
    args.dtype = args.dtype or ("bf16" if args.device.startswith("cuda") else "fp32")
    use_device(args.device)
    one_thread()
    found = found_of(args)
    facts = device_facts(found.pair.device)
    print_out(f"{found.pair.label}, random weights, {args.dtype} on {facts.label}\n\n{arms_table(found)}\n")
    print_out(readings_text(found))
    finish(
        NAME if args.output == RESULTS else f"{NAME}.{args.target}{'.plain' if args.plain_only else ''}",
        result=found.as_json,
        quick=args.quick,
        libraries=("torch", "numpy"),
        device=facts.label,
        driver=facts.driver,
        seed=SEED,
        inputs={"acceptance": found.acceptance.evidence.sha256 or ""},
        details={"arms": found.details()},
        folder=args.output,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    target_help = "a known model; with --quick a tiny one of its kind (default: vicuna-7b)"
    add("--target", default="vicuna-7b", metavar="NAME", help=target_help)
    add("--draft", metavar="NAME", help="its first layers draft, with the traced exits (default: the traced draft)")
    add("--acceptance", metavar="NAME", help="a target whose trace is in the box, or trace.npz (default: the target's own)")
    add("--layers", type=int, metavar="N", help="cut the target to its first N layers")
    add("--plan", type=Path, metavar="FILE", help="of s2d-plan: its policy is the plan (default: one searched here)")
    add("--plain-only", action="store_true", help="measure plain decoding alone")
    add("--device", default="cpu", metavar="NAME", help="torch's name: cpu, cuda, cuda:1 (default: cpu)")
    add("--dtype", choices=("fp32", "bf16", "fp16"), help="to compute in (default: bf16 on a GPU, else fp32)")
    add("--engine", choices=("eager", "graph"), help="kernels one by one, or as CUDA graphs (default: graph on a GPU)")
    add("--prompt-tokens", type=int, metavar="TOKENS", help=f"default: {FULL.prompt_tokens}")
    add("--max-new-tokens", type=int, metavar="TOKENS", help=f"default: {FULL.max_new_tokens}")
    add("--num-prompts", type=int, metavar="N", help=f"to measure on, at most (default: {FULL.num_prompts})")
    add("--repeats", type=int, metavar="N", help="of every prompt, forwards and backwards (default: 1)")
    add("--budget", type=float, metavar="SECONDS", help=f"for pass times (default: {FULL.budget_s:g})")
    add("-o", "--output", type=Path, default=RESULTS, metavar="FOLDER", help="where the result goes")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
