import re
from collections.abc import Callable
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

REQUIRED = (
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

DRIVER_NAMES = (
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
)
"""Names that NVML or ROCm report, and those of the table."""


def peak(name: str, dtype: str) -> float:
    return find_hardware(name).peak_flops_per_s[dtype]


def test_the_table_has_every_required_device() -> None:
    names = {hardware.name for hardware in KNOWN_HARDWARE}
    assert set(REQUIRED) <= names
    assert len(names) == len(KNOWN_HARDWARE) >= 20


def test_a_device_is_found_by_name_and_alias_in_any_case() -> None:
    assert find_hardware("A100") == find_hardware("a100-80gb") == find_hardware("A100-80GB-SXM")
    assert find_hardware("4090").memory_bytes == 24 * GB


def test_a_device_is_found_by_its_name_in_the_driver() -> None:
    assert not [(driver_name, name) for driver_name, name in DRIVER_NAMES if find_hardware(driver_name).name != name]


def test_a_similar_card_is_not_mistaken_for_a_known_one() -> None:
    for name in ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA A10G"):
        with pytest.raises(UnknownName):
            find_hardware(name)


def test_an_unknown_device_is_refused_with_the_nearest_names_and_aliases() -> None:
    with pytest.raises(UnknownName) as caught:
        find_hardware("rtx-4900")
    message = str(caught.value)
    assert message.startswith("unknown device 'rtx-4900': did you mean 'rtx-4090'? ")
    assert f"docs/reference/hardware.md lists all {len(KNOWN_HARDWARE)}." in message
    assert message.endswith(
        "Or describe it in a file: --device my-gpu.toml (docs/reference/hardware.md), or plan for this machine's cpu: "
        "--device cpu."
    )
    with pytest.raises(UnknownName, match="did you mean 'v100-32gb-sxm2'"):
        find_hardware("v1000")


def test_names_are_unique() -> None:
    names = [name for hardware in KNOWN_HARDWARE for name in hardware.names]
    assert len(names) == len(set(names))
    assert all(name == name.casefold() for name in names)
    assert "cpu" not in names


def failing_rows(is_right: Callable[[Hardware], bool]) -> list[str]:
    """Names of the table rows for which a condition does not hold."""
    return [hardware.name for hardware in KNOWN_HARDWARE if not is_right(hardware)]


def test_every_row_names_the_document_of_its_numbers() -> None:
    documents = re.compile(r"datasheet|data sheet|whitepaper|product brief")
    assert not failing_rows(lambda row: bool(documents.search(row.spec_source)))
    assert not failing_rows(lambda row: row.peak_flops_per_s.keys() <= DTYPE_BYTES.keys())
    assert not failing_rows(lambda row: row.num_threads is None)


def test_every_ridge_point_is_in_the_range_of_gpus() -> None:
    """From 76 FLOP per byte (RTX 3090, 32-bit accumulation) to 419 (L40S): a sparse peak or GB for GiB would show."""
    assert not failing_rows(lambda row: 70 < row.peak_flops_per_s[row.default_dtype] / row.memory_bytes_per_s < 430)


def test_narrower_numbers_are_never_slower() -> None:
    def is_sorted(row: Hardware) -> bool:
        rates = [row.peak_flops_per_s[dtype] for dtype in ("fp32", "fp16", "fp8", "int4") if dtype in row.peak_flops_per_s]
        return rates == sorted(rates)

    assert not failing_rows(is_sorted)


def test_a_row_has_the_costs_of_its_reference_device_scaled_to_its_memory() -> None:
    def are_scaled(row: Hardware) -> bool:
        measured, shares = kernel_costs(row.reference_device).weight_bandwidth_frac, row.weight_bandwidth_frac
        unpacked = all(measured[dtype] <= shares[dtype] <= shares["fp16"] for dtype in ("int8", "int4"))
        return unpacked and shares["fp16"] == measured["fp16"]

    assert not failing_rows(lambda row: row.costs == kernel_costs(row.reference_device))
    assert not failing_rows(are_scaled)


def test_a_row_has_the_error_and_the_label_of_its_similarity() -> None:
    def is_measured(row: Hardware) -> bool:
        is_its_own = row.reference_device == row.name and row.costs.memory_bytes_per_s == row.memory_bytes_per_s
        return is_its_own and "fitted" in row.costs.source and row.kernels_label == "published kernel times"

    def is_similar(row: Hardware) -> bool:
        return row.error_frac == SIMILARITY_ERROR_FRAC[row.similarity] and row.reference_device in row.kernels_label

    assert not failing_rows(lambda row: is_measured(row) if row.similarity == "itself" else is_similar(row))


def test_the_less_similar_the_reference_device_the_wider_the_error() -> None:
    by_similarity = list(SIMILARITY_ERROR_FRAC.values())
    assert by_similarity == sorted(by_similarity)
    measured = [hardware for hardware in KNOWN_HARDWARE if hardware.similarity == "itself"]
    assert [hardware.name for hardware in measured] == ["A100-80GB-SXM", "H100-SXM"]
    assert max(hardware.error_frac for hardware in measured) < by_similarity[0]
    widest = [hardware.name for hardware in KNOWN_HARDWARE if hardware.error_frac == max(by_similarity)]
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
def test_ratios_match_those_that_vendors_publish(ratio: float, published: float, source: str) -> None:
    assert ratio == pytest.approx(published, rel=0.02), source


def test_links_are_one_direction_and_the_fastest_that_joins_all_devices_is_used() -> None:
    h100, a40 = find_hardware("h100"), find_hardware("a40")
    assert h100.link_between(1) is None
    assert [link.bytes_per_s for link in h100.links] == [450 * GB]
    assert a40.link_between(2) == Link(kind="nvlink", bytes_per_s=56.25 * GB, max_devices=2)
    assert a40.link_between(4) == Link(kind="pcie", bytes_per_s=32 * GB, max_devices=8)
    with pytest.raises(OutOfDomain, match=r"num_devices of GH200-96GB = 4 is outside .* 1 to 2. Up to 2 devices are priced"):
        find_hardware("gh200").link_between(4)


def test_a_missing_dtype_is_refused_with_those_of_the_device() -> None:
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
    held = [hardware.activation_dtype(dtype_format(dtype, find_model("llama-2-7b"))) for hardware, dtype in cases]
    assert held == ["bf16", "fp16", "fp32"]


def test_a_slow_memory_hides_unpacking_of_int4_and_a_fast_one_does_not() -> None:
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


def test_a_link_that_is_too_slow_or_wider_than_a_node_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bytes_per_s is 32, expected 100 MB/s to 10\.0 TB/s"):
        Link(kind="pcie", bytes_per_s=32, max_devices=8)
    with pytest.raises(ValueError, match="max_devices is 16, expected 2 to 8"):
        Link(kind="pcie", bytes_per_s=32 * GB, max_devices=16)


@pytest.mark.parametrize(
    ("device", "model", "num_devices"),
    [("a100", "llama-2-70b", 2), ("h200", "llama-2-70b", 2), ("a100", "llama-2-7b", 1), ("4090", "llama-2-70b", 8)],
)
def test_the_number_of_devices_for_a_model_in_16_bit(device: str, model: str, num_devices: int) -> None:
    assert num_devices_to_fit(find_hardware(device), model_weight_bytes(find_model(model), plain_format("bf16"))) == num_devices


def test_exactly_the_usable_memory_fits_and_one_byte_more_does_not() -> None:
    a100 = find_hardware("a100")
    assert num_devices_to_fit(a100, 40 * GB, headroom_frac=0.5) == 1
    assert num_devices_to_fit(a100, 40 * GB + 1, headroom_frac=0.5) == 2


def test_more_than_a_node_is_refused_with_a_fix() -> None:
    with pytest.raises(OutOfDomain, match="memory on RTX-4090 = 500 GB is outside the evidence, which covers 0 B to 173 GB"):
        num_devices_to_fit(find_hardware("4090"), 500 * GB)
    with pytest.raises(OutOfDomain, match="Up to 8 devices are priced: take a larger device, a smaller dtype or a shorter"):
        num_devices_to_fit(find_hardware("4090"), 500 * GB)
    with pytest.raises(OutOfDomain, match="One device is priced"):
        num_devices_to_fit(replace(find_hardware("4090"), links=()), 30 * GB)
