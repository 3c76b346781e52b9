"""`s2d-run` with a failing rank: a program for torchrun and for the processes of `test_rank_failure`."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import s2d.parallel.parallel_decoder
import s2d.parallel.ranks
from perfmodel.core.errors import UserInputError
from s2d.commands.run_cli import main_run
from s2d.decoding.verify import ExactVerifier
from s2d.parallel.ranks import Ranks

STAGES = ("loading", "prefill", "verification", "sampling")
NUM_LAYERS = 6
"""Layers of the target. Each takes two sums over the ranks; the draft takes none."""
SUM_OF_STAGE = {"prefill": 3, "verification": 2 * NUM_LAYERS + 3}
"""1-based index of a sum in the middle of a pass of this stage."""


def run(rank: int, failing_rank: int, stage: str, how: str, argv: Sequence[str], failed_at: Path) -> int:
    """Run the command in one rank.

    Args:
        rank: of this process.
        failing_rank: the rank that fails.
        stage: in which it fails.
        how: `raises`, `refuses`, `killed`, or `terminated` for a SIGTERM while the main thread is busy. With `, hanging`
            appended the other rank hangs in its sums, as with NCCL.
        argv: of `s2d-run`.
        failed_at: file for the time of the failure.
    """
    how, _, hanging = how.partition(", ")

    def fail() -> None:
        failed_at.write_text(str(time.monotonic()))
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
            _hang()
        raise UserInputError("a bad share") if how == "refuses" else KeyError(99)

    def fail_in_sampling() -> None:
        _await_sampling(rank, failed_at)
        fail()

    if rank == failing_rank:
        _call_in(stage, rank, fail_in_sampling if stage == "sampling" else fail)
    elif stage == "sampling":
        _call_in(stage, rank, partial(_continue_sampling, rank, failed_at))
    elif hanging:
        _call_in("verification", rank, _hang)
        s2d.parallel.ranks._abort_process_group = _hang
    return main_run(argv)


def _await_sampling(rank: int, failed_at: Path) -> None:
    """Wait until the other rank has entered the sampling stage too."""
    while not Path(f"{failed_at}.sampling{1 - rank}").exists():
        time.sleep(0.01)


def _continue_sampling(rank: int, failed_at: Path) -> None:
    """Rank 0 samples until the other rank has failed, and a little longer."""
    Path(f"{failed_at}.sampling{rank}").touch()
    while rank == 0 and not failed_at.exists():
        time.sleep(0.01)
    if rank == 0:
        time.sleep(1)


def _hang() -> None:
    time.sleep(600)


def _call_in(stage: str, rank: int, action: Callable[[], None]) -> None:
    """Make this rank call an action in a stage."""
    if stage == "loading":
        s2d.parallel.parallel_decoder._load = lambda *_: action()
    elif stage in SUM_OF_STAGE:
        _wrap(Ranks, "all_reduce", SUM_OF_STAGE[stage], action)
    elif rank == 0:
        _wrap(ExactVerifier, "verify", 1, action)
    else:  # it has sent its columns of the head: rank 0 is sampling
        _wrap(Ranks, "send_columns", 1, action, after=True)


def _wrap(owner: type, name: str, number: int, action: Callable[[], None], *, after: bool = False) -> None:
    original, calls = getattr(owner, name), []

    def wrapped(*args: Any) -> Any:
        calls.append(name)
        is_due = len(calls) == number
        if is_due and not after:
            action()
        result = original(*args)
        if is_due and after:
            action()
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    failing_rank, stage, how, failed_at, *argv = sys.argv[1:]
    own_rank = int(os.environ["RANK"])
    Path(f"{failed_at}.pid{own_rank}").write_text(str(os.getpid()))
    sys.exit(run(own_rank, int(failing_rank), stage, how, argv, Path(failed_at)))
