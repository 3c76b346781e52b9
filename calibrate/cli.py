"""`s2d-plan` and `s2d-compare`: parse first, import what does the work after."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from perfmodel.console import (
    EXIT_ANSWERED,
    add_common_flags,
    add_verbose_flag,
    make_parser,
    print_answer,
    print_out,
    run_command,
)
from perfmodel.errors import UserInputError

PLAN = "s2d-plan"
COMPARE = "s2d-compare"


def main_plan(argv: Sequence[str] | None = None) -> int:
    """`s2d-plan`: the configuration to run, and what it is predicted to do; its verbs are about the latency law alone."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["validate"]:
        return run_command(_validate_parser(), given[1:], partial(_validate, command=(PLAN, *given)))
    if given[:1] == ["design"]:
        return run_command(_design_parser(), given[1:], _design)
    if given[:1] == ["fit"]:
        return run_command(_fit_parser(), given[1:], partial(_fit, command=(PLAN, *given)))
    return run_command(_plan_parser(), given, partial(_plan, command=(PLAN, *given)))


def main_compare(argv: Sequence[str] | None = None) -> int:
    """`s2d-compare`: predicted beside measured, and why they differ."""
    return run_command(_compare_parser(), argv, partial(_compare, command=_command_line(COMPARE, argv)))


def _command_line(prog: str, argv: Sequence[str] | None) -> tuple[str, ...]:
    return (prog, *(sys.argv[1:] if argv is None else argv))


def _plan_parser() -> argparse.ArgumentParser:
    description = (
        "Predict how fast a nested draft makes a target, and choose its exits, thresholds and draft length.\nNeeds no GPU.\n\n"
        "s2d-plan validate  holds the latency law against published speeds\n"
        "s2d-plan design    draft shapes of one size, and the acceptance that each needs\n"
        "s2d-plan fit       the law's coefficients from profiles, to price models nobody ran"
    )
    parser = make_parser(PLAN, description, "s2d-plan --target llama-70b --device h100 -o plan.json")
    _add_evidence_flags(parser.add_argument_group("models and evidence"))
    _add_device_flags(parser.add_argument_group("device (with --profile: the profile's)"))
    _add_workload_flags(parser.add_argument_group("workload"))
    add_common_flags(parser, result="plan")
    return parser


def _add_evidence_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--target",
        metavar="NAME",
        help="a known model (docs/models.md), a config.json or its folder, or org/name on the Hugging Face hub",
    )
    add("--draft", metavar="NAME", help="a nested draft (default: the one whose acceptance is known)")
    add("--draft-vocab", type=int, metavar="TOKENS", help="what if its LM head covered only the most frequent (default: all)")
    trace_help = "acceptance recorded by s2d-profile (default: published evidence in the box)"
    add("--trace", type=Path, metavar="FILE", help=trace_help)
    split_help = "plan on one half of the trace's prompts, and leave the other to test it (default: all)"
    add("--prompts-split", choices=("all", "calibration", "evaluation"), default="all", help=split_help)
    profile_help = "latency measured by s2d-profile; once for the target, once for the draft (default: a datasheet)"
    add("--profile", type=Path, metavar="FILE", action="append", default=[], help=profile_help)
    add("--fit", type=Path, metavar="FILE", help="written by s2d-plan fit: prices a model that was not profiled")


