"""The public names are these, they load only what they need, and the examples run as written."""

import doctest
import inspect
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import s2d
from perfmodel.core.errors import in_python_words

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PUBLIC = """
CalibrationCurve Completion ConfidenceFloor Engine EngineReport Export HeuristicLength ModelLatency Plan Policy
Profile Residuals RoundStats RunReport RunRequest S2DError Sampling SpeculativeModel SurvivalFloor Trace
UserInputError __version__
calibrate_draft compare draft_lengths draft_shapes export find_engine latency load plan plan_engines profile
profile_engine profile_law read_engine_metrics reduce_vocab replay replay_prompts run train_draft write_exits
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


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `profile/`, `plan.json` and `report.json` of the reference family, which the examples read."""
    folder = tmp_path_factory.mktemp("loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        measured = s2d.profile("ref-target-16", draft="ref-draft", device="cpu", num_prompts=2, max_new_tokens=32, budget_s=5)
        assert measured.trace_path is not None
        plan = s2d.plan(trace=measured.trace_path, profiles=measured.latency_paths)
        plan.save("plan.json")
        report = s2d.run("plan.json", check=True, num_prompts=2, max_new_tokens=32)
        assert report is not None
        report.save("report.json")
    return folder


def examples() -> Iterator[doctest.DocTest]:
    """The examples in the docstrings of the public names and of their methods."""
    finder, seen = doctest.DocTestFinder(exclude_empty=True), set()
    for name in PUBLIC:
        value = inspect.unwrap(getattr(s2d, name)) if callable(getattr(s2d, name)) else None
        for test in finder.find(value, name, module=False, globs={"s2d": s2d}) if value is not None else ():
            if test.examples and test.name not in seen:
                seen.add(test.name)
                yield test


@pytest.mark.e2e
def test_the_examples_of_the_docstrings_are_true(loop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(loop)
    tests = list(examples())
    failed = [test.name for test in tests if doctest.DocTestRunner(verbose=False).run(test).failed]
    skipped = {test.name for test in tests if any(example.options.get(doctest.SKIP) for example in test.examples)}
    assert not failed
    needs_model_or_engine = {"train_draft", "calibrate_draft", "reduce_vocab", "write_exits", "export", "profile_engine"}
    assert skipped == needs_model_or_engine


def test_every_public_function_has_an_example() -> None:
    functions = {name for name in PUBLIC if inspect.isfunction(getattr(s2d, name))}
    assert functions <= {test.name for test in examples()}


@pytest.mark.e2e
def test_the_python_of_the_readme_runs_as_written(loop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(loop)
    [code] = re.findall(r"```python\n(import s2d\n.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {"confidence": np.full((4, 3), 0.7), "agrees": np.ones((4, 3), bool)})


@pytest.mark.e2e
def test_five_lines_plan_replay_and_price(loop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(loop)
    plan = s2d.plan("llama-70b", device="h100", batch=1)
    plan.save("own.json")
    assert s2d.Plan.load("own.json") == plan
    confidence, agrees = np.full((24, 3), 0.7), np.ones((24, 3), bool)
    trace = s2d.Trace.from_arrays(confidence, agrees, exits=(6, 9, 12))
    policy = s2d.Policy(exits=(6, 12), thresholds=(0.68,), tokens=12)
    assert s2d.replay(trace, policy).tokens_per_round == 12.0  # 13, and 11 at the end
    assert s2d.latency("llama-2-70b", device="a100-80gb").verify(rows=6, context=768) > 0
    assert s2d.latency("profile/target.latency.json").verify(rows=1, context=64) > 0


def test_a_plan_has_short_names_for_its_answer() -> None:
    plan = s2d.plan("vicuna-7b", device="h100")
    assert (plan.policy, plan.speedup) == (plan.chosen.policy, plan.chosen.speedup.speedup)
    assert plan.tokens_per_s == plan.chosen.speedup.tokens_per_s


def test_an_error_names_arguments_and_leaves_commands_as_they_are() -> None:
    with pytest.raises(s2d.UserInputError, match=r"^batch 8: only batch 1 is predicted"):
        s2d.plan("vicuna-7b", device="h100", batch=8)
    assert in_python_words("--draft-vocab 0: give --profile, or s2d-plan fit x --dtype y. Leave --fit out") == (
        "draft_vocab 0: give profiles, or s2d-plan fit x --dtype y. Leave fit out"
    )


def test_wrong_values_from_python_are_input_errors() -> None:
    trace = s2d.Trace.from_arrays([[0.5]], [[1]], exits=(6,))
    floor = s2d.ConfidenceFloor(floor=0.5)
    calls = {
        r"exits 6: expected a sequence, such as exits=\(6,\)": lambda: s2d.Policy(exits=6, tokens=4),
        r"exits \(-1,\): expected at least one exit": lambda: s2d.Policy(exits=(-1,), tokens=4),
        r"exits \(6.5,\): expected at least one exit": lambda: s2d.Policy(exits=(6.5,), tokens=4),
        r"thresholds 0.5: expected a sequence": lambda: s2d.Policy(exits=(6, 12), thresholds=0.5, tokens=4),
        "threshold 'x' of exit 6": lambda: s2d.Policy(exits=(6, 12), thresholds=("x",), tokens=4),
        "2.5 tokens per round": lambda: s2d.Policy(exits=(6,), tokens=2.5),
        "stop 0.5: expected a stop rule": lambda: s2d.Policy(exits=(6,), tokens=4, stop=0.5),
        "confidence 'foo': expected 'max-prob', 'margin', 'entropy'": lambda: s2d.Policy(
            exits=(6,), tokens=4, confidence="foo"
        ),
        "rule 'foo': expected 'greedy'": lambda: s2d.Sampling(rule="foo", temperature=1, seed=0),
        "rule 'ratio' needs a seed": lambda: s2d.Sampling(rule="ratio", temperature=1),
        "trace is 'trace.npz': expected a Trace": lambda: s2d.replay("trace.npz", None),
        "a ConfidenceFloor: expected a Policy, such as plan.policy": lambda: s2d.replay(trace, floor),
        "prompts_split 'half': expected one of 'calibration', ": lambda: s2d.plan("vicuna-7b", prompts_split="half"),
        "batch 0: expected at least 1": lambda: s2d.latency("llama-2-7b", device="h100", batch=0),
        "stage 0 of 'llama-2-7b', which has 0 exits: expected a draft. Give exits= to s2d.latency": (
            lambda: s2d.latency("llama-2-7b", device="h100").segment(context=9)
        ),
        "stage 7 of 's2d-vicuna-12', which has 3 exits: expected 0 to 2": (
            lambda: s2d.latency("s2d-vicuna-12", device="h100").exit_check(stage=7)
        ),
        "no draft length is given": lambda: s2d.draft_lengths("llama-2-70b", draft="s2d", device="h100", lengths=()),
        "prompts holds other values than integers": lambda: s2d.Trace.from_arrays([[0.5]], [[1]], exits=(6,), prompts=[1.0]),
        "prompt_tokens holds 0, expected at least 1": lambda: s2d.Trace.from_arrays(
            [[0.5]], [[1]], exits=(6,), prompt_tokens=0
        ),
        "confidence is not an array of numbers": lambda: s2d.Trace.from_arrays([["x"]], [[1]], exits=(6,)),
        "exits 6.5: expected rising layer counts": lambda: s2d.Trace.from_arrays([[0.5]], [[1]], exits=6.5),
        "confidence_measure is 'x', expected one of": (
            lambda: s2d.Trace.from_arrays([[0.5]], [[1]], exits=(6,), confidence_measure="x")
        ),
        "what is 'x': expected one of 'all'": lambda: s2d.profile("ref-target-16", draft="ref-draft", what="x"),
    }
    wrong = []
    for message, call in calls.items():
        try:
            call()
            wrong.append(f"{message}: no error")
        except s2d.UserInputError as err:
            if not re.search(message, str(err)):
                wrong.append(f"{message}: {err}")
    assert not wrong
