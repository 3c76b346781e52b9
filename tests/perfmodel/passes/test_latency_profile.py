"""A latency profile holds only passes that its model can run."""

import json
from pathlib import Path

import pytest

from perfmodel.core.errors import BadFile
from perfmodel.passes.latency_profile import PROFILE_FILE
from tests.calibrate.factories import provenance, target_profile


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("rows", -5, "rows holds -5, expected 0 to 2147483647"),
        ("rows", 10**400, "expected 0 to 2147483647"),
        ("cached_tokens", -1, "cached_tokens holds -1, expected 0 to 2147483647"),
        ("stage", -1, "stage holds -1, expected 0 to 2147483647"),
        ("stage", 2**64, "expected 0 to 2147483647"),
        ("stage", 1, "samples hold a pass of stage 1, expected at most 0: one per exit"),
    ],
)
def test_a_pass_that_no_model_can_run_is_refused_on_reading(tmp_path: Path, column: str, value: int, problem: str) -> None:
    path = tmp_path / "target.latency.json"
    PROFILE_FILE.write(path, target_profile(), provenance())
    envelope = json.loads(path.read_text("utf-8"))
    envelope["body"]["samples"][column][3] = value
    path.write_text(json.dumps(envelope), encoding="utf-8")
    with pytest.raises(BadFile, match=problem):
        PROFILE_FILE.read(path)
