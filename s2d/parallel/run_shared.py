"""Run a command in a single process or, under torchrun, on all ranks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from perfmodel.core.console import run_command
from perfmodel.core.torchrun import num_processes

if TYPE_CHECKING:
    from s2d.parallel.ranks import Ranks


class SharedCommand(Protocol):
    """A command that runs on rank 0 and can use the other ranks; returns the exit code."""

    def __call__(self, args: argparse.Namespace, *, ranks: Ranks | None) -> int:
        """Run the command with parsed arguments; `ranks` is None in a single process."""
        ...


def run_shared(parser: argparse.ArgumentParser, argv: Sequence[str] | None, command: SharedCommand) -> int:
    """Like `run_command`. Under torchrun only rank 0 parses, runs and prints; the other ranks serve its requests."""
    if num_processes() == 1:
        return run_command(parser, argv, partial(command, ranks=None))
    from s2d.parallel.parallel_decoder import serve_requests
    from s2d.parallel.ranks import join_ranks

    def run_on_rank_0(ranks: Ranks) -> int:
        def run(args: argparse.Namespace) -> int:
            with ranks.adding_stage_to_errors():
                return command(args, ranks=ranks)

        return run_command(parser, argv, run)

    with join_ranks(parser.prog) as ranks:
        return ranks.run_worker(serve_requests) if ranks.rank else ranks.run_leader(run_on_rank_0)
