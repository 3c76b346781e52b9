"""What a plan makes of profiles and files that were made under another sampling, or before files told of all of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.inputs.requests import PlanRequest
from calibrate.planning.make_plan import make_plan
from perfmodel.core.errors import Mismatch
from perfmodel.passes.latency_profile import read_latency_profile
from perfmodel.results.plan import plan_file_text, read_plan
from perfmodel.results.report import read_report, report_file_text
from tests.calibrate.factories import draft_profile, make_report, make_trace, provenance, write_evidence, write_profile

ADDED = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def write_old(path: Path, text: str, version: int) -> Path:
    """A file as a version without penalties wrote it."""
    envelope = json.loads(text)
    body = envelope["body"]
    for name in ("processing", "frontier", "draft_num_devices"):
        body.pop(name, None)
    for name in ADDED:
        for record in (body, body.get("workload", {})):
            record.get("sampling", {}).pop(name, None)
    path.write_text(json.dumps(envelope | {"version": version}), encoding="utf-8")
    return path


@pytest.fixture
def measured(tmp_path: Path) -> PlanRequest:
    """A request that names a trace and the profiles of both models."""
    write_evidence(tmp_path)
    profiles = (tmp_path / "target.latency.json", tmp_path / "draft.latency.json")
    return PlanRequest(trace=tmp_path / "trace.npz", profiles=profiles)


@pytest.mark.parametrize("processing", [("repetition", "top-p"), None, ()], ids=str)
def test_a_profile_whose_logits_were_processed_otherwise_is_taken_with_a_warning(
    measured: PlanRequest, caplog: pytest.LogCaptureFixture, processing: tuple[str, ...] | None
) -> None:
    write_profile(measured.profiles[1], replace(draft_profile(), processing=processing))
    make_plan(measured)
    warned = [record.getMessage() for record in caplog.records if "was taken with" in record.getMessage()]
    said = "profile 'draft.latency.json' was taken with repetition, top-p, and no penalty or cut is planned"
    assert [text.startswith(said) for text in warned] == ([True] if processing else [])


def test_a_profile_of_another_rule_is_refused(measured: PlanRequest) -> None:
    write_profile(measured.profiles[1], replace(draft_profile(), rule="ratio"))
    with pytest.raises(Mismatch, match=r"'draft.latency.json' was made for ratio decoding, not for greedy decoding"):
        make_plan(measured)


def test_files_from_before_penalties_are_read_as_without_any(measured: PlanRequest, tmp_path: Path) -> None:
    plan = make_plan(measured)
    report = make_report(plan, "e" * 64, make_trace())
    old_plan = write_old(tmp_path / "plan.json", plan_file_text(plan, provenance()), 5)
    assert read_plan(old_plan).record == replace(plan, frontier=())
    old_report = write_old(tmp_path / "report.json", report_file_text(report, provenance()), 4)
    assert read_report(old_report).record == report
    text = measured.profiles[1].read_text(encoding="utf-8")
    old_profile = write_old(tmp_path / "old.json", text, 4)
    assert read_latency_profile(old_profile).record == replace(draft_profile(), processing=None)
