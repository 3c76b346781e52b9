"""Devices: what their vendors print, and what kernels are taken to reach of it.

A row (the table is `perfmodel.hardware.known_hardware`, a user's own comes from a file) holds a datasheet's numbers and names its
*reference_device*: the device whose kernel costs stand in for its own (`perfmodel.hardware.kernel_efficiency`). How the costs carry over:

    floors, host costs, share of the peak    the reference_device's, unchanged
    share of the bandwidth, 16 and 32 bit    the reference_device's, unchanged
    share of the bandwidth, int8, int4, gguf the reference_device's, but on a slower memory the reference_device's bytes per second, up to
                                             the 16-bit share: unpacking is arithmetic, and a slower memory hides it
    error                                    by similarity: `SIMILARITY_ERROR_FRAC`
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
    EngineCosts,
    KernelCosts,
    kernel_costs,
)
from perfmodel.models.dtypes import DTYPE_BYTES, Dtype, WeightKernels
from perfmodel.passes.device_key import EngineMode
from perfmodel.quantisation.weight_format import WeightFormat

DEFAULT_ENGINE: EngineMode = "graph"
"""On a GPU: captured graphs are what a decoding loop uses when speed is the point."""

MEMORY_HEADROOM_FRAC: Frac = 0.1
"""Share of a device's memory left to activations, workspaces and fragmentation."""

MAX_DEVICES = 8
"""One node: beyond it the all-reduce constants do not hold."""
NODE_SIZES = (1, 2, 4, 8)
"""Numbers of devices that nodes have."""

LinkKind = Literal["nvlink", "infinity-fabric", "pcie"]
ALL_REDUCE_S: dict[LinkKind, Seconds] = {"nvlink": 6.6 * MICRO, "infinity-fabric": 25 * MICRO, "pcie": 25 * MICRO}
"""One small all-reduce. NVLink: from gpt-fast's Llama-2-7B rows on 2, 4 and 8 A100; the others assumed."""

Similarity = Literal["itself", "same-chip", "neighbour", "distant", "unrelated"]
SIMILARITY_ERROR_FRAC: dict[Similarity, Frac] = {
    "same-chip": 0.15,
    "neighbour": 0.20,
    "distant": 0.30,
    "unrelated": WIDEST_ERROR_FRAC,
}
"""One standard deviation of a predicted pass, assumed.

same-chip  the reference_device's chip with other memory, clock or package
neighbour  the vendor's next generation, or another chip of the same one
distant    further away, or held back by a small power limit
unrelated   another vendor or kind of device: the costs are borrowed, not scaled
"""

