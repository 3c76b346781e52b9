import re
from dataclasses import replace

import pytest

from perfmodel.core.errors import OutOfDomain, UnknownName, UserInputError
from perfmodel.core.units import GB, TERA
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.hardware import SIMILARITY_ERROR_FRAC, Hardware, Link, num_devices_to_fit
from perfmodel.hardware.kernel_efficiency import kernel_costs
from perfmodel.hardware.known_hardware import KNOWN_HARDWARE
from perfmodel.models.dtypes import DTYPE_BYTES, Dtype
from perfmodel.models.find_model import find_model
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import model_weight_bytes, plain_format

ASKED_FOR = (
    "A100-40GB-SXM",
    "A100-80GB-SXM",
    "A100-40GB-PCIe",
    "A100-80GB-PCIe",
    "H100-SXM",
    "H100-PCIe",
    "H100-NVL",
    "H200-SXM",
    "B200-SXM",
    "GH200-96GB",
    "L40S",
    "L4",
    "A10",
    "A40",
    "RTX-3090",
    "RTX-4090",
    "RTX-5090",
    "RTX-PRO-6000",
    "V100-32GB-SXM2",
    "T4",
    "MI300X",
)

every_row = pytest.mark.parametrize("hardware", KNOWN_HARDWARE, ids=lambda hardware: hardware.name)


def peak(name: str, dtype: str) -> float:
    return find_hardware(name).peak_flops_per_s[dtype]


def test_the_table_has_every_device_asked_for() -> None:
    names = {hardware.name for hardware in KNOWN_HARDWARE}
    assert set(ASKED_FOR) <= names
    assert len(names) == len(KNOWN_HARDWARE) >= 20


def test_a_device_is_found_by_name_and_alias_in_any_case() -> None:
    assert find_hardware("A100") == find_hardware("a100-80gb") == find_hardware("A100-80GB-SXM")
    assert find_hardware("4090").memory_bytes == 24 * GB


