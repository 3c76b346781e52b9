"""Where a draft runs on several devices: chosen by speed, or read from profiles."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.planning.make_plan import make_plan
from calibrate.pricing.draft_placement import Placement
from calibrate.pricing.pricing import PairWeights, memory_needed
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core.errors import Mismatch
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import DraftGeometry
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.quantisation.weight_format import plain_format
from perfmodel.results.plan import Plan
from tests.calibrate.factories import (
    TARGET,
    at_device,
    draft_profile,
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
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(), provenance())
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
