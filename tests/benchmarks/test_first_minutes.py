"""The first minutes on a device: a check that fails costs only itself, and wrong kernels are found."""

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
    """Some checks by name."""

    device = torch.device("cpu")

    def __init__(self, **checks) -> None:
        self.checks = checks

    def all(self):
        return self.checks


def good() -> Outcome:
    return Outcome(verdict=OK, measured="1", figures={"ones": 1})


def broken() -> Outcome:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")


def test_a_check_that_raises_is_a_failed_line_and_the_others_go_on(capsys) -> None:
    lines = first_minutes.lines_of(FakeChecks(bad=broken, fine=good), ["bad", "fine"], lambda names: [])
    assert [line.is_failed for line in lines] == [True, False]
    verdict = "failed: RuntimeError: CUDA error: an illegal memory access was encountered"
    assert lines[0].outcome.verdict == verdict
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split(None, 1)[1].startswith(verdict)
    assert printed[1].startswith("fine")
    result = first_minutes.result_of(lines, 3.0)
    assert result["failed"] == ["bad"]
    assert result["ones"] == 1


def test_after_a_lost_device_the_rest_runs_in_another_process(monkeypatch) -> None:
    monkeypatch.setattr(first_minutes, "is_lost", lambda device: True)
    asked = []

    def in_new_process(names):
        asked.extend(names)
        return [first_minutes.line_after(name, good) for name in names]

    lines = first_minutes.lines_of(FakeChecks(a=good, b=broken, c=good, d=good), list("abcd"), in_new_process)
    assert asked == ["c", "d"]
    assert [line.check for line in lines] == list("abcd")


def test_another_process_gives_its_lines_or_failed_ones(tmp_path) -> None:
    args = first_minutes._parser().parse_args(["--quick", "-o", str(tmp_path)])
    (line,) = first_minutes.lines_in_new_process(args, ["gemv"])
    assert (line.check, line.outcome.verdict) == ("gemv", OK)
    assert line.outcome.rows
    args.device = "cuda:99"
    args.output = tmp_path / "other"
    (lost,) = first_minutes.lines_in_new_process(args, ["gemv"])
    assert lost.outcome.verdict == "failed: exit code 2"


def test_figures_that_are_no_numbers_are_left_out_of_the_result() -> None:
    line = first_minutes.line_after("a", lambda: replace(good(), figures={"error_frac": float("nan"), "kernels": "x"}))
    assert line.outcome.figures == {"error_frac": None, "kernels": "x"}


def test_kernels_that_fail_do_not_hide_the_others(monkeypatch) -> None:
    logits = captured_checks.block_logits

    def refuses(decoder, ids):
        if decoder.kernels.norm == "fused":
            raise RuntimeError("no such kernel")
        return logits(decoder, ids)

    monkeypatch.setattr(captured_checks, "block_logits", refuses)
    monkeypatch.setattr(first_checks, "captured_texts", lambda device, num_texts: (0, 0))
    found = Checks("cpu", is_quick=True).captures()
    assert found.verdict == first_checks.WRONG
    assert "inf in fp32 (input-major,products,fused)" in found.measured


@pytest.mark.parametrize(("verdict", "is_failed"), [(OK, False), (SLOW, False), (UNMEASURED, False), ("failed: x", True)])
def test_only_failures_count_as_failed(verdict: str, is_failed: bool) -> None:
    outcome = Outcome(verdict=verdict, measured="", figures={})
    line = first_minutes.Line(check="a", took_s=0.0, outcome=outcome)
    assert line.is_failed == is_failed
    assert first_minutes.line_of(line.as_json) == replace(line, outcome=replace(outcome, rows=[]))


def test_converted_weights_give_the_same_logits_and_wrong_ones_are_found(monkeypatch) -> None:
    checks = Checks("cpu", is_quick=True)
    monkeypatch.setattr(first_checks, "captured_texts", lambda device, num_texts: (0, 0))
    assert checks.captures().verdict == OK
    convert = captured_checks.with_kernels

    def forgets_the_scale(weights, kernels, dtype=None):
        found = convert(weights, kernels, dtype)
        return replace(found, head=found.head * 1.05) if kernels.weight_layout == "output-major" else found

    monkeypatch.setattr(captured_checks, "with_kernels", forgets_the_scale)
    found = checks.captures()
    assert found.verdict == first_checks.WRONG
    assert "output-major" in found.measured


def test_the_fastest_kernels_are_those_of_the_pair() -> None:
    checks = Checks("cpu", is_quick=True)
    assert checks.kernels == STANDARD_KERNELS
    found = checks.layer()
    assert checks.kernels == parse_kernels(found.figures["kernels"])
    assert checks.pair.target.decoder.kernels == checks.kernels


def test_seconds_beyond_the_datasheets_are_slow_and_without_a_datasheet_nothing_is() -> None:
    assert first_checks._pace(1.3, 1.0) == SLOW
    assert first_checks._pace(1.2, 1.0) == OK
    assert first_checks._pace(1e9, None) == OK
