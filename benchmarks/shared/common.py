"""Flags, output and result files shared by all benchmarks.

A benchmark is run as `python benchmarks/NAME.py [--quick]`. It prints a table, then one JSON object as the last line of stdout.
The same object is written with its provenance to benchmarks/results/NAME.json, or NAME.quick.json with --quick. Importing this
module makes the checkout importable without installation.

`waited_frac` is the share of the run during which the benchmark was ready to run but other programs used the processors.

The provenance names the commit, with `-dirty` if tracked files differ from it. Changes under benchmarks/results/ do not count,
because no benchmark reads them. Otherwise, of several benchmarks in a row, each would be `-dirty` because of the results of the
previous ones. All other tracked files count, including the figure of README: draw it last.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"
SHARED_DATA = ROOT.parent / "shared" / "data"
"""Public tables that are not shipped. --data names another folder."""
QUICK_S = 50.0
"""The maximum duration of a `--quick` run on two cores."""

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from perfmodel.core.cpu_contention import Contention  # noqa: E402 needs the path above
from perfmodel.core.disk import write_atomically  # noqa: E402
from perfmodel.core.provenance import Provenance  # noqa: E402

_CONTENTION = Contention()


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with `--quick`. Pass the docstring of the module."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"a smaller run of at most {QUICK_S:.0f} s")
    return parser


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the device and for the folder of the result."""
    parser.add_argument("--device", default="cpu", metavar="NAME", help="torch's name: cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, metavar="FOLDER", help="folder for the result")


def finish(
    name: str,
    *,
    quick: bool,
    result: Mapping[str, Any],
    provenance: Provenance,
    details: Mapping[str, Any] | None = None,
    folder: Path = RESULTS,
) -> None:
    """Write the result and its provenance to a file, then print the result as the last line of stdout.

    Args:
        name: the name of the script without `.py`.
        quick: writes to a separate file, apart from full runs.
        result: the figures of the run. NaN and infinity are refused; None means not measured.
        provenance: how the result was made.
        details: the measurements behind the result; only written to the file.
        folder: the folder of the file.
    """
    provenance = replace(provenance, git_commit=commit_ignoring_results(ROOT))
    kept = {"benchmark": name, "provenance": asdict(provenance), "result": dict(result), "details": dict(details or {})}
    kept["waited_frac"] = _CONTENTION.waited_frac
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(folder / f"{name}{'.quick' if quick else ''}.json", text.encode("utf-8"))
    print(json.dumps(dict(result), allow_nan=False), flush=True)


def commit_ignoring_results(root: Path) -> str | None:
    """The commit of a checkout, with `-dirty` if a tracked file outside benchmarks/results/ differs. None without git."""

    def git(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)

    if not (root / ".git").exists():
        return None
    try:
        commit = git("rev-parse", "HEAD").stdout.strip()
        changed = git("diff", "--name-only", "HEAD", "--", ".", ":(exclude)benchmarks/results")
    except OSError:
        return None
    if not commit or changed.returncode:
        return None
    return f"{commit}-dirty" if changed.stdout else commit


def use_one_thread() -> None:
    """Run torch on one CPU thread. For these small models, two threads are no faster and much noisier."""
    import torch

    torch.set_num_threads(1)


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which the given share of the values lies, interpolated linearly."""
    ordered = sorted(values)
    rank = share * (len(ordered) - 1)
    lower = math.floor(rank)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (rank - lower)


def median(values: Iterable[float]) -> float:
    """The middle value."""
    return quantile(values, 0.5)
