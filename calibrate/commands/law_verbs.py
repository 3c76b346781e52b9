"""`s2d-plan validate`, `design` and `fit`: the verbs about the latency law alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from calibrate.commands.flags import add_device_flags, device_request
from perfmodel.core.console import AnswerOptions, add_common_flags, add_subcommand, add_verbose_flag, print_answer, print_out
from perfmodel.core.errors import UserInputError

if TYPE_CHECKING:
    from calibrate.inputs.requests import DeviceRequest
    from perfmodel.results.draft_shapes import DraftLengths, DraftShapes

_Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


@dataclass(frozen=True, slots=True, kw_only=True)
class DesignFlags:
    """The flags of `s2d-plan design`."""

    target: str
    params: float | None
    """Weights of the draft; None where `draft` is given."""
    draft: str | None
    draft_vocab: int | None
    draft_tokens: int | None
    context_tokens: int
    device: DeviceRequest
    explain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FitFlags:
    """The flags of `s2d-plan fit`."""

    profiles: tuple[Path, ...]
    tables: Path | None
    device: str | None
    """The GPU of `tables`."""


def add_law_verbs(verbs: _Verbs) -> None:
    """Add `validate`, `design` and `fit`."""
    validate = add_subcommand(
        verbs, "validate", "compare the latency law with published speeds", "s2d-plan validate --json -o validation.json"
    )
    add_common_flags(validate, result="validation")
    _add_design(verbs)
    _add_fit(verbs)


def _add_design(verbs: _Verbs) -> None:
    purpose = "find the tokens per round that drafts of one size, or one draft, need to beat plain decoding"
    parser = add_subcommand(verbs, "design", purpose, "s2d-plan design --target llama-2-70b --params 1.3e9 --mode eager")
    add = parser.add_argument
    target_help = "a known model (docs/reference/models.md), a config.json or its folder, or org/name on the Hugging Face hub"
    add("--target", metavar="NAME", required=True, help=target_help)
    size = parser.add_mutually_exclusive_group(required=True)
    size_help = "compare shapes with this many weights, embeddings and LM head included"
    size.add_argument("--params", type=float, metavar="WEIGHTS", help=size_help)
    draft_help = "compare draft lengths of this draft: named as a target is, or a known draft"
    size.add_argument("--draft", metavar="NAME", help=draft_help)
    vocab_help = "assume an LM head of the most frequent TOKENS tokens (default: the whole vocabulary)"
    add("--draft-vocab", type=int, metavar="TOKENS", help=vocab_help)
    tokens_help = "drafted tokens per round (default: 5 with --params, 1 to 12 with --draft)"
    add("--draft-tokens", type=int, metavar="TOKENS", help=tokens_help)
    add("--context-tokens", type=int, default=768, metavar="TOKENS", help="cached tokens (default: 768)")
    add_device_flags(parser)
    add("--explain", action="store_true", help="show every depth, not only some")
    add_verbose_flag(parser)


def _add_fit(verbs: _Verbs) -> None:
    purpose = "fit the latency law to profiles of one device, to price models that were not profiled"
    parser = add_subcommand(verbs, "fit", purpose, "s2d-plan fit law/*.latency.json -o my-device.fit.json")
    add = parser.add_argument
    add("profiles", type=Path, metavar="FILE", nargs="*", help="latency profiles, preferably from s2d-profile law")
    tables_help = "fit public kernel tables instead: the folder of gpu_layer_times.csv and gpu_all_reduce.csv"
    add("--tables", type=Path, metavar="DIR", help=tables_help)
    add("--device", metavar="NAME", help="GPU to select in the tables: a100 or h100")
    add_common_flags(parser, result="fit")


def design_flags(args: argparse.Namespace) -> DesignFlags:
    """The request behind parsed flags."""
    return DesignFlags(
        target=args.target,
        params=args.params,
        draft=args.draft,
        draft_vocab=args.draft_vocab,
        draft_tokens=args.draft_tokens,
        context_tokens=args.context_tokens,
        device=device_request(args),
        explain=args.explain,
    )


def fit_flags(args: argparse.Namespace) -> FitFlags:
    """The request behind parsed flags."""
    return FitFlags(profiles=tuple(args.profiles), tables=args.tables, device=args.device)


def answer_validation(options: AnswerOptions, *, command: Sequence[str]) -> None:
    """Compare the latency law with published speeds."""
    from calibrate.fit.validate import validate
    from perfmodel.core.provenance import make_provenance
    from perfmodel.results.validation import VALIDATION_FILE

    validation = validate()
    print_answer(
        options,
        validation,
        VALIDATION_FILE,
        partial(make_provenance, argv=command),
        text=lambda: validation.explain() if options.explain else str(validation),
    )


def answer_design(flags: DesignFlags) -> None:
    """Price draft shapes of one size, or one draft at several draft lengths."""
    shapes = _design(flags)
    print_out(shapes.explain() if flags.explain else str(shapes))


def _design(flags: DesignFlags) -> DraftShapes | DraftLengths:
    from calibrate.planning.draft_shapes import (
        DEFAULT_DRAFT_TOKENS,
        DRAFT_LENGTHS,
        ShapesRequest,
        make_draft_lengths,
        make_draft_shapes,
    )

    request = ShapesRequest(
        target=flags.target, draft_vocab=flags.draft_vocab, context_tokens=flags.context_tokens, device=flags.device
    )
    if flags.draft is not None:
        lengths = DRAFT_LENGTHS if flags.draft_tokens is None else (flags.draft_tokens,)
        return make_draft_lengths(request, flags.draft, lengths)
    assert flags.params is not None
    draft_tokens = DEFAULT_DRAFT_TOKENS if flags.draft_tokens is None else flags.draft_tokens
    return make_draft_shapes(request, flags.params, draft_tokens)


def answer_fit(flags: FitFlags, options: AnswerOptions, *, command: Sequence[str]) -> None:
    """Fit the latency law to measured passes."""
    from calibrate.fit.fit_latency import fit_profiles
    from calibrate.fit.fit_tables import fit_tables
    from perfmodel.core.provenance import make_provenance
    from perfmodel.passes.latency_law import FIT_FILE

    if bool(flags.profiles) == (flags.tables is not None) or (flags.tables is None) != (flags.device is None):
        raise UserInputError(
            "nothing to fit, or too much: expected profiles, or --tables DIR with --device NAME. Give one of the two."
        )
    if flags.tables is not None and flags.device is not None:
        fit, inputs = fit_tables(flags.tables, flags.device)
    else:
        fit, inputs = fit_profiles(flags.profiles)
    print_answer(
        options,
        fit,
        FIT_FILE,
        partial(make_provenance, argv=command, libraries=("numpy", "scipy"), inputs=inputs),
        text=lambda: fit.explain() if options.explain else str(fit),
        done=f"; next: s2d-plan --target NAME --fit {options.output}",
    )
