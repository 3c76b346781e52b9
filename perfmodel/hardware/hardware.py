"""A device: its datasheet, and how much of the datasheet kernels are assumed to reach.

A row holds the numbers of a datasheet and names its *reference device*, whose measured kernel costs it uses
(`perfmodel.hardware.kernel_efficiency`). Rows are in `perfmodel.hardware.known_hardware`; users describe others in a file.

    floors, host costs, share of the peak     as on the reference device
    share of the bandwidth, 16 and 32 bit     as on the reference device
    share of the bandwidth, int8, int4, gguf  as on the reference device; with a slower memory, as many bytes per second as
                                              there, up to the 16-bit share (unpacking is arithmetic, hidden by slow memory)
    error                                     by similarity: `SIMILARITY_ERROR_FRAC`
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from perfmodel.core.errors import OutOfDomain, UnknownName, UserInputError
from perfmodel.core.units import (
    GB,
    GIGA,
    MICRO,
    TB,
    TERA,
    Bytes,
    BytesPerS,
    FlopsPerS,
    Frac,
    Seconds,
    format_bytes,
    format_bytes_per_s,
    format_flops_per_s,
)
from perfmodel.hardware.kernel_efficiency import (
    DEVICES_WITH_COSTS,
    WIDEST_ERROR_FRAC,
    KernelCosts,
    LaunchCosts,
    kernel_costs,
)
from perfmodel.models.dtypes import DTYPE_BYTES, Dtype, WeightKernels
from perfmodel.passes.device_key import LaunchMode
from perfmodel.quantisation.weight_format import WeightFormat

DEFAULT_MODE: LaunchMode = "graph"
"""A decoding loop built for speed uses captured graphs."""

MEMORY_HEADROOM_FRAC: Frac = 0.1
"""Share of a device's memory that is left for activations, workspaces and fragmentation."""

MAX_DEVICES = 8
"""One node. The all-reduce times hold inside a node only."""
NODE_SIZES = (1, 2, 4, 8)
"""Usual numbers of devices in a node."""

LinkKind = Literal["nvlink", "infinity-fabric", "pcie"]
ALL_REDUCE_S: dict[LinkKind, Seconds] = {"nvlink": 6.6 * MICRO, "infinity-fabric": 25 * MICRO, "pcie": 25 * MICRO}
"""Time of one small all-reduce. NVLink: from gpt-fast's Llama-2-7B rows on 2, 4 and 8 A100; the others are assumed."""

Similarity = Literal["itself", "same-chip", "neighbour", "distant", "unrelated"]
SIMILARITY_ERROR_FRAC: dict[Similarity, Frac] = {
    "same-chip": 0.15,
    "neighbour": 0.20,
    "distant": 0.30,
    "unrelated": WIDEST_ERROR_FRAC,
}
"""One standard deviation of a predicted pass, assumed.

same-chip  the reference device's chip with other memory, clock or package
neighbour  the vendor's next generation, or another chip of the same generation
distant    further away, or slowed by a small power limit
unrelated  another vendor or kind of device: the costs are borrowed, not scaled
"""

