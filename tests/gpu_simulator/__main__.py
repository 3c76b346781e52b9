"""Run a program on the simulated device: `python -m tests.gpu_simulator (-c CODE | -m MODULE | SCRIPT) [ARGS ...]`.

Behaves like `python` with the same arguments. Problems that did not raise are printed to stderr at the end, and turn an exit
code of 0 into 1.
"""

import runpy
import sys
import types
from pathlib import Path

from tests.gpu_simulator import simulated_gpu

USAGE = "usage: python -m tests.gpu_simulator [--gpu NAME] (-c CODE | -m MODULE | SCRIPT) [ARGS ...]"


def main() -> int:
    """Run the program of the command line; returns the exit code."""
    args = sys.argv[1:]
    name = "NVIDIA H200"
    if args[:1] == ["--gpu"] and len(args) > 1:
        name, args = args[1], args[2:]
    min_args = 2 if args[:1] in (["-c"], ["-m"]) else 1
    if len(args) < min_args or (min_args == 1 and args[0].startswith("-")):
        print(USAGE, file=sys.stderr)
        return 2
    with simulated_gpu(name) as simulator:
        code = _exit_code(args)
    for problem in simulator.problems:
        print(f"simulated GPU: {problem}", file=sys.stderr)
    return code or int(bool(simulator.problems))


def _exit_code(args: list[str]) -> int:
    """Run the program. If it exits with a message, the message is printed, as Python does."""
    try:
        _run(args)
    except SystemExit as exit_:
        if exit_.code is None or isinstance(exit_.code, int):
            return exit_.code or 0
        print(exit_.code, file=sys.stderr)
        return 1
    return 0


def _run(args: list[str]) -> None:
    if args[0] == "-c":
        sys.argv = ["-c", *args[2:]]
        sys.path[0] = ""
        main_module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(args[1], "<string>", "exec"), vars(main_module))
    elif args[0] == "-m":
        sys.argv = args[1:]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(args)
        sys.path[0] = str(Path(args[0]).resolve().parent)
        runpy.run_path(args[0], run_name="__main__")


if __name__ == "__main__":
    sys.exit(main())
