"""first_minutes.py: a failed check does not stop the others, and wrong kernels are found."""

from dataclasses import replace

import first_minutes
import pytest
import torch

from details import first_checks
from details.first_checks import OK, SLOW, UNMEASURED, Checks, Outcome
from perfmodel.passes.kernels import STANDARD_KERNELS, parse_kernels
from shared import captured_checks

pytestmark = pytest.mark.e2e


class FakeChecks:
    """Checks by name."""

    device = torch.device("cpu")

    def __init__(self, **checks) -> None:
        self.checks = checks

    def all(self):
        return self.checks


def good() -> Outcome:
    return Outcome(verdict=OK, measured="1", figures={"ones": 1})


def broken() -> Outcome:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")


def test_a_check_that_raises_is_a_failed_line_and_the_others_continue(capsys) -> None:
    lines = first_minutes.run_checks(FakeChecks(bad=broken, fine=good), ["bad", "fine"], lambda names: [])
    assert [line.is_failed for line in lines] == [True, False]
    verdict = "failed: RuntimeError: CUDA error: an illegal memory access was encountered"
    assert lines[0].outcome.verdict == verdict
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split(None, 1)[1].startswith(verdict)
    assert printed[1].startswith("fine")
    result = first_minutes.result_of(lines, 3.0)
    assert result["failed"] == ["bad"]
    assert result["ones"] == 1


def test_after_the_device_is_lost_the_rest_runs_in_another_process(monkeypatch) -> None:
    monkeypatch.setattr(first_minutes, "is_lost", lambda device: True)
    names_run = []

    def in_new_process(names):
        names_run.extend(names)
        return [first_minutes.run_check(name, good) for name in names]

    lines = first_minutes.run_checks(FakeChecks(a=good, b=broken, c=good, d=good), list("abcd"), in_new_process)
    assert names_run == ["c", "d"]
    assert [line.check for line in lines] == list("abcd")


def test_another_process_returns_its_lines_or_failed_lines(tmp_path) -> None:
    args = first_minutes._parser().parse_args(["--quick", "-o", str(tmp_path)])
    (line,) = first_minutes.run_checks_in_new_process(args, ["gemv"])
    assert (line.check, line.outcome.verdict) == ("gemv", OK)
    assert line.outcome.rows
    args.device = "cuda:99"
    args.output = tmp_path / "other"
    (lost,) = first_minutes.run_checks_in_new_process(args, ["gemv"])
    assert lost.outcome.verdict == "failed: exit code 2"


def test_nan_figures_are_left_out_of_the_result() -> None:
    line = first_minutes.run_check("a", lambda: replace(good(), figures={"error_frac": float("nan"), "kernels": "x"}))
    assert line.outcome.figures == {"error_frac": None, "kernels": "x"}


def test_kernels_that_fail_do_not_hide_the_others(monkeypatch) -> None:
    logits = captured_checks.block_logits

    def refuses(decoder, ids):
        if decoder.kernels.norm == "fused":
            raise RuntimeError("no such kernel")
        return logits(decoder, ids)

    monkeypatch.setattr(captured_checks, "block_logits", refuses)
    monkeypatch.setattr(first_checks, "captured_texts", lambda device, num_texts: (0, 0))
    outcome = Checks("cpu", is_quick=True).captures()
    assert outcome.verdict == first_checks.WRONG
    assert "inf in fp32 (input-major,products,fused)" in outcome.measured


@pytest.mark.parametrize(("verdict", "is_failed"), [(OK, False), (SLOW, False), (UNMEASURED, False), ("failed: x", True)])
def test_only_failures_count_as_failed(verdict: str, is_failed: bool) -> None:
    outcome = Outcome(verdict=verdict, measured="", figures={})
    line = first_minutes.Line(check="a", took_s=0.0, outcome=outcome)
    assert line.is_failed == is_failed
    assert first_minutes.line_from_json(line.as_json) == replace(line, outcome=replace(outcome, rows=[]))


def test_converted_weights_give_the_same_logits_and_wrong_ones_are_found(monkeypatch) -> None:
    checks = Checks("cpu", is_quick=True)
    monkeypatch.setattr(first_checks, "captured_texts", lambda device, num_texts: (0, 0))
    assert checks.captures().verdict == OK
    convert = captured_checks.with_kernels

    def forgets_the_scale(weights, kernels, dtype=None):
        converted = convert(weights, kernels, dtype)
        return replace(converted, head=converted.head * 1.05) if kernels.weight_layout == "output-major" else converted

    monkeypatch.setattr(captured_checks, "with_kernels", forgets_the_scale)
    outcome = checks.captures()
    assert outcome.verdict == first_checks.WRONG
    assert "output-major" in outcome.measured


def test_the_pair_uses_the_fastest_kernels() -> None:
    checks = Checks("cpu", is_quick=True)
    assert checks.kernels == STANDARD_KERNELS
    outcome = checks.layer()
    assert checks.kernels == parse_kernels(outcome.figures["kernels"])
    assert checks.pair.target.decoder.kernels == checks.kernels


def test_times_above_the_datasheet_limit_are_slow_and_without_a_datasheet_none_is() -> None:
    assert first_checks._pace(1.3, 1.0) == SLOW
    assert first_checks._pace(1.2, 1.0) == OK
    assert first_checks._pace(1e9, None) == OK