COMPUTE_DTYPES: tuple[Dtype, ...] = ("bf16", "fp16", "fp32")
"""Dtypes of activations. A device's default is the first one that it computes in."""
WEIGHT_ONLY_DTYPES: tuple[Dtype, ...] = ("int8", "int4", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0")
"""Weights in these are unpacked to the device's default dtype and multiplied in it; the integer peak is not used."""
UNPACKING_KERNELS: tuple[WeightKernels, ...] = ("int8", "int4", "gguf")
"""Kernels that unpacking slows down on a fast memory."""

_BYTES_RANGE = (GB // 10, 100 * TB)
_BYTES_PER_S_RANGE = (GB, 100 * TB)
_LINK_RANGE = (GB // 10, 10 * TB)
_FLOPS_RANGE = (GIGA, 100_000 * TERA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link between devices of one kind."""

    kind: LinkKind
    bytes_per_s: BytesPerS
    """Between two devices in one direction: half of the number for both directions that datasheets print."""
    max_devices: int
    """Devices that it joins: 2 for a bridge, a whole node for a switch."""

    def __post_init__(self) -> None:
        _check_range("bytes_per_s", self.bytes_per_s, _LINK_RANGE, format_bytes_per_s, "bytes per second and direction")
        if not 2 <= self.max_devices <= MAX_DEVICES:
            raise ValueError(f"max_devices is {self.max_devices}, expected 2 to {MAX_DEVICES}")

    @property
    def all_reduce_s(self) -> Seconds:
        """Time of one small all-reduce."""
        return ALL_REDUCE_S[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One kind of device."""

    name: str
    aliases: tuple[str, ...]
    """In lower case. The names that NVML and torch use are among them."""
    peak_flops_per_s: Mapping[Dtype, FlopsPerS]
    """Dense, with 32-bit accumulation where the datasheet has it. A dtype is absent if the device does not compute in it.

    fp32 is the plain path that torch takes by default, never TF32. int8 and int4 are recorded, but weight-only kernels do not
    compute in them.
    """
    memory_bytes_per_s: BytesPerS
    memory_bytes: Bytes
    links: tuple[Link, ...]
    """Fastest first; empty if devices cannot be joined."""
    reference_device: str
    """The device whose kernel costs are used: one of `DEVICES_WITH_COSTS`."""
    similarity: Similarity
    num_threads: int | None
    """Threads of a CPU; None for an accelerator."""
    spec_source: str

    def __post_init__(self) -> None:
        if self.reference_device not in DEVICES_WITH_COSTS:
            raise UnknownName(
                "reference_device", self.reference_device, DEVICES_WITH_COSTS, listed_in="docs/reference/hardware.md"
            )
        if not self.name.strip() or not self.spec_source.strip():
            raise ValueError("name or spec_source is empty, expected a name and where the numbers are from")
        if not set(COMPUTE_DTYPES) & set(self.peak_flops_per_s):
            raise ValueError(f"peak_flops_per_s has none of {', '.join(COMPUTE_DTYPES)}, expected at least one")
        for dtype, flops_per_s in self.peak_flops_per_s.items():
            if dtype not in DTYPE_BYTES:
                raise ValueError(f"peak_flops_per_s has {dtype}, expected number types: {', '.join(DTYPE_BYTES)}")
            _check_range(f"peak_flops_per_s of {dtype}", flops_per_s, _FLOPS_RANGE, format_flops_per_s, "FLOP per second")
        _check_range("memory_bytes", self.memory_bytes, _BYTES_RANGE, format_bytes, "bytes")
        _check_range("memory_bytes_per_s", self.memory_bytes_per_s, _BYTES_PER_S_RANGE, format_bytes_per_s, "bytes per second")

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the device, in lower case."""
        return (self.name.casefold(), *self.aliases)

    @property
    def costs(self) -> KernelCosts:
        """Kernel and host costs of the reference device, as measured there."""
        return kernel_costs(self.reference_device)

    @property
    def weight_bandwidth_frac(self) -> dict[WeightKernels, Frac]:
        """Share of this device's bandwidth at which kernels read weights and scales."""
        costs = self.costs
        shares = dict(costs.weight_bandwidth_frac)
        slower = max(1.0, costs.memory_bytes_per_s / self.memory_bytes_per_s)
        for kernels in UNPACKING_KERNELS:
            shares[kernels] = min(shares["bf16"], shares[kernels] * slower)
        return shares

    @property
    def error_frac(self) -> Frac:
        """One standard deviation of the relative error of a predicted pass."""
        return self.costs.error_frac if self.similarity == "itself" else SIMILARITY_ERROR_FRAC[self.similarity]

    @property
    def kernels_label(self) -> str:
        """Where its kernel costs are from: `kernel times scaled from H100-SXM (neighbour)`."""
        if self.num_threads is not None:
            return "nothing measured: s2d-profile latency gives real numbers"
        if self.similarity == "itself":
            return "published kernel times"
        if self.similarity == "unrelated":
            return f"no kernel times of its kind known, borrowed from {self.reference_device}"
        return f"kernel times scaled from {self.reference_device} ({self.similarity})"

    @property
    def default_dtype(self) -> Dtype:
        """bf16 if the device computes in it, else fp16, else fp32."""
        return next(dtype for dtype in COMPUTE_DTYPES if dtype in self.peak_flops_per_s)

    @property
    def default_mode(self) -> LaunchMode:
        """Graphs if the device has them."""
        modes = self.costs.modes
        return DEFAULT_MODE if DEFAULT_MODE in modes else next(iter(modes))

    @property
    def max_devices(self) -> int:
        """The most devices that its links join."""
        return max((link.max_devices for link in self.links), default=1)

    def matrix_dtype(self, arithmetic: Dtype | None) -> Dtype:
        """The dtype of matrix products: the weights' own arithmetic if the device has it, else the default after unpacking."""
        return arithmetic if arithmetic is not None and arithmetic in self.peak_flops_per_s else self.default_dtype

    def compute_dtype(self, weights: Dtype) -> Dtype:
        """The dtype in which weights of a dtype are multiplied.

        Raises:
            UserInputError: the device does not compute in it; lists the dtypes that it computes in.
        """
        if weights in WEIGHT_ONLY_DTYPES:
            return self.default_dtype
        if weights not in self.peak_flops_per_s:
            floats = [dtype for dtype in self.peak_flops_per_s if dtype not in WEIGHT_ONLY_DTYPES]
            raise UserInputError(
                f"{self.name} does not compute in {weights}: it computes in {', '.join(floats)}, and int8 and int4 weights "
                f"are unpacked to {self.default_dtype}. Give --dtype {self.default_dtype}, or another --device."
            )
        return weights

    def activation_dtype(self, weights: WeightFormat) -> Dtype:
        """The dtype of activations, keys and values of a model with these weights."""
        head = weights.head_kernels
        return head if head in COMPUTE_DTYPES and head in self.peak_flops_per_s else self.default_dtype

    def launch_costs(self, mode: LaunchMode) -> LaunchCosts:
        """Host costs in a launch mode.

        Raises:
            UserInputError: the device has no such mode.
        """
        modes = self.costs.modes
        if mode not in modes:
            known = ", ".join(modes)
            raise UserInputError(f"{self.name} has no {mode} mode: it has {known}. Give --mode {self.default_mode}.")
        return modes[mode]

    def link_between(self, num_devices: int) -> Link | None:
        """The fastest link that joins this number of devices; None for a single device.

        Raises:
            OutOfDomain: no link joins this many.
        """
        if num_devices == 1:
            return None
        for link in self.links:
            if num_devices <= link.max_devices:
                return link
        fix = f"{_devices_text(self.max_devices)} priced: take fewer, or another --device"
        raise OutOfDomain(f"num_devices of {self.name}", num_devices, low=1, high=self.max_devices, fix=fix)


def num_devices_to_fit(
    hardware: Hardware,
    needed_bytes: float,
    *,
    degrees: Sequence[int] = NODE_SIZES,
    headroom_frac: Frac = MEMORY_HEADROOM_FRAC,
) -> int:
    """The fewest devices whose memory, less headroom, holds some bytes; a power of two if one fits.

    Args:
        needed_bytes: on all devices together.
        degrees: numbers of devices to choose from (`perfmodel.models.geometry.tensor_parallel_degrees`).
        headroom_frac: share of the memory to leave free.

    Raises:
        OutOfDomain: the bytes need more devices than the links join, or than can share the models.
    """
    usable_bytes = hardware.memory_bytes * (1 - headroom_frac)
    joined = [degree for degree in degrees if degree <= hardware.max_devices]
    fitting = [degree for degree in joined if degree * usable_bytes >= needed_bytes]
    if not fitting:
        largest = max(joined)
        links_limit = largest == hardware.max_devices or max(degrees) > hardware.max_devices
        limit = f"{_devices_text(largest)} priced" if links_limit else f"The target can be split over at most {largest}"
        raise OutOfDomain(
            f"memory on {hardware.name}",
            needed_bytes,
            low=0,
            high=largest * usable_bytes,
            as_text=format_bytes,
            fix=f"{limit}: take a larger device, a smaller dtype or a shorter output",
        )
    return min(fitting, key=lambda degree: (degree.bit_count() > 1, degree))


def _devices_text(max_devices: int) -> str:
    return "One device is" if max_devices == 1 else f"Up to {max_devices} devices are"


def _check_range(
    name: str, value: float, allowed: tuple[float, float], format_value: Callable[[float], str], unit: str
) -> None:
    """Refuse a value that no device has; usually the number is in another unit."""
    low, high = allowed
    if not low <= value <= high:
        raise ValueError(f"{name} is {value:g}, expected {format_value(low)} to {format_value(high)}, given in {unit}")
