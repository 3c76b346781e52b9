"""The generated parts of README.md: the plan that its first command prints, and measured errors of predictions."""

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import Any
from unittest.mock import patch

from docs.generate.marks import with_part
from perfmodel.core.units import format_frac, format_speedup
from perfmodel.engines.find_engine import find_engine

ROOT = Path(__file__).resolve().parents[2]
PLAN = "s2d-plan --target llama-70b"


def with_readme_parts(page: str) -> str:
    """The page with its parts made anew."""
    parts = {"plan-output": f"```\n{plan_output()}\n```", "prediction": prediction_text(), "engines": engines_text()}
    for name, text in parts.items():
        page = with_part(page, name, text)
    return page


def plan_output() -> str:
    """What the first command prints on a machine without a GPU."""
    from calibrate.commands.plan_cli import main_plan

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), patch("calibrate.inputs.find_gpus.present_gpus", return_value=()):
        code = main_plan(shlex.split(PLAN)[1:])
    assert code == 0, f"{PLAN} ended with {code}"
    return printed.getvalue().rstrip()


def prediction_text() -> str:
    """The error of predicted speedups, from benchmarks/results/prediction.json."""
    kept = _kept("prediction")
    result = kept["result"]
    errors = (result[f"{which}_abs_error_frac"] for which in ("median", "p95", "worst"))
    median, p95, worst = map(format_frac, errors)
    return (
        f"In the bundled runtime, {result['num_configs']} configurations on prompts that were not profiled "
        f"([figure](docs/figures/predicted_against_measured.png); {kept['provenance']['device']}): median error of the speedup "
        f"**{median}**, 95th percentile {p95}, worst {worst}, where plain decoding differs from itself by "
        f"{format_frac(result['noise_frac'])}. The 90 % intervals held {format_frac(result['interval_coverage_frac'])} of the "
        f"measurements."
    )


def engines_text() -> str:
    """The error of speedups predicted in other engines, from benchmarks/results/engines.json."""
    kept = _kept("engines")
    result = kept["result"]
    keys = ("median_abs_error_frac", "p95_abs_error_frac", "regret_frac", "leviathan_median_abs_error_frac")
    median, p95, regret, formula = (format_frac(result[key]) for key in keys)
    num_right = round(result["decision_accuracy_frac"] * result["num_decisions"])
    speedups = [config["measured_speedup"] for config in kept["details"]["configs"]]
    titles = dict.fromkeys(find_engine(setting["engine"]).title for setting in kept["details"]["settings"])
    return (
        f"In {len(titles)} engines ({', '.join(titles)}; {kept['provenance']['device']}), {result['num_configs']} "
        f"configurations were predicted whose exits and lengths no profile had. On other prompts than the profile's they "
        f"measured {format_speedup(min(speedups))} to {format_speedup(max(speedups))}. The median error of the speedup "
        f"is **{median}**, the 95th percentile {p95}. "
        f"Whether to draft was right in {num_right} of the {result['num_decisions']} cases that "
        f"measured below 0.97x or above 1.03x. In the mean, plans were {regret} slower than the best measured configuration. "
        f"Leviathan's formula has a median error of {formula}, although it was given the engine's own acceptance."
    )


def _kept(name: str) -> dict[str, Any]:
    """The last full run of a benchmark."""
    kept: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return kept
