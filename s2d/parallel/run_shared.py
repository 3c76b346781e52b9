"""`run_command` for commands that several processes may carry out together."""

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
    """Does the work of a command on rank 0, ordering the other ranks where there are any; returns the exit code."""

    def __call__(self, args: argparse.Namespace, *, ranks: Ranks | None) -> int:
        """Do it, the arguments parsed."""
        ...


def run_shared(parser: argparse.ArgumentParser, argv: Sequence[str] | None, command: SharedCommand) -> int:
    """As `run_command`; under torchrun rank 0 alone parses, works and speaks, and the other ranks follow its orders."""
    if num_processes() == 1:
        return run_command(parser, argv, partial(command, ranks=None))
    from s2d.parallel.parallel_decoder import serve_requests
    from s2d.parallel.ranks import join_ranks

    def program(ranks: Ranks) -> int:
        def speak(args: argparse.Namespace) -> int:
            with ranks.adding_stage_to_errors():
                return command(args, ranks=ranks)

        return run_command(parser, argv, speak)

    with join_ranks(parser.prog) as ranks:
        return ranks.run_worker(serve_requests) if ranks.rank else ranks.run_leader(program)