@pytest.mark.parametrize(
    ("nvml_name", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB-SXM"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB-PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA H200", "H200-SXM"),
        ("NVIDIA B200", "B200-SXM"),
        ("NVIDIA GH200 480GB", "GH200-96GB"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 3090", "RTX-3090"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX-PRO-6000"),
        ("Tesla V100-SXM2-32GB", "V100-32GB-SXM2"),
        ("Tesla T4", "T4"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_a_device_is_found_by_what_its_driver_calls_it(nvml_name: str, name: str) -> None:
    assert find_hardware(nvml_name).name == name


def test_a_relative_of_a_known_card_is_not_taken_for_it() -> None:
    for name in ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA A10G"):
        with pytest.raises(UnknownName):
            find_hardware(name)


def test_an_unknown_device_is_answered_with_near_misses_among_names_and_aliases() -> None:
    with pytest.raises(UnknownName) as caught:
        find_hardware("rtx-4900")
    said = str(caught.value)
    assert said.startswith("unknown device 'rtx-4900': did you mean 'rtx-4090'? ")
    assert f"docs/hardware.md lists all {len(KNOWN_HARDWARE)}." in said
    assert said.endswith(
        "Or describe it in a file: --device my-gpu.toml (docs/hardware.md), or plan for this machine's cpu: --device cpu."
    )
    with pytest.raises(UnknownName, match="did you mean 'v100-32gb-sxm2'"):
        find_hardware("v1000")


def test_no_name_means_two_devices() -> None:
    names = [name for hardware in KNOWN_HARDWARE for name in hardware.names]
    assert len(names) == len(set(names))
    assert all(name == name.casefold() for name in names)
    assert "cpu" not in names


@every_row
def test_every_row_names_where_its_numbers_were_printed(hardware: Hardware) -> None:
    assert re.search(r"datasheet|data sheet|whitepaper|product brief", hardware.spec_source)
    assert hardware.peak_flops_per_s.keys() <= DTYPE_BYTES.keys()
    assert hardware.num_threads is None


@every_row
def test_every_rows_ridge_lies_where_ridges_of_gpus_lie(hardware: Hardware) -> None:
    """From 76 FLOP per byte (RTX 3090, 32-bit accumulation) to 419 (L40S): a sparse peak or GB for GiB would show."""
    ridge = hardware.peak_flops_per_s[hardware.default_dtype] / hardware.memory_bytes_per_s
    assert 70 < ridge < 430


@every_row
def test_narrower_numbers_are_never_slower(hardware: Hardware) -> None:
    rates = [hardware.peak_flops_per_s.get(dtype) for dtype in ("fp32", "fp16", "fp8", "int4")]
    known = [rate for rate in rates if rate is not None]
    assert known == sorted(known)


@every_row
def test_a_row_costs_what_its_relative_does_and_errs_by_its_kinship(hardware: Hardware) -> None:
    costs = kernel_costs(hardware.reference_device)
    assert (hardware.layer_floor_s, hardware.attn_floor_s) == (costs.layer_floor_s, costs.attn_floor_s)
    assert hardware.weight_bandwidth_frac["fp16"] == costs.weight_bandwidth_frac["fp16"]
    for dtype in ("int8", "int4"):
        share = hardware.weight_bandwidth_frac[dtype]
        assert costs.weight_bandwidth_frac[dtype] <= share <= hardware.weight_bandwidth_frac["fp16"]
    if hardware.similarity == "itself":
        assert hardware.reference_device == hardware.name
        assert costs.memory_bytes_per_s == hardware.memory_bytes_per_s
        assert "fitted" in costs.source
        assert hardware.kernels_label == "published kernel times"
    else:
        assert hardware.error_frac == SIMILARITY_ERROR_FRAC[hardware.similarity]
        assert hardware.reference_device in hardware.kernels_label


def test_the_further_the_relative_the_wider_the_error() -> None:
    by_kinship = list(SIMILARITY_ERROR_FRAC.values())
    assert by_kinship == sorted(by_kinship)
    measured = [hardware for hardware in KNOWN_HARDWARE if hardware.similarity == "itself"]
    assert [hardware.name for hardware in measured] == ["A100-80GB-SXM", "H100-SXM"]
    assert max(hardware.error_frac for hardware in measured) < by_kinship[0]
    widest = [hardware.name for hardware in KNOWN_HARDWARE if hardware.error_frac == max(by_kinship)]
    assert widest == ["MI300X"]
    assert "borrowed" in find_hardware("mi300x").kernels_label


@pytest.mark.parametrize(
    ("ratio", "published", "source"),
    [
        (peak("h100", "bf16") / peak("a100", "bf16"), 3.2, "H100 whitepaper: 3.2x the A100's dense 16 bit"),
        (peak("h100", "fp8") / peak("h100", "bf16"), 2.0, "H100 whitepaper: fp8 at twice the rate of 16 bit"),
        (peak("a100", "bf16") / peak("v100", "fp16"), 2.5, "A100 whitepaper: 2.5x the V100's fp16"),
        (peak("4090", "fp8") / peak("4090", "bf16"), 2.0, "Ada whitepaper"),
        (find_hardware("h200").memory_bytes_per_s / find_hardware("h100").memory_bytes_per_s, 1.43, "H200: 43 % more"),
        (find_hardware("a100").memory_bytes_per_s / find_hardware("a100-40").memory_bytes_per_s, 1.3, "A100 datasheet: 1.3x"),
        (find_hardware("5090").memory_bytes_per_s / find_hardware("4090").memory_bytes_per_s, 1.78, "RTX 5090: 78 % more"),
    ],
)
def test_ratios_are_those_the_vendors_publish(ratio: float, published: float, source: str) -> None:
    assert ratio == pytest.approx(published, rel=0.02), source


def test_links_are_one_direction_and_the_fastest_that_joins_all_is_taken() -> None:
    h100, a40 = find_hardware("h100"), find_hardware("a40")
    assert h100.link_between(1) is None
    assert [link.bytes_per_s for link in h100.links] == [450 * GB]
    assert a40.link_between(2) == Link(kind="nvlink", bytes_per_s=56.25 * GB, max_devices=2)
    assert a40.link_between(4) == Link(kind="pcie", bytes_per_s=32 * GB, max_devices=8)
    with pytest.raises(OutOfDomain, match=r"num_devices of GH200-96GB = 4 is outside .* 1 to 2. Up to 2 devices are priced"):
        find_hardware("gh200").link_between(4)


def test_a_dtype_the_device_lacks_is_refused_naming_those_it_has() -> None:
    with pytest.raises(UserInputError) as caught:
        find_hardware("v100").compute_dtype("bf16")
    assert str(caught.value) == (
        "V100-32GB-SXM2 does not compute in bf16: it computes in fp32, fp16, and int8 and int4 weights are unpacked to fp16. "
        "Give --dtype fp16, or another --device."
    )
    with pytest.raises(UserInputError, match="A100-80GB-SXM does not compute in fp8"):
        find_hardware("a100").compute_dtype("fp8")
    assert find_hardware("t4").default_dtype == "fp16"


def test_quantised_weights_are_multiplied_in_16_bit_and_fp8_in_fp8() -> None:
    h100, t4 = find_hardware("h100"), find_hardware("t4")
    assert (h100.compute_dtype("int4"), t4.compute_dtype("int8"), h100.compute_dtype("fp8")) == ("bf16", "fp16", "fp8")
    cases: list[tuple[Hardware, Dtype]] = [(h100, "fp8"), (t4, "int4"), (h100, "fp32")]
    held = [one.activation_dtype(dtype_format(dtype, find_model("llama-2-7b"))) for one, dtype in cases]
    assert held == ["bf16", "fp16", "fp32"]


def test_unpacking_int4_hides_behind_a_slow_memory_and_not_behind_a_fast_one() -> None:
    """exllamav2 and MLC read Llama-2-7B at 4 bits on a 4090 at 191 to 211 tokens/s: nearly the bandwidth of 16-bit weights."""
    for name in ("4090", "a40", "t4"):
        shares = find_hardware(name).weight_bandwidth_frac
        assert shares["int4"] == shares["fp16"]
    assert find_hardware("h200").weight_bandwidth_frac["int4"] == find_hardware("h100").weight_bandwidth_frac["int4"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_bytes": 24}, "memory_bytes is 24, expected 100 MB to 100 TB, given in bytes"),
        (
            {"memory_bytes_per_s": 1008.0},
            "memory_bytes_per_s is 1008, expected 1.00 GB/s to 100 TB/s, given in bytes per second",
        ),
        ({"peak_flops_per_s": {"fp32": 82.6}}, "peak_flops_per_s of fp32 is 82.6, expected 1.00 GFLOP/s to 100000 TFLOP/s"),
        ({"peak_flops_per_s": {"fp8": 330 * TERA}}, "has none of bf16, fp16, fp32"),
        ({"name": " "}, "name or spec_source is empty"),
    ],
)
def test_a_number_in_another_unit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(find_hardware("4090"), **changes)  # type: ignore[arg-type]


def test_a_link_slower_than_any_or_wider_than_a_node_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bytes_per_s is 32, expected 100 MB/s to 10\.0 TB/s"):
        Link(kind="pcie", bytes_per_s=32, max_devices=8)
    with pytest.raises(ValueError, match="max_devices is 16, expected 2 to 8"):
        Link(kind="pcie", bytes_per_s=32 * GB, max_devices=16)


@pytest.mark.parametrize(
    ("device", "model", "num_devices"),
    [("a100", "llama-2-70b", 2), ("h200", "llama-2-70b", 2), ("a100", "llama-2-7b", 1), ("4090", "llama-2-70b", 8)],
)
def test_a_model_in_16_bit_takes_so_many_devices(device: str, model: str, num_devices: int) -> None:
    assert num_devices_to_fit(find_hardware(device), model_weight_bytes(find_model(model), plain_format("bf16"))) == num_devices


def test_exactly_what_is_usable_fits_and_a_byte_more_does_not() -> None:
    a100 = find_hardware("a100")
    assert num_devices_to_fit(a100, 40 * GB, headroom_frac=0.5) == 1
    assert num_devices_to_fit(a100, 40 * GB + 1, headroom_frac=0.5) == 2


def test_more_than_a_node_is_refused_with_a_way_out() -> None:
    with pytest.raises(OutOfDomain, match="memory on RTX-4090 = 500 GB is outside the evidence, which covers 0 B to 173 GB"):
        num_devices_to_fit(find_hardware("4090"), 500 * GB)
    with pytest.raises(OutOfDomain, match="Up to 8 devices are priced: take a larger device, a smaller dtype or a shorter"):
        num_devices_to_fit(find_hardware("4090"), 500 * GB)
    with pytest.raises(OutOfDomain, match="One device is priced"):
        num_devices_to_fit(replace(find_hardware("4090"), links=()), 30 * GB)
