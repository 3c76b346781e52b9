import pytest

from perfmodel.errors import OutOfDomain, UnknownName
from perfmodel.geometry import find_model
from perfmodel.hardware import DEFAULT_ENGINE, KNOWN_HARDWARE, find_hardware, num_devices_to_fit
from perfmodel.profile import DTYPE_BYTES
from perfmodel.units import GB
from perfmodel.work import model_weight_bytes


def test_a_device_is_found_by_name_and_alias_in_any_case() -> None:
    assert find_hardware("A100") == find_hardware("a100-80gb") == find_hardware("A100-80GB-SXM")
    assert find_hardware("NVIDIA H200").name == "H200-SXM"
    assert find_hardware("4090").memory_bytes == 24 * GB


def test_an_unknown_device_is_answered_with_near_misses() -> None:
    with pytest.raises(UnknownName) as caught:
        find_hardware("rtx-4900")
    assert "known are a100-80gb-sxm, h100-sxm, h200-sxm, rtx-4090. Did you mean 'rtx-4090'" in str(caught.value)


def test_no_alias_names_two_devices() -> None:
    names = [name for hardware in KNOWN_HARDWARE for name in (hardware.name.casefold(), *hardware.aliases)]
    assert len(names) == len(set(names))
    assert all(name == name.casefold() for name in names)


@pytest.mark.parametrize("hardware", KNOWN_HARDWARE, ids=lambda hardware: hardware.name)
def test_every_row_is_complete_and_names_its_sources(hardware) -> None:
    assert hardware.peak_flops_per_s.keys() == hardware.weight_bandwidth_frac.keys() == DTYPE_BYTES.keys()
    assert all(0 < share <= 1 for share in hardware.weight_bandwidth_frac.values())
    assert DEFAULT_ENGINE in hardware.engines
    assert "datasheet" in hardware.spec_source or "whitepaper" in hardware.spec_source
    assert "fitted" in hardware.floor_source or hardware.floor_source.startswith("assumed")


def test_scaled_rows_claim_less_than_fitted_ones() -> None:
    fitted = [hardware.error_frac for hardware in KNOWN_HARDWARE if "fitted" in hardware.floor_source]
    scaled = [hardware.error_frac for hardware in KNOWN_HARDWARE if "fitted" not in hardware.floor_source]
    assert max(fitted) < min(scaled)


@pytest.mark.parametrize(
    ("device", "model", "num_devices"),
    [("a100", "llama-2-70b", 2), ("h200", "llama-2-70b", 2), ("a100", "llama-2-7b", 1), ("4090", "llama-2-70b", 8)],
)
def test_a_model_in_16_bit_takes_so_many_devices(device: str, model: str, num_devices: int) -> None:
    assert num_devices_to_fit(find_hardware(device), model_weight_bytes(find_model(model), "bf16")) == num_devices


def test_exactly_what_is_usable_fits_and_a_byte_more_does_not() -> None:
    a100 = find_hardware("a100")
    assert num_devices_to_fit(a100, 40 * GB, headroom_frac=0.5) == 1
    assert num_devices_to_fit(a100, 40 * GB + 1, headroom_frac=0.5) == 2


def test_more_than_a_node_is_refused_with_a_way_out() -> None:
    with pytest.raises(OutOfDomain, match="take a larger device, a smaller dtype or a shorter output"):
        num_devices_to_fit(find_hardware("4090"), 500 * GB)
