"""The default answer of every command fits one screen, and `--explain` prints the rest."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.commands.compare_cli import main_compare
from calibrate.commands.plan_cli import main_plan
from perfmodel.results.plan import PLAN_FILE
from perfmodel.results.report import REPORT_FILE
from tests.calibrate.factories import draft_profile, make_report, make_trace, provenance, write_evidence, write_profile

pytestmark = pytest.mark.e2e

SCREEN_LINES, SCREEN_CHARS = 24, 100
QUESTIONS = (
    ("--target", "llama-70b"),
    ("--target", "llama-70b", "--device", "h100"),
    ("--target", "llama-70b", "--draft-vocab", "8192"),
    ("--target", "vicuna-7b", "--device", "rtx-4090", "--mode", "eager", "--dtype", "q4_k_m"),
    ("--target", "vicuna-7b", "--device", "cpu", "--dtype", "int8"),
    ("--target", "llama-70b", "--device", "h100", "--engine", "llama.cpp"),
    ("--target", "llama-70b", "--engine", "vllm"),
    ("--target", "vicuna-7b", "--device", "cpu", "--engine", "all"),
    ("--target", "llama-70b", "--engine", "all"),
    ("--targets", "vicuna-7b,llama-2-70b"),
    ("design", "--target", "llama-2-70b", "--params", "1.3e9"),
    ("design", "--target", "llama-2-70b", "--draft", "llama-2-7b"),
    ("validate",),
)


def answer(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main_plan(arguments) == 0
    return capsys.readouterr().out.splitlines()


def check_one_screen(question: Sequence[str], lines: Sequence[str]) -> None:
    assert len(lines) <= SCREEN_LINES, (question, len(lines))
    assert max(map(len, lines)) <= SCREEN_CHARS, question


def test_every_default_answer_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    for question in QUESTIONS:
        check_one_screen(question, answer(question, capsys))


def test_explain_prints_more_within_the_width_of_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    for question in QUESTIONS:
        lines = answer([*question, "--explain"], capsys)
        assert max(map(len, lines)) <= SCREEN_CHARS, question
        assert len(lines) >= len(answer(question, capsys)), question


def test_answers_from_files_fit_one_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_evidence(Path())
    flags = ["--trace", "trace.npz", "--profile", "target.latency.json", "--profile", "draft.latency.json"]
    check_one_screen(flags, answer([*flags, "-o", "plan.json"], capsys))
    check_one_screen("fit", answer(["fit", "target.latency.json", "draft.latency.json"], capsys))
    plan = PLAN_FILE.read("plan.json")
    report = make_report(plan.record, plan.sha256, make_trace(), slower={"segment": 2.0})
    REPORT_FILE.write("report.json", report, provenance())
    assert main_compare(["--plan", "plan.json", "--report", "report.json"]) == 0
    check_one_screen("compare", capsys.readouterr().out.splitlines())
    check_one_screen("report", str(report).splitlines())


def test_a_plan_not_to_speculate_is_one_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, profile = write_evidence(tmp_path), draft_profile()
    slow = replace(profile.samples, seconds=tuple(100 * seconds for seconds in profile.samples.seconds))
    write_profile(tmp_path / "draft.latency.json", replace(profile, samples=slow))
    lines = answer(flags, capsys)
    assert any(line.startswith("plan        do not speculate: ") for line in lines)
    assert len(lines) <= SCREEN_LINES
