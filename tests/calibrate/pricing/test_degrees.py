"""Plans use and propose only numbers of devices that the runtime can use."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.inputs.device import resolve_device
from calibrate.inputs.requests import DeviceRequest
from calibrate.pricing.datasheet import num_devices_for, price_by_datasheet
from calibrate.pricing.pricing import Pair, Pricing, pair_weights
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core.errors import OutOfDomain, UserInputError
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.hardware import num_devices_to_fit
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import DraftGeometry, ModelGeometry, tensor_parallel_degrees
from perfmodel.models.known_models import KNOWN_MODELS
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import model_weight_bytes
from tests.calibrate.factories import at_device, draft_profile, make_trace, provenance, target_profile, write_profile

CONTEXT = 768
LLAMA_70B, S2D = find_model("llama-2-70b"), find_draft("s2d")
H100 = DeviceRequest(device="h100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """A pair without known weights."""

    draft: DraftGeometry
    target: ModelGeometry
    draft_sha256: None = None
    target_sha256: None = None


def priced(pair: Pair, **fields: Any) -> Pricing:
    device = resolve_device(replace(H100, **fields))
    weights = pair_weights(pair.draft, pair.target, device.dtype)
    return price_by_datasheet(pair, device, weights, context_tokens=CONTEXT)


def with_kv_heads(draft: DraftGeometry, number: int) -> DraftGeometry:
    return replace(draft, model=replace(draft.model, num_kv_heads=number))


def refusal(pair: Pair, **fields: Any) -> str:
    with pytest.raises(UserInputError) as refused:
        priced(pair, **fields)
    return str(refused.value)


def test_a_number_of_devices_that_cannot_share_the_target_ends_with_2_and_names_those_that_can(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main_plan(["--target", "llama-70b", "--device", "h100", "--num-devices", "3"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "s2d-plan: model llama-2-70b has 8 KV heads, which 3 devices cannot share evenly: expected 1, 2, 4 or 8. "
        "Give one of these as --num-devices, or leave it out.\n"
    )


@pytest.mark.parametrize("verb", [[], ["design", "--params", "1.3e9"]])
@pytest.mark.parametrize("number", ["0", "-2"])
def test_a_number_of_devices_below_one_is_refused(verb: list[str], number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan([*verb, "--target", "llama-70b", "--num-devices", number]) == 2
    assert f"--num-devices {number}: expected at least 1." in capsys.readouterr().err


def test_the_target_of_a_design_is_shared_evenly_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["design", "--target", "llama-2-70b", "--params", "1.3e9", "--num-devices", "3"]) == 2
    assert "which 3 devices cannot share evenly" in capsys.readouterr().err


def test_more_devices_than_kv_heads_are_refused() -> None:
    pair = Models(draft=S2D, target=replace(find_model("vicuna-7b"), num_kv_heads=2))
    assert "has 2 KV heads, which 4 devices cannot share evenly: expected 1 or 2." in refusal(pair, num_devices=4)


def test_a_draft_on_an_impossible_number_of_devices_is_refused() -> None:
    narrow = Models(draft=with_kv_heads(S2D, 1), target=LLAMA_70B)
    shared = refusal(narrow, num_devices=4, draft_num_devices=4)
    assert shared == (
        f"model {S2D.model.name} has 1 KV head, which 4 devices cannot share evenly: expected 1. Give --draft-num-devices 1."
    )
    assert "on 2 of 4 devices: expected 1 or 4." in refusal(
        Models(draft=S2D, target=LLAMA_70B), num_devices=4, draft_num_devices=2
    )
    self_draft = DraftGeometry(kind="self", model=LLAMA_70B, exit_layers=(8,))
    assert "on 1 of 4 devices: expected 4." in refusal(
        Models(draft=self_draft, target=LLAMA_70B), num_devices=4, draft_num_devices=1
    )
    with pytest.raises(UserInputError, match=r"--draft-num-devices 0: expected at least 1[.]"):
        DeviceRequest(draft_num_devices=0)


def test_a_draft_that_cannot_be_shared_is_whole_on_the_first_device() -> None:
    assert priced(Models(draft=with_kv_heads(S2D, 1), target=LLAMA_70B), num_devices=4).draft_num_devices == 1
    # On two devices the target leaves no room for it. Such a plan cannot run, and still does not claim to share the draft.
    assert priced(Models(draft=with_kv_heads(S2D, 1), target=LLAMA_70B), num_devices=2, dtype="fp16").draft_num_devices == 1


def test_devices_proposed_for_a_known_model_can_share_it() -> None:
    """All known models on several known devices, except models that are too large for any number that can share them."""
    proposed = set()
    for name in ("t4", "rtx-4090", "l4", "a100", "h100", "mi300x"):
        device = resolve_device(DeviceRequest(device=name))
        for model in KNOWN_MODELS:
            try:
                number = num_devices_for(model, device, model_weight_bytes(model, dtype_format(device.dtype, model)))
            except OutOfDomain:
                continue
            assert number in tensor_parallel_degrees(model)
            proposed.add(number)
    assert {1, 2, 4} <= proposed


def test_a_power_of_two_is_preferred_and_the_models_limit_is_named() -> None:
    l4 = find_hardware("l4")
    usable_bytes = 0.9 * l4.memory_bytes
    for needed, degrees, expected in ((2.5, (1, 2, 3, 4), 4), (2.5, (1, 3), 3), (0.5, (1, 2), 1)):
        assert num_devices_to_fit(l4, needed * usable_bytes, degrees=degrees) == expected
    with pytest.raises(OutOfDomain, match="The target can be split over at most 2: take a larger device"):
        num_devices_to_fit(l4, 3 * usable_bytes, degrees=(1, 2))


def test_profiles_of_devices_that_cannot_share_their_models_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(), provenance())
    profiles = {"target": target_profile(), "draft": draft_profile()}
    files = [
        str(write_profile(tmp_path / f"{role}.latency.json", at_device(profile, num_devices=4)))
        for role, profile in profiles.items()
    ]
    flags = [word for file in files for word in ("--profile", file)]
    assert main_plan([*flags, "--trace", str(tmp_path / "trace.npz")]) == 2
    assert "model ref-target-16 has 2 KV heads, which 4 devices cannot share evenly" in capsys.readouterr().err