COMPUTE_DTYPES: tuple[Dtype, ...] = ("bf16", "fp16", "fp32")
"""What activations are held in; the first that a device has is its default."""
WEIGHT_ONLY_DTYPES: tuple[Dtype, ...] = ("int8", "int4", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0")
"""Weights of these are unpacked to the device's default and multiplied there, whatever its integer peak."""
UNPACKING_KERNELS: tuple[WeightKernels, ...] = ("int8", "int4", "gguf")
"""Kernels whose speed unpacking limits on a fast memory."""

_BYTES_RANGE = (GB // 10, 100 * TB)
_BYTES_PER_S_RANGE = (GB, 100 * TB)
_LINK_RANGE = (GB // 10, 10 * TB)
_FLOPS_RANGE = (GIGA, 100_000 * TERA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What joins devices of a kind."""

    kind: LinkKind
    bytes_per_s: BytesPerS
    """Between two devices, one direction: half of what datasheets print for both."""
    max_devices: int
    """It joins as many: 2 for a bridge, a whole node for a switch."""

    def __post_init__(self) -> None:
        _check_range("bytes_per_s", self.bytes_per_s, _LINK_RANGE, format_bytes_per_s, "bytes per second and direction")
        if not 2 <= self.max_devices <= MAX_DEVICES:
            raise ValueError(f"max_devices is {self.max_devices}, expected 2 to {MAX_DEVICES}")

    @property
    def all_reduce_s(self) -> Seconds:
        """One small all-reduce."""
        return ALL_REDUCE_S[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One kind of device."""

    name: str
    aliases: tuple[str, ...]
    """In lower case; among them what NVML and torch call it."""
    peak_flops_per_s: Mapping[Dtype, FlopsPerS]
    """Dense, with 32-bit accumulation where the datasheet tells; a dtype is absent where the device does not compute in it.

    fp32 is the plain path that torch takes unless it is allowed TF32, never TF32. int8 and int4 are recorded, and not what
    weight-only kernels compute in.
    """
    memory_bytes_per_s: BytesPerS
    memory_bytes: Bytes
    links: tuple[Link, ...]
    """Fastest first; none where it stands alone."""
    reference_device: str
    """Whose kernel costs are taken: one of `DEVICES_WITH_COSTS`."""
    similarity: Similarity
    num_threads: int | None
    """Of a CPU; None for an accelerator."""
    spec_source: str

    def __post_init__(self) -> None:
        if self.reference_device not in DEVICES_WITH_COSTS:
            raise UnknownName("reference_device", self.reference_device, DEVICES_WITH_COSTS, listed_in="docs/hardware.md")
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
        """Every name it is found by, in lower case."""
        return (self.name.casefold(), *self.aliases)

    @property
    def costs(self) -> KernelCosts:
        """Its reference_device's, as they were seen there."""
        return kernel_costs(self.reference_device)

    @property
    def engines(self) -> Mapping[EngineMode, EngineCosts]:
        """What the host adds, by engine mode."""
        return self.costs.engines

    @property
    def weight_bandwidth_frac(self) -> dict[WeightKernels, Frac]:
        """Share of its memory bandwidth at which kernels read weights and scales."""
        costs = self.costs
        shares = dict(costs.weight_bandwidth_frac)
        slower = max(1.0, costs.memory_bytes_per_s / self.memory_bytes_per_s)
        for kernels in UNPACKING_KERNELS:
            shares[kernels] = min(shares["bf16"], shares[kernels] * slower)
        return shares

    @property
    def flops_frac(self) -> Frac:
        """Share of the peak that large matrix products reach."""
        return self.costs.flops_frac

    @property
    def layer_floor_s(self) -> Seconds:
        """Kernel time of one layer whose weights are nothing, attention apart."""
        return self.costs.layer_floor_s

    @property
    def gguf_layer_s(self) -> Seconds:
        """Kernel time of one layer on top where llama.cpp's kernels read it."""
        return self.costs.gguf_layer_s

    @property
    def row_layer_s(self) -> Seconds:
        """Kernel time of one layer for each row, besides its matrix products."""
        return self.costs.row_layer_s

    @property
    def attn_floor_s(self) -> Seconds:
        """The same of one layer's attention."""
        return self.costs.attn_floor_s

    @property
    def error_frac(self) -> Frac:
        """One standard deviation of the reference_device error of a predicted pass."""
        return self.costs.error_frac if self.similarity == "itself" else SIMILARITY_ERROR_FRAC[self.similarity]

    @property
    def kernels_label(self) -> str:
        """Where its kernel costs are from, in half a sentence."""
        if self.num_threads is not None:
            return "nothing measured: s2d-profile latency gives real numbers"
        if self.similarity == "itself":
            return "published kernel times"
        if self.similarity == "unrelated":
            return f"no kernel times of its kind known, borrowed from {self.reference_device}"
        return f"kernel times scaled from {self.reference_device} ({self.similarity})"

    @property
    def default_dtype(self) -> Dtype:
        """bf16 where it has it, else fp16, else fp32."""
        return next(dtype for dtype in COMPUTE_DTYPES if dtype in self.peak_flops_per_s)

    @property
    def default_engine(self) -> EngineMode:
        """Graphs where it has them."""
        return DEFAULT_ENGINE if DEFAULT_ENGINE in self.engines else next(iter(self.engines))

    @property
    def max_devices(self) -> int:
        """As many as its links join."""
        return max((link.max_devices for link in self.links), default=1)

    def matrix_dtype(self, arithmetic: Dtype | None) -> Dtype:
        """What matrices are multiplied in: in their own arithmetic where the device has it, else unpacked."""
        return arithmetic if arithmetic is not None and arithmetic in self.peak_flops_per_s else self.default_dtype

    def compute_dtype(self, weights: Dtype) -> Dtype:
        """What weights asked for in a dtype are multiplied in.

        Raises:
            UserInputError: the device does not compute in it; names those it does.
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
        """What activations, keys and values are held in beside some weights."""
        head = weights.head_kernels
        return head if head in COMPUTE_DTYPES and head in self.peak_flops_per_s else self.default_dtype

    def engine_costs(self, engine: EngineMode) -> EngineCosts:
        """What the host adds in an engine mode.

        Raises:
            UserInputError: the device has no such mode.
        """
        if engine not in self.engines:
            had = ", ".join(self.engines)
            raise UserInputError(f"{self.name} has no {engine} mode: it has {had}. Give --engine {self.default_engine}.")
        return self.engines[engine]

    def link_between(self, num_devices: int) -> Link | None:
        """The fastest link that joins as many devices; None for a single one.

        Raises:
            OutOfDomain: no link joins as many.
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
    """The fewest devices whose memory less headroom holds some bytes; a power of two where one does.

    Args:
        hardware: what they are.
        needed_bytes: of all together.
        degrees: the numbers to choose from (`perfmodel.models.geometry.tensor_parallel_degrees`).
        headroom_frac: the share of the memory to leave free.

    Raises:
        OutOfDomain: more than its links join, or than can share the models, would be needed.
    """
    usable_bytes = hardware.memory_bytes * (1 - headroom_frac)
    joined = [degree for degree in degrees if degree <= hardware.max_devices]
    fitting = [degree for degree in joined if degree * usable_bytes >= needed_bytes]
    if not fitting:
        most = max(joined)
        is_linked = most == hardware.max_devices or max(degrees) > hardware.max_devices
        limit = f"{_devices_text(most)} priced" if is_linked else f"The target can be shared by at most {most}"
        raise OutOfDomain(
            f"memory on {hardware.name}",
            needed_bytes,
            low=0,
            high=most * usable_bytes,
            as_text=format_bytes,
            fix=f"{limit}: take a larger device, a smaller dtype or a shorter output",
        )
    return min(fitting, key=lambda degree: (degree.bit_count() > 1, degree))


def _devices_text(max_devices: int) -> str:
    return "One device is" if max_devices == 1 else f"Up to {max_devices} devices are"


def _check_range(name: str, value: float, allowed: tuple[float, float], format_one: Callable[[float], str], unit: str) -> None:
    """Refuse what no device has: mostly a number in another unit."""
    low, high = allowed
    if not low <= value <= high:
        raise ValueError(f"{name} is {value:g}, expected {format_one(low)} to {format_one(high)}, given in {unit}")
