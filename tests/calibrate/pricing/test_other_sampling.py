"""Profiles that were measured under another sampling than the plan's."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.inputs.requests import PlanRequest
from calibrate.planning.make_plan import make_plan
from perfmodel.core.errors import Mismatch
from tests.calibrate.factories import draft_profile, write_evidence, write_profile


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
