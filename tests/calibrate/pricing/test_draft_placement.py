"""Where a draft runs on several devices: chosen by speed, or taken from profiles."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.planning.make_plan import make_plan
from calibrate.pricing.draft_placement import Placement
from calibrate.pricing.pricing import PairWeights, memory_needed
from perfmodel.acceptance.trace import write_trace
from perfmodel.core.errors import Mismatch
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import DraftGeometry
from perfmodel.passes.latency_profile import LatencyProfile, read_latency_profile
from perfmodel.quantisation.weight_format import plain_format
from perfmodel.results.plan import Plan, plan_file_text, read_plan
from tests.calibrate.factories import (
    TARGET,
    TARGET_SHA256,
    at_device,
    draft_profile,
    make_profile,
    make_trace,
    provenance,
    target_profile,
    write_profile,
)

BF16 = plain_format("bf16")
VICUNA = Placement(
    draft=find_draft("s2d"),
    target=find_model("vicuna-7b"),
    draft_weights=BF16,
    target_weights=BF16,
    num_devices=2,
    draft_num_devices=1,
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    write_trace(tmp_path / "trace.npz", make_trace(), provenance())
    return tmp_path / "trace.npz"


def planned(request: PlanRequest, draft_num_devices: int | None) -> Plan:
    device = DeviceRequest(device="h200", num_devices=2, draft_num_devices=draft_num_devices)
    return make_plan(replace(request, device=device))


@pytest.mark.parametrize(("target", "expected"), [("llama-70b", 2), ("ref-target-16", 1)])
def test_a_draft_is_placed_where_the_plan_is_faster(trace: Path, target: str, expected: int) -> None:
    request = PlanRequest(target=target, trace=trace if target == TARGET.name else None)
    chosen, whole, shared = (planned(request, number) for number in (None, 1, 2))
    rates = [plan.chosen.speedup.tokens_per_s for plan in (whole, shared)]
    assert rates[0] != pytest.approx(rates[1], rel=1e-3)
    assert (whole.chosen.speedup.plain_tokens_per_s, whole.device) == (shared.chosen.speedup.plain_tokens_per_s, shared.device)
    assert chosen == max(whole, shared, key=lambda plan: plan.chosen.speedup.tokens_per_s)
    assert chosen.draft_num_devices == expected


def test_a_placement_fits_if_it_splits_evenly_and_the_first_device_holds_its_share() -> None:
    def memory(capacity_gb: float):
        needed = memory_needed(
            VICUNA.draft, VICUNA.target, PairWeights(draft=BF16, target=BF16), context_tokens=768, capacity_bytes=None
        )
        return replace(needed, capacity_bytes=round(capacity_gb * 1e9))

    shared = replace(VICUNA, draft_num_devices=2)
    assert [placement.fits(memory(48)) for placement in (VICUNA, shared)] == [True, True]
    assert [placement.fits(memory(24)) for placement in (VICUNA, shared)] == [False, True]
    assert [placement.fits(memory(18)) for placement in (VICUNA, shared)] == [False, False]
    assert not replace(VICUNA, num_devices=3).fits(memory(1000))
    narrow = replace(VICUNA.draft, model=replace(VICUNA.draft.model, num_kv_heads=1))
    assert [replace(placement, draft=narrow).fits(memory(48)) for placement in (VICUNA, shared)] == [True, False]
    self_draft = DraftGeometry(kind="self", model=VICUNA.target, exit_layers=(8,))
    target_memory = replace(memory(18), draft_weight_bytes=0, draft_kv_bytes=0)
    assert replace(shared, draft=self_draft).fits(target_memory)


def measured(trace: Path, *profiles: LatencyProfile) -> PlanRequest:
    paths = [write_profile(trace.with_name(f"{trace.stem}-{number}.json"), profile) for number, profile in enumerate(profiles)]
    return PlanRequest(trace=trace, profiles=tuple(paths))


@pytest.mark.parametrize("draft_num_devices", [1, 2])
def test_a_measured_plan_places_the_draft_as_its_profiles_do(trace: Path, draft_num_devices: int) -> None:
    target, draft = at_device(target_profile(), num_devices=2), at_device(draft_profile(), num_devices=draft_num_devices)
    plan = make_plan(measured(trace, draft, target))
    assert (plan.device, plan.draft_num_devices) == (target.device, draft_num_devices)


@pytest.mark.parametrize(
    ("target_devices", "draft_devices", "message"),
    [
        (1, 2, r"the target's latency was made for 1 x a CPU, .*, not for 2 x a CPU"),
        (4, 2, r"the draft's latency was made for 2 x a CPU, .*, not for 4 x a CPU, .* all of them or one. Profile both"),
    ],
)
def test_a_draft_on_some_devices_or_a_target_on_fewer_is_refused(
    trace: Path, target_devices: int, draft_devices: int, message: str
) -> None:
    target, draft = (
        at_device(target_profile(), num_devices=target_devices),
        at_device(draft_profile(), num_devices=draft_devices),
    )
    with pytest.raises(Mismatch, match=message):
        make_plan(measured(trace, target, draft))


def old(path: Path, text: str, version: int) -> Path:
    """A file from before it said where the draft was."""
    envelope = json.loads(text)
    envelope["body"].pop("draft_num_devices", None)
    path.write_text(json.dumps(envelope | {"version": version}), encoding="utf-8")
    return path


def test_older_plans_have_the_draft_where_they_had_measured_or_priced_it(trace: Path) -> None:
    of_two = [at_device(profile, num_devices=2) for profile in (target_profile(), draft_profile())]
    by_datasheet = PlanRequest(trace=trace, device=DeviceRequest(device="h200", num_devices=2))
    own = DraftGeometry(kind="self", model=TARGET, exit_layers=(2, 4, 6, 8))
    of_itself, header = trace.with_name("self.npz"), replace(make_trace().header, draft=own, draft_sha256=TARGET_SHA256)
    write_trace(of_itself, replace(make_trace(), header=header), provenance())
    profile = at_device(make_profile(TARGET, (2, 4, 6, 8), TARGET_SHA256, None, is_self_draft=True), num_devices=2)
    for request, expected in ((measured(trace, *of_two), 1), (by_datasheet, 2), (measured(of_itself, profile), 2)):
        plan = make_plan(request)
        path = old(trace.with_name("plan.json"), plan_file_text(plan, provenance()), 6)
        assert read_plan(path).record == replace(plan, draft_num_devices=expected)


def test_an_older_profile_of_a_draft_beside_a_shared_target_is_of_one_device(trace: Path) -> None:
    for profile, num_devices in ((draft_profile(), 1), (target_profile(), 2), (replace(draft_profile(), beside=None), 2)):
        path = write_profile(trace.with_name("profile.json"), at_device(profile, num_devices=2))
        read = read_latency_profile(old(path, path.read_text(encoding="utf-8"), 5)).record
        assert read == at_device(profile, num_devices=num_devices)
