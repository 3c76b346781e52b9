"""`s2d-plan export`: write everything that is needed to serve a plan in its engine."""

from __future__ import annotations

import argparse
from pathlib import Path

from perfmodel.core.console import add_subcommand, add_verbose_flag, print_out
from perfmodel.core.overwriting import OutputFolder


def add_export_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `export`."""
    purpose = "write a folder to serve a plan with: checkpoints, commands of its engine, a smoke test, a README"
    example = "s2d-plan export --plan plan.json --draft path/to/draft --target path/to/target -o served"
    parser = add_subcommand(verbs, "export", purpose, example)
    add = parser.add_argument
    add("--plan", type=Path, metavar="FILE", required=True, help="the plan, written by s2d-plan --engine NAME")
    target_help = "target: a folder, a name of the reference family, or org/name, which is not fetched (default: the plan's)"
    add("--target", metavar="NAME", help=target_help)
    add("--draft", metavar="DIR", help="draft: a folder, or a name of the reference family (default: the plan's)")
    add("--engine", metavar="NAME", help="the engine (default: the plan's; a plan for another engine is refused)")
    weights_help = "how the engine stores weights, in its own words, such as bf16 or q8_0 (default: the plan's)"
    add("--weights", metavar="NAME", help=weights_help)
    add("--no-target", action="store_true", help="do not convert the target, where the engine needs its own format")
    trace_help = "the plan's trace: the smoke test expects its rounds (default: the plan's acceptance, on other prompts)"
    add("--trace", type=Path, metavar="FILE", help=trace_help)
    prompts_help = "prompts of the smoke test; with --trace, those of the trace (default: those of the reference family)"
    add("--prompts", type=Path, metavar="FILE", help=prompts_help)
    add("--chat", action="store_true", help="put each prompt into the tokenizer's chat template (default: continue the text)")
    add("-o", "--output", type=OutputFolder(), required=True, metavar="DIR", help="folder to make; must not exist")
    add("--explain", action="store_true", help="name all checks that were made")
    add_verbose_flag(parser)
    parser.set_defaults(writes_file=False)  # `-o` is a folder here


def answer_export(args: argparse.Namespace) -> None:
    """Write the folder and print what is in it."""
    import inspect

    import s2d

    export = inspect.unwrap(s2d.export)  # without the wrapper, messages name flags and not Python arguments
    made = export(
        args.plan,
        args.output,
        target=args.target,
        draft=args.draft,
        engine=args.engine,
        weights=args.weights,
        trace=args.trace,
        prompts=args.prompts,
        chat=args.chat,
        converts_target=not args.no_target,
    )
    print_out(made.explain() if args.explain else str(made))
