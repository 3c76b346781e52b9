"""Are results on a new device right, and how fast are the parts of a pass? Takes three minutes.

    captures      logits and texts of captured passes, with every choice of kernels, against passes launched kernel by kernel
    logits        logits of random Llamas, against transformers in fp32 on the CPU
    lossless      texts of captured speculation against plain texts
    layer         one layer of Llama-2-7B and of its draft with every choice of kernels; later checks use the fastest
    memory        peak memory of the 7B pair, against `s2d.loading.memory`
    workspaces    the part of it that cuBLAS keeps
    gemv          products of 1, 4 and 8 rows with the matrices of Llama-2-7B in both layouts, with no matrix in a cache
    exit-check    one exit check from an idle device
    plain-7b      plain decoding of 7B: tokens/s, and the share of the datasheet's bandwidth
    published-7b  the published thresholds over plain decoding, with traced acceptance

Correctness comes first. Each check prints a line when it is done: its verdict, the measured and the expected value, and its
duration. Times are expected to be at most 1.25 times the datasheet's prediction. A check that raises an error also prints a
line, and the other checks continue; if the error made the device unusable, they continue in another process. The exit code is
1 if a check failed.

The target duration on an H200 is 150 s. With --quick all shapes are tiny, which only shows that the checks run.

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
from typing import Any

import torch

from details.first_checks import OK, SEED, SLOW, UNMEASURED, Checks, Outcome
from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command, table
from perfmodel.core.errors import UnknownName
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Seconds, format_bytes
from profiler.machine.machine_facts import device_facts
from s2d.loading.memory import free_device_bytes
from s2d.model.torch_device import use_device
from shared.common import add_device_flags, finish, make_parser, use_one_thread

NAME = "first_minutes"
LIMIT_S: Seconds = 180.0
"""The limit of a GPU session. A longer run prints a warning."""
WIDTHS = (13, 22)
"""Widths of the columns of names and verdicts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One check and its outcome."""

    check: str
    took_s: Seconds
    outcome: Outcome

    @property
    def is_failed(self) -> bool:
        """Whether it raised an error or found a wrong result."""
        return self.outcome.verdict not in (OK, SLOW, UNMEASURED)

    @property
    def text(self) -> str:
        """The printed line."""
        outcome = self.outcome
        expected = f" (expected {outcome.expected})" if outcome.expected else ""
        check, verdict = (text.ljust(width) for text, width in zip((self.check, outcome.verdict), WIDTHS, strict=True))
        return f"{check} {verdict} {outcome.measured}{expected}, {self.took_s:.1f} s"

    @property
    def as_json(self) -> dict[str, Any]:
        """All fields."""
        outcome = self.outcome
        return {
            "check": self.check,
            "verdict": outcome.verdict,
            "measured": outcome.measured,
            "expected": outcome.expected,
            "took_s": self.took_s,
            "figures": outcome.figures,
            "rows": [list(row) for row in outcome.rows],
        }


def line_from_json(saved: dict[str, Any]) -> Line:
    """The inverse of `Line.as_json`."""
    fields = {name: saved[name] for name in ("verdict", "measured", "expected", "figures", "rows")}
    return Line(check=saved["check"], took_s=saved["took_s"], outcome=Outcome(**fields))


def run_check(name: str, check: Callable[[], Outcome]) -> Line:
    """Run one check. An error becomes its verdict."""
    start_s = time.perf_counter()
    try:
        outcome = check()
        outcome = replace(outcome, figures={key: finite_or_none(figure) for key, figure in outcome.figures.items()})
    except Exception as err:  # the other checks continue
        first_line = (str(err).strip() or "no message").splitlines()[0]
        outcome = Outcome(verdict=f"failed: {type(err).__name__}: {first_line}", measured="nothing", figures={})
        print_err(f"{name}: {err!r}")
    return Line(check=name, took_s=time.perf_counter() - start_s, outcome=outcome)


def finite_or_none(figure: float | str | None) -> float | str | None:
    """A figure for the result. Infinity and NaN, after an error, become None; the line still shows them."""
    return None if isinstance(figure, float) and not math.isfinite(figure) else figure


def is_lost(device: torch.device) -> bool:
    """Whether the device is unusable in this process: an error on a GPU persists until the process ends."""
    if device.type == "cpu":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def run_checks(checks: Checks, names: Sequence[str], in_new_process: Callable[[Sequence[str]], list[Line]]) -> list[Line]:
    """Run checks by name, and print a line for each."""
    lines, checks_by_name = [], checks.all()
    for index, name in enumerate(names):
        lines.append(run_check(name, checks_by_name[name]))
        print_out(lines[-1].text)
        rest = names[index + 1 :]
        if lines[-1].is_failed and rest and is_lost(checks.device):
            print_err(f"the device is unusable in this process: running {', '.join(rest)} in another one")
            return lines + in_new_process(rest)
    return lines


def run_checks_in_new_process(args: argparse.Namespace, names: Sequence[str]) -> list[Line]:
    """Run checks by name in another process, which prints their lines. If it dies, every check has a failed line."""
    folder = args.output / "after_a_fault"
    flags = ["--device", args.device, *(["--quick"] if args.quick else []), "-o", str(folder), "--checks", *names]
    ended = subprocess.run([sys.executable, __file__, *flags], check=False)
    path = folder / f"{NAME}{'.quick' if args.quick else ''}.json"
    if not path.exists():
        verdict = f"failed: exit code {ended.returncode}"
        return [Line(check=name, took_s=0.0, outcome=Outcome(verdict=verdict, measured="", figures={})) for name in names]
    return [line_from_json(saved) for saved in json.loads(path.read_text("utf-8"))["details"]["lines"]]


def result_of(lines: Sequence[Line], took_s: Seconds) -> dict[str, Any]:
    """The summary."""
    figures = {name: figure for line in lines for name, figure in line.outcome.figures.items()}
    return {
        "num_checks": len(lines),
        "failed": [line.check for line in lines if line.is_failed],
        "slower_than_expected": [line.check for line in lines if line.outcome.verdict == SLOW],
        "took_s": took_s,
        **figures,
    }


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    start_s = time.perf_counter()
    use_device(args.device)
    use_one_thread()
    checks = Checks(args.device, is_quick=args.quick)
    facts, known = device_facts(checks.device), checks.all()
    for name in args.checks or ():
        if name not in known:
            raise UnknownName("check", name, known, listed_in="--help", otherwise="leave --checks out to run all")
    shapes = "tiny shapes: this only shows that the checks run" if args.quick else "shapes of Llama-2-7B"
    print_out(f"{facts.label}, {checks.dtype}, {checks.mode}, {shapes}")
    print_out(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {format_bytes(free_device_bytes(checks.device))} free\n")
    lines = run_checks(checks, args.checks or list(known), lambda names: run_checks_in_new_process(args, names))
    took_s = time.perf_counter() - start_s
    for line in lines:
        if line.outcome.rows:
            headers, *rows = line.outcome.rows
            print_out(f"\n{line.check}\n\n{table(rows, headers=headers, align='ll' + 'r' * (len(headers) - 2))}")
    if took_s > LIMIT_S:
        print_err(f"warning: this took {took_s:.0f} s, more than the {LIMIT_S:.0f} s of a GPU session")
    result = result_of(lines, took_s)
    print_out(f"\n{len(result['failed'])} of {len(lines)} checks failed, {took_s:.0f} s")
    finish(
        NAME,
        quick=args.quick,
        result=result,
        provenance=make_provenance(libraries=("torch", "transformers"), device=facts.label, driver=facts.driver, seed=SEED),
        details={"lines": [line.as_json for line in lines]},
        folder=args.output,
    )
    return 1 if result["failed"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_device_flags(parser)
    parser.add_argument("--checks", nargs="+", metavar="NAME", help="checks to run, in this order (default: all)")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
