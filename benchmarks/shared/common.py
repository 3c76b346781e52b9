"""What every benchmark shares: its flags, the table first, and the JSON object that ends it.

A benchmark is `python benchmarks/NAME.py [--quick]`. Its last line of stdout is one JSON object, which is also kept with
its provenance in benchmarks/results/NAME.json, or NAME.quick.json. Importing this module makes the checkout importable
without installing it.

`waited_frac` is the share of its time that the benchmark stood ready to run while other programs had the processors.

Provenance names the commit that ran, with `-dirty` when tracked files differed from it. What lies under benchmarks/results/
is not looked at, since no benchmark reads it: benchmarks that run one after another would each see the results of those
before as changes. Nothing else is left out, README's figure included: draw it last.
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
"""Public tables that are read in place and not shipped; --data names another folder."""
QUICK_S = 50.0
"""`--quick` ends within this many seconds on two cores."""

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from perfmodel.core.cpu_contention import Contention  # noqa: E402 importable only now

_CONTENTION = Contention()


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser that has `--quick`; pass the module's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"a smaller run that ends within {QUICK_S:.0f} s")
    return parser


def finish(
    name: str,
    *,
    result: Mapping[str, Any],
    quick: bool,
    libraries: Iterable[str] = (),
    device: str | None = None,
    driver: str | None = None,
    seed: int | None = None,
    inputs: Mapping[str, str] | None = None,
    details: Mapping[str, Any] | None = None,
    folder: Path = RESULTS,
) -> None:
    """End a benchmark: keep the result with its provenance, then print it as the last line of stdout.

    Args:
        name: the script's name without `.py`.
        result: the keys of DESIGN §9 and any others; NaN and infinity are refused, None means not measured.
        quick: keeps the result apart from that of a full run.
        libraries: distributions whose versions could change the numbers, such as `torch`.
        device: what ran, such as `NVIDIA H200`.
        driver: its driver's version.
        seed: the seed of everything random.
        inputs: SHA-256 of what went in, by role.
        details: what the result was summed up from; kept in the file only.
        folder: where the file goes.
    """
    from perfmodel.core.disk import write_atomically
    from perfmodel.core.provenance import make_provenance

    provenance = make_provenance(libraries=libraries, device=device, driver=driver, seed=seed, inputs=inputs)
    provenance = replace(provenance, git_commit=commit_but_for_results(ROOT))
    kept = {"benchmark": name, "provenance": asdict(provenance), "result": dict(result), "details": dict(details or {})}
    kept["waited_frac"] = _CONTENTION.waited_frac
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(folder / f"{name}{'.quick' if quick else ''}.json", text.encode("utf-8"))
    print(json.dumps(dict(result), allow_nan=False), flush=True)


def commit_but_for_results(root: Path) -> str | None:
    """A checkout's commit, with `-dirty` when a tracked file outside benchmarks/results/ differs; None where there is none."""

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


def one_thread() -> None:
    """Run torch on one CPU thread: at these sizes two are no faster and far noisier."""
    import torch

    torch.set_num_threads(1)


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which a share of the values lies, interpolated between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median(values: Iterable[float]) -> float:
    """The middle value."""
    return quantile(values, 0.5)
