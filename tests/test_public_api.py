"""The public names are these, they load only what they need, and the examples run as written."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import s2d

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PUBLIC = """
CalibrationCurve Completion ConfidenceFloor HeuristicLength ModelLatency Plan Policy Profile Residuals RoundStats
RunReport RunRequest S2DError Sampling SpeculativeModel SurvivalFloor Trace UserInputError __version__
calibrate_draft compare draft_lengths draft_shapes latency load plan profile profile_law reduce_vocab
replay replay_prompts run train_draft write_exits
""".split()  # noqa: SIM905


def test_the_public_names_are_pinned() -> None:
    assert sorted(s2d.__all__) == sorted(PUBLIC)
    assert dir(s2d) == sorted(PUBLIC)
    assert not [name for name in PUBLIC if not hasattr(s2d, name)]


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no public name 'plans'"):
        s2d.plans  # noqa: B018


def test_every_public_function_and_class_documents_itself() -> None:
    undocumented = [name for name in PUBLIC if name != "__version__" and not (getattr(s2d, name).__doc__ or "").strip()]
    assert not undocumented


def test_planning_and_replay_import_no_torch() -> None:
    code = (
        "import sys, s2d; s2d.plan('vicuna-7b', device='h100'); s2d.latency('vicuna-7b', device='h100').plain(context=99); "
        "s2d.Trace, s2d.Policy, s2d.replay, s2d.compare; print({'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_importing_the_package_imports_nothing_else() -> None:
    packages = "('numpy', 'perfmodel', 'calibrate', 'profiler')"
    code = f"import sys, s2d; print([name for name in sys.modules if name.startswith({packages})])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.e2e
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_written(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
