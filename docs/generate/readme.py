"""The generated parts of README.md: the plan that its first command prints, and the measured errors of predictions."""

import contextlib
import io
import json
import shlex
from pathlib import Path
from unittest.mock import patch

from docs.generate.marks import with_part
from perfmodel.core.units import format_frac

ROOT = Path(__file__).resolve().parents[2]
PLAN = "s2d-plan --target llama-70b"


def with_readme_parts(page: str) -> str:
    """The page with both parts made anew."""
    return with_part(with_part(page, "plan-output", f"```\n{plan_output()}\n```"), "prediction", prediction_text())


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
    kept = json.loads((ROOT / "benchmarks" / "results" / "prediction.json").read_text(encoding="utf-8"))
    result = kept["result"]
    errors = (result[f"{which}_abs_error_frac"] for which in ("median", "p95", "worst"))
    median, p95, worst = map(format_frac, errors)
    return (
        f"{result['num_configs']} configurations on prompts that were not profiled ({kept['provenance']['device']}): median "
        f"error of the speedup **{median}**, 95th percentile {p95}, worst {worst}, where plain decoding differs from itself by "
        f"{format_frac(result['noise_frac'])}. The 90 % intervals held {format_frac(result['interval_coverage_frac'])} of the "
        f"measurements."
    )
