"""An ordinary model as a draft, through every command: profile, plan, run, compare."""

import json
from pathlib import Path

import pytest

from calibrate.commands.compare_cli import main_compare
from calibrate.commands.plan_cli import main_plan
from perfmodel.results.plan import PLAN_FILE
from perfmodel.results.report import REPORT_FILE
from profiler.commands.profile_cli import main_profile
from s2d.commands.run_cli import main_run
from tests.profiler.conftest import write_pair
from tests.stubs import TinySpec

pytestmark = pytest.mark.e2e

TARGET = TinySpec(num_layers=6)


@pytest.mark.parametrize(
    ("draft", "exits", "label"),
    [
        ("draft", None, "exits 4 (full depth: no s2d.json)"),
        ("draft", "1,3", "exits 1/3 (--exits)"),
        ("self", "2,4", "exits 2/4 (--exits)"),
    ],
)
def test_any_model_is_profiled_planned_run_and_compared_as_a_draft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], draft: str, exits: str | None, label: str
) -> None:
    pair = write_pair(tmp_path, TARGET)
    for folder in (pair.target, pair.draft):
        (folder / "s2d.json").unlink()
    out, plan, report = tmp_path / "profile", tmp_path / "plan.json", tmp_path / "report.json"
    models = ["--target", str(pair.target), "--draft", "self" if draft == "self" else str(pair.draft)]
    prompts = ["--prompts", str(pair.prompts), "--split", "all"]
    sizes = ["--num-prompts", "3", "--max-new-tokens", "16", "--draft-cap", "2", "--budget", "0.5"]
    assert main_profile([*models, *prompts, *sizes, "-o", str(out), *(["--exits", exits] if exits else [])]) == 0
    understood = capsys.readouterr().out.splitlines()
    assert label in understood[0]
    assert understood[3].startswith("prompts  3, ")

    profiles = [word for path in sorted(out.glob("*.latency.json")) for word in ("--profile", str(path))]
    assert main_plan([*profiles, "--trace", str(out / "trace.npz"), *models[2:], "-o", str(plan)]) == 0
    layers = tuple(map(int, (exits or "4").split(",")))
    assert PLAN_FILE.read(plan).record.draft.exit_layers == layers
    capsys.readouterr()

    with_policy = _with_policy(plan, layers)
    assert main_run(["--plan", str(with_policy), *models, *prompts, "--num-prompts", "2", "--check", "-o", str(report)]) == 0
    shown = capsys.readouterr().out
    assert f"exits {'/'.join(map(str, layers))} (the plan)" in shown
    assert "2 of 2 outputs equal the plain target's" in shown
    record = REPORT_FILE.read(report).record
    assert record.draft.exit_layers == layers
    assert sum(run.rounds.num_drafted for run in record.plan_arm.runs) > 0
    assert main_compare(["--plan", str(with_policy), "--report", str(report)]) == 0


def _with_policy(path: Path, layers: tuple[int, ...]) -> Path:
    """The same plan with a policy that uses every exit, whether or not it is fast."""
    raw = json.loads(path.read_text())
    policy = {
        "exits": layers,
        "thresholds": [0.5] * (len(layers) - 1),
        "tokens": 2,
        "stop": None,
        "confidence": "max-prob",
        "runs_ahead": False,
        "catches_up_at_once": False,
    }
    raw["body"]["chosen"]["policy"] = policy
    path.write_text(json.dumps(raw))
    return path
