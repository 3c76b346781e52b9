"""`s2d-plan validate`, `design` and `fit`: the verbs about the latency law alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from calibrate.commands.flags import add_device_flags, device_request
from perfmodel.core.console import EXIT_ANSWERED, add_common_flags, add_verbose_flag, make_parser, print_answer, print_out
from perfmodel.core.errors import UserInputError

PLAN = "s2d-plan"


def validate_parser() -> argparse.ArgumentParser:
    """Of `s2d-plan validate`."""
    description = (
        "Hold the latency law against speeds that others published, and against S2D's own table, whose hardware and\n"
        "engine are not known. Points that a device's row was made from are marked and not counted."
    )
    parser = make_parser(f"{PLAN} validate", description, "s2d-plan validate --json -o validation.json")
    add_common_flags(parser, result="validation")
    return parser


def run_validate(args: argparse.Namespace, *, command: Sequence[str]) -> int:
    """The law against what others published."""
    from calibrate.fit.validate import validate
    from calibrate.text.law_text import validation_text
    from perfmodel.core.provenance import make_provenance
    from perfmodel.results.validation import validation_file_text, write_validation

    validation, provenance = validate(), make_provenance(argv=command)
    print_answer(
        args,
        write=lambda path: write_validation(path, validation, provenance),
        file_text=lambda: validation_file_text(validation, provenance),
        text=lambda: validation_text(validation),
    )
    return EXIT_ANSWERED


def design_parser() -> argparse.ArgumentParser:
    """Of `s2d-plan design`."""
    description = (
        "Drafts of one size in other shapes, or one draft at several draft lengths: what depth costs, and the tokens per\n"
        "round that each needs to beat plain decoding. Which shape is accepted how often, only training tells."
    )
    parser = make_parser(f"{PLAN} design", description, "s2d-plan design --target llama-2-70b --params 1.3e9 --engine eager")
    add = parser.add_argument
    add("--target", metavar="NAME", required=True, help="as for s2d-plan")
    size = parser.add_mutually_exclusive_group(required=True)
    size_help = "shapes of this size, embeddings and head included"
    size.add_argument("--params", type=float, metavar="WEIGHTS", help=size_help)
    draft_help = "this draft's own shape: a known model or draft, a config.json or its folder, or org/name on the hub"
    size.add_argument("--draft", metavar="NAME", help=draft_help)
    add("--draft-vocab", type=int, metavar="TOKENS", help="most frequent tokens its LM head covers (default: all)")
    tokens_help = "drafted a round (default: 5 with --params, several lengths with --draft)"
    add("--draft-tokens", type=int, metavar="TOKENS", help=tokens_help)
    add("--context-tokens", type=int, default=768, metavar="TOKENS", help="in the caches (default: 768)")
    add_device_flags(parser)
    add_verbose_flag(parser)
    return parser


def run_design(args: argparse.Namespace) -> int:
    """Draft shapes of one size, or one draft at several draft lengths."""
    from calibrate.inputs.device import resolve_device
    from calibrate.inputs.draft import resolve_draft
    from calibrate.inputs.target import resolve_target
    from calibrate.planning.draft_shapes import DEFAULT_DRAFT_TOKENS, DRAFT_LENGTHS, DesignRequest, designs, draft_rounds
    from calibrate.pricing.datasheet import num_devices_for
    from calibrate.text.law_text import design_text, draft_text
    from perfmodel.passes.flops_bytes import kv_cache_bytes
    from perfmodel.quantisation.dtype_format import dtype_format
    from perfmodel.quantisation.weight_format import model_weight_bytes

    reads_format = args.dtype is None
    resolved = resolve_target(args.target, reads_format=reads_format)
    target = resolved.geometry
    for flag, count in (("--draft-tokens", args.draft_tokens), ("--context-tokens", args.context_tokens)):
        if count is not None and count < 1:
            raise UserInputError(f"{flag} {count}: expected at least 1.")
    drafted_tokens = args.draft_tokens or 0
    if args.context_tokens + drafted_tokens > target.max_context_tokens:
        raise UserInputError(
            f"--context-tokens {args.context_tokens} and {drafted_tokens} drafted tokens: expected at most the "
            f"{target.max_context_tokens} tokens of context of {target.name}. Give fewer."
        )
    found = None if args.draft is None else resolve_draft(args.draft, args.draft_vocab, reads_format=reads_format)
    device = resolve_device(device_request(args))
    weights = resolved.stored or dtype_format(device.dtype, target)
    needed_bytes = model_weight_bytes(target, weights) + kv_cache_bytes(target, weights, args.context_tokens)
    draft = None if found is None else found.geometry
    request = DesignRequest(
        target=target,
        num_params=_whole(args.params) if draft is None else draft.model.num_params,
        draft_vocab=args.draft_vocab,
        hardware=device.hardware,
        num_devices=num_devices_for(target, device, needed_bytes),
        dtype=device.dtype,
        engine=device.engine,
        context_tokens=args.context_tokens,
        draft_tokens=args.draft_tokens or DEFAULT_DRAFT_TOKENS,
        stored=resolved.stored,
        draft_stored=None if found is None else found.stored,
    )
    if draft is None:
        print_out(design_text(request, designs(request), asked_target=args.target))
    else:
        lengths = DRAFT_LENGTHS if args.draft_tokens is None else (args.draft_tokens,)
        print_out(draft_text(request, draft, draft_rounds(draft.model, request, lengths), asked_target=args.target))
    return EXIT_ANSWERED


def fit_parser() -> argparse.ArgumentParser:
    """Of `s2d-plan fit`."""
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


def run_fit(args: argparse.Namespace, *, command: Sequence[str]) -> int:
    """A law from measured passes."""
    from calibrate.fit.fit_latency import fit_profiles
    from calibrate.fit.fit_tables import fit_tables
    from calibrate.text.fit_text import fit_text
    from perfmodel.core.provenance import make_provenance
    from perfmodel.passes.latency_law import latency_fit_file_text, write_latency_fit

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
