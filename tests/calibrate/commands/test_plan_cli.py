"""`s2d-plan` and `s2d-compare` as a shell sees them: output, exit codes and loaded modules."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from calibrate.commands.compare_cli import main_compare
from calibrate.commands.plan_cli import main_plan
from perfmodel.results.plan import PLAN_FILE
from tests.calibrate.factories import unfolded, write_evidence

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "transformers", "scipy", "pandas", "matplotlib", "rich"}


def modules_after(*arguments: str) -> set[str]:
    """Modules loaded by the command in a fresh interpreter."""
    code = "import sys; from calibrate.commands.plan_cli import main_plan as main; main(sys.argv[1:])"
    code += "; print(*sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stderr.split())


def test_help_needs_no_numpy_and_nothing_of_ours_but_the_console() -> None:
    loaded = modules_after("--help")
    assert "numpy" not in loaded
    assert not loaded & {"calibrate.planning.make_plan", "perfmodel.acceptance.trace", "perfmodel.replay.replay"}


def test_an_answer_from_shipped_evidence_loads_nothing_heavy() -> None:
    assert not modules_after("--target", "llama-70b") & HEAVY


def test_the_answer_is_the_readme_s_on_stdout_and_nothing_is_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["--target", "llama-70b"]) == 0
    captured = capsys.readouterr()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"```\n{captured.out}```\n" in readme
    assert captured.err == ""


def test_json_prints_the_plan_file_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.json"
    assert main_plan(["--target", "vicuna-7b", "--device", "h100", "--json", "-o", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.out == output.read_text(encoding="utf-8")
    assert captured.err == f"wrote {output}\n"
    plan = json.loads(captured.out)
    assert (plan["schema"], plan["provenance"]["command"]) == (
        "s2d/plan",
        "s2d-plan --target vicuna-7b --device h100 --json -o plan.json",
    )
    assert plan["provenance"]["inputs"] == {"acceptance": PLAN_FILE.read(output).record.evidence[-1].sha256}


def test_the_same_question_has_the_same_answer(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for _ in range(2):
        assert main_plan(["--target", "vicuna-7b"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_a_plan_from_ones_own_files_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "my plan.json"
    assert main_plan([*write_evidence(tmp_path), "-o", str(plan)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "device      1 x a CPU, 1 thread, fp32, eager"
    assert any(line.startswith("latency     measured: ") for line in lines)
    assert "acceptance  traced: 384 positions of 6 prompts, greedy" in lines
    assert unfolded("\n".join(lines)).endswith(f"next: s2d-run --plan '{plan}' --check -o {tmp_path / 'report.json'}")
    assert str(tmp_path) not in plan.read_text(encoding="utf-8")


def test_a_plan_that_was_not_written_is_written_by_the_next_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write_evidence(tmp_path)
    assert main_plan(arguments) == 0
    again, run = unfolded(capsys.readouterr().out).rpartition("next: ")[2].split(" && ")
    assert shlex.split(again) == ["s2d-plan", *arguments, "-o", "plan.json"]
    assert run == "s2d-run --plan plan.json --check -o report.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "llama-7b0"], "s2d-plan: unknown target 'llama-7b0': did you mean 'llama-2-7b',"),
        (["--target", "vicuna-7b", "--device", "a1000"], "s2d-plan: unknown device 'a1000': did you mean 'a100-80gb-sxm'"),
        (["--target", "vicuna-7b", "--device", "v100", "--dtype", "bf16"], "s2d-plan: V100-32GB-SXM2 does not compute in bf16"),
        (["--target", "vicuna-7b", "--device", "no-such.toml"], "s2d-plan: 'no-such.toml': no such file."),
        (["--target", "llama-2-13b"], "s2d-plan: no acceptance evidence for target 'llama-2-13b': traces ship for"),
        (["--target", "vicuna-7b", "--batch", "8"], "s2d-plan: --batch 8: only --batch 1 is predicted."),
        (["--trace", "no-such.npz"], "s2d-plan: 'no-such.npz': "),
        (["--target", "vicuna-7b", "-o", "no/such/folder/plan.json"], "s2d-plan: 'no/such/folder/plan.json': "),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_answered_ends_with_2_and_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_plan(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.out == ""


def test_a_plan_given_as_a_trace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.json"
    assert main_plan(["--target", "vicuna-7b", "--json", "-o", str(plan)]) == 0
    capsys.readouterr()
    assert main_plan(["--trace", str(plan)]) == 2
    assert "this is a file of schema 's2d/plan', expected 's2d/acceptance-trace'" in capsys.readouterr().err
    assert main_compare(["--plan", str(plan), "--report", str(plan)]) == 2
    assert "this is a file of schema 's2d/plan', expected 's2d/run-report'" in capsys.readouterr().err


def test_options_before_a_verb_are_refused_as_the_verb_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["--json", "validate"]) == 2
    message = "s2d-plan: options before the verb 'validate': expected them after it. Put 'validate' first.\n"
    assert capsys.readouterr().err == message


def test_help_lists_the_verbs_and_each_verb_has_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in ("validate", "design", "fit"):
        assert f"\n    {verb} " in shown
        assert main_plan([verb, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: s2d-plan {verb} ")


def test_an_unknown_verb_or_option_is_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = "expected 'export', 'validate', 'design' or 'fit'"
    near = {
        ("llama-70b",): f"unknown verb 'llama-70b': {verbs}. A target is given as --target llama-70b.",
        ("--targett", "llama-70b"): "unknown option '--targett': did you mean '--target'?",
        ("--params", "3e9", "design"): "--params is an option of the verb 'design': expected it after the verb.",
    }
    for command, message in near.items():
        assert main_plan(list(command)) == 2
        assert capsys.readouterr().err == f"s2d-plan: {message} See s2d-plan --help.\n"
    assert main_plan(["validate", "--device", "h100"]) == 2
    assert capsys.readouterr().err == "s2d-plan validate: unknown option '--device'. See s2d-plan validate --help.\n"