def _add_device_flags(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    device_help = (
        "a known device, cpu, or a .toml or .json file (docs/hardware.md; default: the GPU found here, else a100-80gb)"
    )
    add("--device", metavar="NAME", help=device_help)
    add("--num-devices", type=int, metavar="DEVICES", help="tensor-parallel degree (default: as few as hold the models)")
    add(
        "--dtype",
        choices=("fp32", "fp16", "bf16", "fp8", "int8", "int4"),
        help="of the weights (default: bf16, or what the device has)",
    )
    add(
        "--engine",
        choices=("eager", "graph"),
        help="launch kernels one by one, or as CUDA graphs (default: graph, on a CPU eager)",
    )


def _add_workload_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--batch", type=int, default=1, metavar="SEQUENCES", help="decoded at a time (default: 1, and only 1 is predicted)")
    add("--prompt-tokens", type=int, metavar="TOKENS", help="length of a prompt (default: the evidence's)")
    add("--output-tokens", type=int, metavar="TOKENS", help="tokens to generate (default: the evidence's)")


def _plan(args: argparse.Namespace, *, command: Sequence[str]) -> int:
    from calibrate.next_command import next_command
    from calibrate.plan import PlanRequest, make_plan
    from calibrate.pricing import DeviceRequest
    from calibrate.show import plan_text
    from perfmodel.plan import plan_file_text, write_plan
    from perfmodel.provenance import make_provenance

    device = DeviceRequest(device=args.device, num_devices=args.num_devices, dtype=args.dtype, engine=args.engine)
    request = PlanRequest(
        target=args.target,
        draft=args.draft,
        draft_vocab=args.draft_vocab,
        trace=args.trace,
        prompts_split=args.prompts_split,
        profiles=tuple(args.profile),
        fit=args.fit,
        device=device,
        batch=args.batch,
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
    )
    plan = make_plan(request)
    inputs: dict[str, str] = {evidence.role: evidence.sha256 for evidence in plan.evidence if evidence.sha256 is not None}
    provenance = make_provenance(argv=command, inputs=inputs)
    here = replace(plan, next_command=next_command(plan, command=command, output=args.output))
    print_answer(
        args,
        write=lambda path: write_plan(path, plan, provenance),
        file_text=lambda: plan_file_text(plan, provenance),
        text=lambda: plan_text(here, asked_target=args.target or plan.target.name),
    )
    return EXIT_ANSWERED


def _validate_parser() -> argparse.ArgumentParser:
    description = (
        "Hold the latency law against speeds that others published, and against S2D's own table, whose hardware and\n"
        "engine are not known. Points that a device's row was made from are marked and not counted."
    )
    parser = make_parser(f"{PLAN} validate", description, "s2d-plan validate --json -o validation.json")
    add_common_flags(parser, result="validation")
    return parser


def _validate(args: argparse.Namespace, *, command: Sequence[str]) -> int:
    from calibrate.show_law import validation_text
    from calibrate.validate import validate
    from perfmodel.provenance import make_provenance
    from perfmodel.validation import validation_file_text, write_validation

    validation, provenance = validate(), make_provenance(argv=command)
    print_answer(
        args,
        write=lambda path: write_validation(path, validation, provenance),
        file_text=lambda: validation_file_text(validation, provenance),
        text=lambda: validation_text(validation),
    )
    return EXIT_ANSWERED


def _design_parser() -> argparse.ArgumentParser:
    description = (
        "Drafts of one size in other shapes: what depth costs, and how often a deeper draft must be accepted to be worth\n"
        "it. Which shape is accepted how often, only training tells."
    )
    parser = make_parser(f"{PLAN} design", description, "s2d-plan design --target llama-2-70b --params 1.3e9 --engine eager")
    add = parser.add_argument
    add("--target", metavar="NAME", required=True, help="as for s2d-plan")
    add("--params", type=float, metavar="WEIGHTS", required=True, help="size of the draft, embeddings and head included")
    add("--draft-vocab", type=int, metavar="TOKENS", help="most frequent tokens its LM head covers (default: all)")
    add("--draft-tokens", type=int, default=5, metavar="TOKENS", help="drafted a round (default: 5)")
    add("--context-tokens", type=int, default=768, metavar="TOKENS", help="in the caches (default: 768)")
    _add_device_flags(parser)
    add_verbose_flag(parser)
    return parser


def _design(args: argparse.Namespace) -> int:
    from calibrate.design import DesignRequest, designs
    from calibrate.find_target import find_target
    from calibrate.pricing import DeviceRequest, target_device
    from calibrate.show_law import design_text

    target = find_target(args.target)
    asked = DeviceRequest(device=args.device, num_devices=args.num_devices, dtype=args.dtype, engine=args.engine)
    for flag, count in (("--draft-tokens", args.draft_tokens), ("--context-tokens", args.context_tokens)):
        if count < 1:
            raise UserInputError(f"{flag} {count}: expected at least 1.")
    device = target_device(target, asked, context_tokens=args.context_tokens)
    request = DesignRequest(
        target=target,
        num_params=_whole(args.params),
        draft_vocab=args.draft_vocab,
        hardware=device.hardware,
        num_devices=device.num_devices,
        dtype=device.dtype,
        engine=device.engine,
        context_tokens=args.context_tokens,
        draft_tokens=args.draft_tokens,
    )
    print_out(design_text(request, designs(request)))
    return EXIT_ANSWERED


def _fit_parser() -> argparse.ArgumentParser:
    description = (
        "Fit the latency law to measured passes of some models on one device, so that it prices models nobody ran there.\n"
        "Says how far it is off on a model that was left out."
    )
    parser = make_parser(f"{PLAN} fit", description, "s2d-plan fit law/*.latency.json -o my-device.fit.json")
    add = parser.add_argument
    add("profiles", type=Path, metavar="FILE", nargs="*", help="written by s2d-profile, best by s2d-profile law")
    tables_help = "instead of profiles: the folder of the public kernel tables gpu_layer_times.csv and gpu_all_reduce.csv"
    add("--tables", type=Path, metavar="DIR", help=tables_help)
    add("--device", metavar="NAME", help="the GPU of those tables: a100 or h100")
    add_common_flags(parser, result="fit")
    return parser


def _fit(args: argparse.Namespace, *, command: Sequence[str]) -> int:
    from calibrate.fit_latency import fit_profiles
    from calibrate.fit_tables import fit_tables
    from calibrate.show_fit import fit_text
    from perfmodel.law import latency_fit_file_text, write_latency_fit
    from perfmodel.provenance import make_provenance

    if bool(args.profiles) == (args.tables is not None) or (args.tables is None) != (args.device is None):
        raise UserInputError("s2d-plan fit needs profiles, or --tables DIR with --device NAME: give one of the two.")
    if args.tables is not None:
        fit, inputs = fit_tables(args.tables, args.device)
    else:
        fit, inputs = fit_profiles(args.profiles)
    provenance = make_provenance(argv=command, libraries=("numpy", "scipy"), inputs=inputs)
    print_answer(
        args,
        write=lambda path: write_latency_fit(path, fit, provenance),
        file_text=lambda: latency_fit_file_text(fit, provenance),
        text=lambda: fit_text(fit),
    )
    return EXIT_ANSWERED


def _whole(params: float) -> int:
    if not 1 <= params < 1e15:
        raise UserInputError(f"--params {params:g}: expected a number of weights, such as 350e6.")
    return round(params)


def _compare_parser() -> argparse.ArgumentParser:
    description = (
        "Hold a plan against what running it measured: the error of its acceptance and the error of its seconds\n"
        "apart, and what to measure again."
    )
    parser = make_parser(COMPARE, description, "s2d-compare --plan plan.json --report report.json")
    parser.add_argument("--plan", type=Path, required=True, metavar="FILE", help="written by s2d-plan")
    parser.add_argument("--report", type=Path, required=True, metavar="FILE", help="written by s2d-run")
    profile_help = "a profile the plan was made with; give them all to price each measured pass by its shape"
    parser.add_argument("--profile", type=Path, metavar="FILE", action="append", default=[], help=profile_help)
    fit_help = "the fit it was made with, where it priced a model by one"
    parser.add_argument("--fit", type=Path, metavar="FILE", help=fit_help)
    add_common_flags(parser, result="residuals")
    return parser


def _compare(args: argparse.Namespace, *, command: Sequence[str]) -> int:
    from calibrate.compare import compare, load_pricing
    from calibrate.show_residuals import residuals_text
    from perfmodel.plan import read_plan
    from perfmodel.provenance import make_provenance
    from perfmodel.report import read_report
    from perfmodel.residuals import residuals_file_text, write_residuals

    plan, report = read_plan(args.plan), read_report(args.report)
    residuals = compare(plan, report, load_pricing(plan.record, args.profile, args.fit))
    provenance = make_provenance(argv=command, inputs={"plan": plan.sha256, "report": report.sha256})
    print_answer(
        args,
        write=lambda path: write_residuals(path, residuals, provenance),
        file_text=lambda: residuals_file_text(residuals, provenance),
        text=lambda: residuals_text(residuals),
    )
    return EXIT_ANSWERED
