"""`s2d-plan` and `s2d-compare`: parse first, import what does the work after."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from perfmodel.console import EXIT_ANSWERED, add_common_flags, make_parser, print_err, print_out, run_command

PLAN = "s2d-plan"
COMPARE = "s2d-compare"


def main_plan(argv: Sequence[str] | None = None) -> int:
    """`s2d-plan`: the configuration to run, and what it is predicted to do."""
    return run_command(_plan_parser(), argv, partial(_plan, command=_command_line(PLAN, argv)))


def main_compare(argv: Sequence[str] | None = None) -> int:
    """`s2d-compare`: predicted beside measured, and why they differ."""
    return run_command(_compare_parser(), argv, partial(_compare, command=_command_line(COMPARE, argv)))


def _command_line(prog: str, argv: Sequence[str] | None) -> tuple[str, ...]:
    return (prog, *(sys.argv[1:] if argv is None else argv))


def _plan_parser() -> argparse.ArgumentParser:
    description = (
        "Predict how fast a nested draft makes a target, and choose its exits, thresholds and draft length.\nNeeds no GPU."
    )
    parser = make_parser(PLAN, description, "s2d-plan --target llama-70b --device h100 -o plan.json")
    _add_evidence_flags(parser.add_argument_group("models and evidence"))
    _add_device_flags(parser.add_argument_group("device (with --profile: the profile's)"))
    _add_workload_flags(parser.add_argument_group("workload"))
    add_common_flags(parser, result="plan")
    return parser


def _add_evidence_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--target", metavar="NAME", help="a known model, or a folder with a config.json, or that file")
    add("--draft", metavar="NAME", help="a nested draft (default: the one whose acceptance is known)")
    trace_help = "acceptance recorded by s2d-profile (default: published evidence in the box)"
    add("--trace", type=Path, metavar="FILE", help=trace_help)
    split_help = "plan on one half of the trace's prompts, and leave the other to test it (default: all)"
    add("--prompts-split", choices=("all", "calibration", "evaluation"), default="all", help=split_help)
    profile_help = "latency measured by s2d-profile; once for the target, once for the draft (default: a datasheet)"
    add("--profile", type=Path, metavar="FILE", action="append", default=[], help=profile_help)
    add("--fit", action="store_true", help="price a model that was not profiled by a fit to the profiles given")


def _add_device_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--device", metavar="NAME", help="a known device (default: a100-80gb)")
    add("--num-devices", type=int, metavar="DEVICES", help="tensor-parallel degree (default: as few as hold the models)")
    add("--dtype", choices=("fp32", "fp16", "bf16", "fp8", "int8", "int4"), help="of the weights (default: bf16)")
    add("--engine", choices=("eager", "graph"), help="launch kernels one by one, or as CUDA graphs (default: graph)")


def _add_workload_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--batch", type=int, default=1, metavar="SEQUENCES", help="decoded at a time (default: 1, and only 1 is predicted)")
    add("--prompt-tokens", type=int, metavar="TOKENS", help="length of a prompt (default: the evidence's)")
    add("--output-tokens", type=int, metavar="TOKENS", help="tokens to generate (default: the evidence's)")


def _plan(args: argparse.Namespace, *, command: Sequence[str]) -> int:
    from calibrate.plan import PlanRequest, make_plan
    from calibrate.pricing import DeviceRequest
    from calibrate.show import plan_text
    from perfmodel.plan import plan_file_text, write_plan
    from perfmodel.provenance import make_provenance

    device = DeviceRequest(device=args.device, num_devices=args.num_devices, dtype=args.dtype, engine=args.engine)
    request = PlanRequest(
        target=args.target,
        draft=args.draft,
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
    if args.output is not None:
        write_plan(args.output, plan, provenance)
        print_err(f"wrote {args.output}")
    if args.json:
        print_out(plan_file_text(plan, provenance), end="")
    else:
        print_out(plan_text(plan, asked_target=args.target or plan.target.name))
    return EXIT_ANSWERED


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
    add_common_flags(parser, result="residuals")
    return parser


def _compare(args: argparse.Namespace, *, command: Sequence[str]) -> int:
    from calibrate.compare import compare, load_pricing
    from calibrate.show import residuals_text
    from perfmodel.plan import read_plan
    from perfmodel.provenance import make_provenance
    from perfmodel.report import read_report
    from perfmodel.residuals import residuals_file_text, write_residuals

    plan, report = read_plan(args.plan), read_report(args.report)
    residuals = compare(plan, report, load_pricing(plan.record, args.profile))
    provenance = make_provenance(argv=command, inputs={"plan": plan.sha256, "report": report.sha256})
    if args.output is not None:
        write_residuals(args.output, residuals, provenance)
        print_err(f"wrote {args.output}")
    if args.json:
        print_out(residuals_file_text(residuals, provenance), end="")
    else:
        print_out(residuals_text(residuals))
    return EXIT_ANSWERED
