"""The first three minutes on a device: is what the runtime computes there right, and how fast are its parts?

    captures      logits and texts of captured passes, with every choice of kernels, against passes launched kernel by kernel
    logits        of random Llamas, against transformers in fp32 on the CPU
    lossless      texts of captured speculation against plain ones
    layer         one layer of Llama-2-7B and of its draft with every choice of kernels; later checks use the fastest
    memory        the most that the pair of 7B takes, against `s2d.loading.memory`
    workspaces    what cuBLAS keeps of it
    gemv          products of 1, 4 and 8 rows with the matrices of Llama-2-7B in both layouts, which no cache holds
    exit-check    one exit check from an idle device
    plain-7b      plain decoding of 7B: tokens a second, and the share of the datasheet's bandwidth
    published-7b  the published thresholds over plain decoding, under traced acceptance

Correctness comes first. Each check is a line, printed when it is done: its verdict, what was measured, what was expected, and
the seconds it took. Seconds are expected to be at most 1.25 times the datasheet's prediction. A check that raises is a line
too, and the others go on; where it took the device with it, in a process of their own. Exit code 1 if one failed.

On an H200 it is meant to end within 150 s. With --quick all shapes are tiny, which shows only that the checks run.

Example: python benchmarks/first_minutes.py --device cuda
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from details.first_checks import OK, SEED, SLOW, UNMEASURED, Checks, Outcome
from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command, table
from perfmodel.core.errors import UnknownName
from perfmodel.core.units import Seconds, format_bytes
from profiler.machine.machine_facts import device_facts
from s2d.loading.memory import free_device_bytes
from s2d.model.torch_device import use_device
from shared.common import RESULTS, finish, make_parser, use_one_thread

NAME = "first_minutes"
LIMIT_S: Seconds = 180.0
"""Beyond it there is a warning: the session on a GPU allows no more."""
WIDTHS = (13, 22)
"""Of the columns of names and verdicts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One check and how it ended."""

    check: str
    took_s: Seconds
    outcome: Outcome

    @property
    def is_failed(self) -> bool:
        """Whether it raised, or found something wrong."""
        return self.outcome.verdict not in (OK, SLOW, UNMEASURED)

    @property
    def text(self) -> str:
        """What is printed of it."""
        found = self.outcome
        expected = f" (expected {found.expected})" if found.expected else ""
        check, verdict = (text.ljust(width) for text, width in zip((self.check, found.verdict), WIDTHS, strict=True))
        return f"{check} {verdict} {found.measured}{expected}, {self.took_s:.1f} s"

    @property
    def as_json(self) -> dict[str, Any]:
        """All of it."""
        found = self.outcome
        return {
            "check": self.check,
            "verdict": found.verdict,
            "measured": found.measured,
            "expected": found.expected,
            "took_s": self.took_s,
            "figures": found.figures,
            "rows": [list(row) for row in found.rows],
        }


def line_of(found: dict[str, Any]) -> Line:
    """The inverse of `Line.as_json`."""
    kept = {name: found[name] for name in ("verdict", "measured", "expected", "figures", "rows")}
    return Line(check=found["check"], took_s=found["took_s"], outcome=Outcome(**kept))


def line_after(name: str, check: Callable[[], Outcome]) -> Line:
    """Run one check; an error is its verdict."""
    start_s = time.perf_counter()
    try:
        found = check()
        outcome = replace(found, figures={key: finite_or_none(figure) for key, figure in found.figures.items()})
    except Exception as err:  # the other checks still run
        first = (str(err).strip() or "no message").splitlines()[0]
        outcome = Outcome(verdict=f"failed: {type(err).__name__}: {first}", measured="nothing", figures={})
        print_err(f"{name}: {err!r}")
    return Line(check=name, took_s=time.perf_counter() - start_s, outcome=outcome)


def finite_or_none(figure: float | str | None) -> float | str | None:
    """A figure as a result may hold it: what a fault made infinite or no number is left out there, and stands in the line."""
    return None if isinstance(figure, float) and not math.isfinite(figure) else figure


def is_lost(device: torch.device) -> bool:
    """Whether nothing runs on the device any more: an error on a GPU stays for the rest of a process."""
    if device.type == "cpu":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def lines_of(checks: Checks, names: Sequence[str], in_new_process: Callable[[Sequence[str]], list[Line]]) -> list[Line]:
    """Run checks by name, and print a line for each."""
    lines, known = [], checks.all()
    for place, name in enumerate(names):
        lines.append(line_after(name, known[name]))
        print_out(lines[-1].text)
        rest = names[place + 1 :]
        if lines[-1].is_failed and rest and is_lost(checks.device):
            print_err(f"the device is lost to this process: going on with {', '.join(rest)} in another one")
            return lines + in_new_process(rest)
    return lines


def lines_in_new_process(args: argparse.Namespace, names: Sequence[str]) -> list[Line]:
    """Run checks by name in another process, which prints their lines; of one that dies, a failed line for each."""
    folder = args.output / "after_a_fault"
    flags = ["--device", args.device, *(["--quick"] if args.quick else []), "-o", str(folder), "--checks", *names]
    ended = subprocess.run([sys.executable, __file__, *flags], check=False)
    path = folder / f"{NAME}{'.quick' if args.quick else ''}.json"
    if not path.exists():
        verdict = f"failed: exit code {ended.returncode}"
        return [Line(check=name, took_s=0.0, outcome=Outcome(verdict=verdict, measured="", figures={})) for name in names]
    return [line_of(found) for found in json.loads(path.read_text("utf-8"))["details"]["lines"]]


def result_of(lines: Sequence[Line], took_s: Seconds) -> dict[str, Any]:
    """The figures that end it."""
    figures = {name: figure for line in lines for name, figure in line.outcome.figures.items()}
    return {
        "num_checks": len(lines),
        "failed": [line.check for line in lines if line.is_failed],
        "slower_than_expected": [line.check for line in lines if line.outcome.verdict == SLOW],
        "took_s": took_s,
        **figures,
    }


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    start_s = time.perf_counter()
    use_device(args.device)
    use_one_thread()
    checks = Checks(args.device, is_quick=args.quick)
    facts, known = device_facts(checks.device), checks.all()
    for name in args.checks or ():
        if name not in known:
            raise UnknownName("check", name, known, listed_in="--help", otherwise="leave --checks out to run all")
    shapes = "tiny shapes: this shows that the checks run, and nothing else" if args.quick else "shapes of Llama-2-7B"
    print_out(f"{facts.label}, {checks.dtype}, {checks.engine}, {shapes}")
    print_out(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {format_bytes(free_device_bytes(checks.device))} free\n")
    lines = lines_of(checks, args.checks or list(known), lambda names: lines_in_new_process(args, names))
    took_s = time.perf_counter() - start_s
    for line in lines:
        if line.outcome.rows:
            headers, *rows = line.outcome.rows
            print_out(f"\n{line.check}\n\n{table(rows, headers=headers, align='ll' + 'r' * (len(headers) - 2))}")
    if took_s > LIMIT_S:
        print_err(f"warning: this took {took_s:.0f} s, more than the {LIMIT_S:.0f} s that a session has for it")
    result = result_of(lines, took_s)
    print_out(f"\n{len(result['failed'])} of {len(lines)} checks failed, {took_s:.0f} s")
    finish(
        NAME,
        result=result,
        quick=args.quick,
        libraries=("torch", "transformers"),
        device=facts.label,
        driver=facts.driver,
        seed=SEED,
        details={"lines": [line.as_json for line in lines]},
        folder=args.output,
    )
    return 1 if result["failed"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="cpu", metavar="NAME", help="torch's name: cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--checks", nargs="+", metavar="NAME", help="some of those above, in this order (default: all)")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, metavar="FOLDER", help="where the result goes")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
