"""How long does a person wait for an answer without a GPU: `s2d-plan --help` and `s2d-plan --target llama-70b`?

Each command runs several times in a fresh interpreter, from the command line to the exit of the process; the median counts. The
first run is dropped, because Python writes its bytecode cache then. Heavy imports are modules loaded after a plan that shipped
evidence does not need. Alternating with the plans, Python also starts, imports numpy and exits. This shows the time that is not
ours, and the speed of the machine.

    python benchmarks/startup.py [--quick]
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from perfmodel.core.console import print_out, table
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Seconds, format_seconds
from shared.common import ROOT, finish, make_parser

HELP_BUDGET_S: Seconds = 0.15
PLAN_BUDGET_S: Seconds = 0.5
HEAVY = ("torch", "transformers", "scipy", "pandas", "matplotlib")
HELP = ("--help",)
PLAN = ("--target", "llama-70b")
_RUN = "import sys; from calibrate.commands.plan_cli import main_plan; code = main_plan(sys.argv[1:]); "
_EXIT = "sys.exit(code)"
_LIST_MODULES = "print(*sys.modules, file=sys.stderr); sys.exit(code)"
_IMPORT_NUMPY = "import numpy"


def main() -> None:
    quick = make_parser(__doc__).parse_args().quick
    num_runs = 5 if quick else 15
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = bytecode
        codes = {"s2d-plan --help": (_RUN + _EXIT, *HELP), "s2d-plan --target llama-70b": (_RUN + _EXIT, *PLAN)}
        codes["import numpy"] = (_IMPORT_NUMPY,)
        for code in codes.values():
            elapsed_s(code, environment)  # the first run reads from disk and writes the bytecode cache
        runs = [[elapsed_s(code, environment) for code in codes.values()] for _ in range(num_runs)]
        help_s, plan_s, numpy_s = map(list, zip(*runs, strict=True))
    heavy = sorted(modules_after(PLAN) & set(HEAVY))
    budgets = (HELP_BUDGET_S, PLAN_BUDGET_S, None)
    rows = [row(*columns) for columns in zip(codes, (help_s, plan_s, numpy_s), budgets, strict=True)]
    print_out(table(rows, headers=["command", "median", "fastest", "slowest", "budget"]))
    print_out(f"\nheavy imports after a plan: {', '.join(heavy) or 'none'}")
    result = {
        "help_s": statistics.median(help_s),
        "plan_s": statistics.median(plan_s),
        "heavy_imports": heavy,
        "help_loads_numpy": "numpy" in modules_after(HELP),
        "fastest_help_s": min(help_s),
        "fastest_plan_s": min(plan_s),
        "numpy_s": statistics.median(numpy_s),
        "fastest_numpy_s": min(numpy_s),
        "num_runs": num_runs,
    }
    finish(
        "startup",
        quick=quick,
        result=result,
        provenance=make_provenance(libraries=("numpy",)),
    )


def elapsed_s(code: Sequence[str], environment: Mapping[str, str]) -> Seconds:
    """Wall time of code with arguments in a fresh interpreter, including start and exit."""
    start_s = time.perf_counter()
    command = [sys.executable, "-c", *code]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start_s


def modules_after(arguments: Sequence[str]) -> set[str]:
    """Modules loaded after the command has answered."""
    command = [sys.executable, "-c", _RUN + _LIST_MODULES, *arguments]
    return set(subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stderr.split())


def row(name: str, seconds: Sequence[Seconds], budget_s: Seconds | None) -> list[str]:
    texts = map(format_seconds, (statistics.median(seconds), min(seconds), max(seconds)))
    return [name, *texts, "" if budget_s is None else format_seconds(budget_s)]


if __name__ == "__main__":
    main()
