"""Plans and fits refuse profiles below the lower bound of the hardware."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.fit.fit_latency import fit_latency
from perfmodel.core.errors import BelowLowerBound
from perfmodel.passes.latency_profile import LatencyProfile
from tests.calibrate.factories import at_device, draft_profile, target_profile, write_evidence, write_profile


def on_an_a100(profile: LatencyProfile, *, faster: float) -> LatencyProfile:
    """The same passes, faster by a factor, on an A100."""
    samples = replace(profile.samples, seconds=tuple(seconds / faster for seconds in profile.samples.seconds))
    a100 = at_device(profile, device="NVIDIA A100-SXM4-80GB", num_threads=None, dtype="bf16", mode="graph")
    return replace(a100, samples=samples)


def plan(folder: Path, *, faster: float) -> int:
    """Plan with both profiles moved to an A100."""
    flags = write_evidence(folder)
    for name, profile in (("target", target_profile()), ("draft", draft_profile())):
        write_profile(folder / f"{name}.latency.json", on_an_a100(profile, faster=faster))
    return main_plan(flags)


def test_a_plan_refuses_a_profile_below_the_lower_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(tmp_path, faster=1) == 0
    capsys.readouterr()
    assert plan(tmp_path, faster=1e6) == 2
    error = capsys.readouterr().err
    assert (
        "the profile of ref-target-16 on 1 x NVIDIA A100-SXM4-80GB: a target prefill pass of 39 rows over 0 cached tokens"
        in error
    )
    assert "below the hardware lower bound of " in error
    assert "TFLOP/s on A100-80GB-SXM. Check the dtype" in error


def test_a_fit_refuses_a_profile_below_the_lower_bound() -> None:
    with pytest.raises(BelowLowerBound, match="the profile of ref-target-16"):
        fit_latency([on_an_a100(target_profile(), faster=1e6)])
