"""`s2d-engines`: list and show the engines that plans are made for, install one, and convert a model for one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from perfmodel.core.console import EXIT_ANSWERED, add_subcommand, add_verbose_flag, make_parser, print_out, run_command
from s2d.commands.engine_install_verbs import ENGINE_HELP, add_convert_flags, add_install_flags, convert, install

PROG = "s2d-engines"
JSON_HELP = "print JSON instead of text"


def main_engines(argv: Sequence[str] | None = None) -> int:
    """`s2d-engines`: list, show or install engines, or convert a model for one."""
    parser = make_parser(
        PROG,
        "Engines that plans are made for: what each executes, its options, metrics, constraints and known failures.",
        "s2d-engines list",
    )
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", title="verbs (--help after a verb shows its options)"
    )
    for verb, (purpose, example, add_flags, run) in _VERBS.items():
        verb_parser = add_subcommand(verbs, verb, purpose, example)
        add_flags(verb_parser)
        verb_parser.set_defaults(run=run)

    def command(args: argparse.Namespace) -> int:
        args.run(args)
        return EXIT_ANSWERED

    return run_command(parser, argv, command)


def _add_list_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    add_verbose_flag(parser)


def _add_show_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", metavar="NAME", help=ENGINE_HELP)
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    add_verbose_flag(parser)


def _list(args: argparse.Namespace) -> None:
    from perfmodel.core.blocks import as_text
    from perfmodel.core.codec import encode_record
    from perfmodel.engines.engine_text import list_blocks
    from perfmodel.engines.known_engines import ENGINES
    from s2d.engines.environments import engines_folder, is_installed

    if args.json:
        print_out(json.dumps([encode_record(engine) for engine in ENGINES.values()], indent=2, sort_keys=True))
        return
    installed = ", ".join(name for name in ENGINES if is_installed(name))
    print_out(as_text(list_blocks(ENGINES.values())))
    print_out(f"installed here: {installed} (environments in {engines_folder()})")


def _show(args: argparse.Namespace) -> None:
    from perfmodel.core.codec import encode_record
    from perfmodel.engines.find_engine import find_engine

    engine = find_engine(args.engine)
    print_out(json.dumps(encode_record(engine), indent=2, sort_keys=True) if args.json else engine.explain())


_VERBS = {
    "list": ("list the engines, and what each can execute", "s2d-engines list", _add_list_flags, _list),
    "show": ("show everything known about one engine, with sources", "s2d-engines show llama.cpp", _add_show_flags, _show),
    "install": (
        "install an engine in an environment of its own",
        "s2d-engines install onnxruntime",
        add_install_flags,
        install,
    ),
    "convert": (
        "write a model in the files that an engine loads",
        "s2d-engines convert --engine llama.cpp --weights q8_0 ref-target-16 target-16.q8_0.gguf",
        add_convert_flags,
        convert,
    ),
}
"""For every verb: its purpose, an example, the function that adds its flags, and the function that runs it."""
