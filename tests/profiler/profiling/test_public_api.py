"""The public functions return the files, their contents and the text of the commands."""

from pathlib import Path

import pytest

from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.passes.latency_profile import PROFILE_FILE
from profiler.profiling.profile_law import profile_law
from profiler.profiling.profile_pair import profile

pytestmark = pytest.mark.e2e


def test_a_profile_of_the_reference_family_has_the_contents_of_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "draft": "ref-draft",
        "device": "cpu",
        "output": tmp_path,
        "num_prompts": 2,
        "max_new_tokens": 16,
        "budget_s": 0.3,
    }
    measured = profile("ref-target-16", **options)
    assert [path.name for path in measured.latency_paths] == ["draft.latency.json", "target.latency.json"]
    assert measured.latency == tuple(PROFILE_FILE.read(path).record for path in measured.latency_paths)
    assert measured.trace_path is not None
    assert measured.trace is not None
    assert measured.trace.header == TRACE_FILE.read(measured.trace_path).record.header
    text = str(measured)
    assert text.startswith("models   ref-target-16 with ref-draft")
    assert "IQR / median" in text
    assert "mean confidence" in text
    assert text.endswith(f"next: {measured.next_command}")
    assert measured.next_command.startswith("s2d-plan --profile ")
    assert capsys.readouterr().out == ""


def test_a_profile_of_given_prompts_and_acceptance_only_names_the_missing_half(tmp_path: Path) -> None:
    measured = profile(
        "ref-target-16",
        draft="ref-draft",
        prompts=["def f("],
        what="acceptance",
        device="cpu",
        output=tmp_path,
        max_new_tokens=8,
    )
    assert (measured.latency_paths, measured.latency) == ((), ())
    assert measured.next_command.startswith("s2d-profile latency --target ref-target-16 --draft ref-draft --prompts path/to/")


def test_a_profile_of_the_law_has_the_contents_of_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    law = profile_law(output=tmp_path, device="cpu", depths=(1,), hidden_sizes=(64,), budget_s=0)
    assert [path.name for path in law.paths] == ["law-1x64.draft.latency.json", "law-1x64.target.latency.json"]
    assert law.profiles == tuple(PROFILE_FILE.read(path).record for path in law.paths)
    assert str(law).startswith("law-1x64 on ")
    assert str(law).endswith(f"next: {law.next_command}")
    assert capsys.readouterr().out == ""
