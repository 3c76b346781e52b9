"""Profiles measured with another sampling than the plan's."""

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
def test_a_profile_with_other_logit_processing_is_used_with_a_warning(
    measured: PlanRequest, caplog: pytest.LogCaptureFixture, processing: tuple[str, ...] | None
) -> None:
    write_profile(measured.profiles[1], replace(draft_profile(), processing=processing))
    make_plan(measured)
    warnings = [record.getMessage() for record in caplog.records if "was taken with" in record.getMessage()]
    message = "profile 'draft.latency.json' was taken with repetition, top-p, and no penalty or cut is planned"
    assert [text.startswith(message) for text in warnings] == ([True] if processing else [])


def test_a_profile_of_another_rule_is_refused(measured: PlanRequest) -> None:
    write_profile(measured.profiles[1], replace(draft_profile(), rule="ratio"))
    with pytest.raises(Mismatch, match=r"'draft.latency.json' was made for ratio decoding, not for greedy decoding"):
        make_plan(measured)
