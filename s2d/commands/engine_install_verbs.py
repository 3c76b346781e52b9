"""The verbs of `s2d-engines` that change something: `install` and `convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from perfmodel.core.console import add_verbose_flag, print_err, print_out
from perfmodel.core.overwriting import OutputFolder

ENGINE_HELP = "a name that s2d-engines list shows, such as llama.cpp, or an alias, such as ort"


def add_install_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `install`."""
    add = parser.add_argument
    add("engine", metavar="NAME", help=ENGINE_HELP)
    folder_help = "the folder of all engines, one folder each (default: $S2D_ENGINES, else ~/.cache/s2d/engines)"
    add("--folder", type=OutputFolder(), metavar="DIR", help=folder_help)
    source_help = "also build the engine's programs for this processor; needs a C++ compiler and minutes (llama.cpp only)"
    add("--from-source", action="store_true", help=source_help)
    add("--dry-run", action="store_true", help="print the commands for a shell, and run nothing")
    add_verbose_flag(parser)


def add_convert_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `convert`."""
    add = parser.add_argument
    add("--engine", required=True, metavar="NAME", help=ENGINE_HELP)
    weights_help = (
        "how the weights are stored, in the engine's words, such as f32, bf16, q8_0 or int8; s2d-engines show NAME has them"
    )
    add("--weights", required=True, metavar="TYPE", help=weights_help)
    add("source", metavar="MODEL", help="a model folder, a name of the reference family, or org/name on the hub")
    add("out", type=OutputFolder(), metavar="OUT", help="the new folder; for llama.cpp the new .gguf file")
    add_verbose_flag(parser)


def install(args: argparse.Namespace) -> None:
    """`s2d-engines install`."""
    from s2d.engines.install import InstallRequest, install_engine, install_text
    from s2d.engines.recipes import RECIPES

    request = InstallRequest(engine=args.engine, folder=args.folder, from_source=args.from_source)
    if args.dry_run:
        print_out(install_text(request))
        return
    folder = install_engine(request, lambda command: print_err(f"+ {command}"))
    print_out(f"installed {folder.name} in {folder}")
    hint = RECIPES[folder.name].hint
    if hint is not None and not args.from_source:
        print_out(f"note: {hint}")
    if args.folder is not None:
        print_out(f"note: other commands look for it in $S2D_ENGINES: set it to {args.folder}")


def convert(args: argparse.Namespace) -> None:
    """`s2d-engines convert`."""
    from s2d.loading.model_folder import find_model

    source: Path = find_model(args.source)
    from s2d.engines.checkpoints import make_checkpoint

    print_out(f"wrote {make_checkpoint(source, args.engine, args.weights, args.out)}")
