"""Latency profiles and reports of earlier versions."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from calibrate.inputs.requests import PlanRequest
from calibrate.planning.make_plan import make_plan
from perfmodel.acceptance.trace import write_trace
from perfmodel.core.errors import BadFile
from perfmodel.passes.kernels import STANDARD_KERNELS
from perfmodel.passes.latency_profile import LatencyProfile, read_latency_profile, write_latency_profile
from perfmodel.passes.passes import PREFILL_KINDS, PassSamples
from perfmodel.results.report import read_report, write_report
from tests.calibrate.factories import draft_profile, make_report, make_trace, provenance, target_profile

SAMPLES = PassSamples(
    kind=("target_prefill", "draft_prefill", "draft_prefill", "segment", "exit"),
    stage=(0, 0, 1, 0, 0),
    rows=(9, 9, 9, 1, 1),
    cached_tokens=(0, 0, 0, 9, 0),
    place=(1, 1, 1, 1, 1),
    seconds=(2e-3, 1e-3, 3e-3, 1e-4, 5e-5),
)


def join_prefills(samples: dict[str, Any]) -> None:
    """Make one kind of both prefills, whose stage tells the models apart."""
    passes = zip(samples["kind"], samples["stage"], strict=True)
    samples["stage"] = [stage + (kind == "draft_prefill") for kind, stage in passes]
    samples["kind"] = ["prefill" if kind in PREFILL_KINDS else kind for kind in samples["kind"]]


def written_as(path: Path, profile: LatencyProfile, version: int) -> Path:
    """A file of a version that had one kind of prefill, whose stage told the models apart."""
    write_latency_profile(path, profile, provenance())
    envelope = json.loads(path.read_text("utf-8")) | {"version": version}
    join_prefills(envelope["body"]["samples"])
    path.write_text(json.dumps(envelope), encoding="utf-8")
    return path


def test_prefills_of_an_older_report_are_told_apart_by_model(tmp_path: Path) -> None:
    trace = make_trace()
    write_trace(tmp_path / "trace.npz", trace, provenance())
    plan = make_plan(PlanRequest(trace=tmp_path / "trace.npz"))
    report = make_report(plan, "0" * 64, trace)
    device = replace(report.device, kernels=STANDARD_KERNELS)
    report = replace(report, device=device, plan_arm=replace(report.plan_arm, samples=SAMPLES))
    path = tmp_path / "report.json"
    for now in (report, replace(report, plain_arm=None, measured=None)):
        write_report(path, now, provenance())
        envelope = json.loads(path.read_text("utf-8")) | {"version": 7}
        join_prefills(envelope["body"]["plan_arm"]["samples"])
        path.write_text(json.dumps(envelope), encoding="utf-8")
        assert read_report(path).record == now


def kept(*places: int) -> PassSamples:
    return PassSamples(**{name: tuple(column[place] for place in places) for name, column in asdict(SAMPLES).items()})


def test_prefills_of_an_older_file_are_told_apart_by_model(tmp_path: Path) -> None:
    path = written_as(tmp_path / "self.latency.json", replace(draft_profile(), samples=SAMPLES), 7)
    assert read_latency_profile(path).record.samples == SAMPLES


def test_prefills_of_the_draft_in_an_older_file_of_the_target_are_dropped(tmp_path: Path) -> None:
    path = written_as(tmp_path / "target.latency.json", replace(draft_profile(), samples=SAMPLES), 7)
    envelope = json.loads(path.read_text("utf-8"))
    envelope["body"]["exit_layers"] = []  # no target's profile of today could hold stages of a draft
    path.write_text(json.dumps(envelope), encoding="utf-8")
    assert read_latency_profile(path).record.samples == kept(0, 3, 4)


def test_a_draft_whose_prompt_was_one_pass_is_read_without_it(tmp_path: Path) -> None:
    path = written_as(tmp_path / "draft.latency.json", replace(draft_profile(), samples=SAMPLES), 5)
    assert read_latency_profile(path).record.samples == kept(0, 3, 4)


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("rows", -5, "rows holds -5, expected 0 to 2147483647"),
        ("rows", 10**400, "expected 0 to 2147483647"),
        ("cached_tokens", -1, "cached_tokens holds -1, expected 0 to 2147483647"),
        ("stage", -1, "stage holds -1, expected 0 to 2147483647"),
        ("stage", 2**64, "expected 0 to 2147483647"),
        ("stage", 1, "samples hold a pass of stage 1, expected at most 0: stages count the exits"),
    ],
)
def test_a_pass_that_no_model_can_run_is_refused_on_reading(tmp_path: Path, column: str, value: int, problem: str) -> None:
    path = tmp_path / "target.latency.json"
    write_latency_profile(path, target_profile(), provenance())
    envelope = json.loads(path.read_text("utf-8"))
    envelope["body"]["samples"][column][3] = value
    path.write_text(json.dumps(envelope), encoding="utf-8")
    with pytest.raises(BadFile, match=problem):
        read_latency_profile(path)
