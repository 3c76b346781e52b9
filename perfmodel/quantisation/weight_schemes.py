"""Schemes: the ways to store one matrix, with their bits per weight, scales and zero points included."""

from dataclasses import dataclass

from perfmodel.models.dtypes import Dtype, WeightKernels

PLAIN_BITS = 16.0
SCALE_BITS = 16.0
"""Of one scale in fp16 or bf16."""
FLOAT32_BITS = 32.0
MIN_INT8_BITS = 5
"""Bits of a value from which the kernels of int8 are taken, and not those of int4."""
FP8_SCALE_BITS = 8.0
MICROSCALING_GROUP = 32
"""Weights that share a scale in mxfp4 and mxfp8."""
_NVFP4_GROUP = 16
_WHOLE_MATRIX = 1
"""Stands for a matrix whose one scale is not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One way to store a matrix."""

    label: str
    """`int4, groups of 128`."""
    value_bits: float
    group_weights: int | None
    """Weights that share one scale; None for one scale per row."""
    scale_bits: float
    """Of the scale and the zero point of one group together; 0 where a whole matrix shares one."""
    kernels: WeightKernels
    arithmetic: Dtype | None
    """What it is multiplied in; None where it is unpacked to the dtype of the activations, 16 bits."""

    def bits(self, columns: int) -> float:
        """Bits per weight of a matrix with that many input columns."""
        return self.value_bits + self.scale_bits / (self.group_weights or columns)


PLAIN = Scheme(label="16 bits", value_bits=PLAIN_BITS, group_weights=1, scale_bits=0.0, kernels="bf16", arithmetic=None)
"""A matrix that was not quantised."""


def integer_scheme(bits: int, group: int | None, *, has_zero_points: bool, scale_bits: float = SCALE_BITS) -> Scheme:
    """Integers that are unpacked to 16 bits before they are multiplied.

    Args:
        bits: of one value, 1 to 8.
        group: weights that share a scale; None for one scale per row.
        has_zero_points: whether a zero point of as many bits stands beside every scale.
        scale_bits: of one scale.
    """
    where = "a scale per row" if group is None else f"groups of {group}"
    return Scheme(
        label=f"int{bits}, {where}",
        value_bits=bits,
        group_weights=group,
        scale_bits=scale_bits + (bits if has_zero_points else 0),
        kernels=integer_kernels(bits),
        arithmetic=None,
    )


def mean_bits_scheme(name: str, bits: float) -> Scheme:
    """A method that states its mean bits per weight, scales included; unpacked to 16 bits.

    Args:
        name: of the method.
        bits: per weight.
    """
    return Scheme(
        label=name,
        value_bits=bits,
        group_weights=1,
        scale_bits=0.0,
        kernels=integer_kernels(bits),
        arithmetic=None,
    )


def integer_kernels(bits: float) -> WeightKernels:
    """The kernels that read integers of so many bits: those of int4 up to 4 bits, else those of int8."""
    return "int4" if bits < MIN_INT8_BITS else "int8"


def fp8_scheme(where: str, *, group: int | None, scale_bits: float, multiplied: bool = True) -> Scheme:
    """8-bit floats.

    Args:
        where: the scales are, in words.
        group: weights that share a scale; None for one scale per row.
        scale_bits: of one scale.
        multiplied: as 8-bit floats, where the device can; false where they are unpacked to 16 bits.
    """
    return Scheme(
        label=f"fp8, {where}",
        value_bits=8,
        group_weights=group,
        scale_bits=scale_bits,
        kernels="fp8",
        arithmetic="fp8" if multiplied else None,
    )


FP8_PER_MATRIX = fp8_scheme("a scale per matrix", group=_WHOLE_MATRIX, scale_bits=0.0)
FP8_PER_ROW = fp8_scheme("a scale per row", group=None, scale_bits=FLOAT32_BITS)


def fp8_blocks(rows: int, columns: int, scale_bits: float = FLOAT32_BITS) -> Scheme:
    """8-bit floats with a scale per block of a matrix."""
    return fp8_scheme(f"blocks of {rows} x {columns}", group=rows * columns, scale_bits=scale_bits)


def int8_w8a8_scheme(scale_bits: float) -> Scheme:
    """W8A8: int8 weights and activations, multiplied as integers."""
    return Scheme(
        label="int8 weights and activations, a scale per row",
        value_bits=8,
        group_weights=None,
        scale_bits=scale_bits,
        kernels="int8",
        arithmetic="int8",
    )


def _block_float(name: str, bits: int, group: int) -> Scheme:
    """Floats with an 8-bit scale per group, and unpacked to 16 bits: the table of devices has no peak for 4-bit floats."""
    return Scheme(
        label=f"{name}, groups of {group}",
        value_bits=bits,
        group_weights=group,
        scale_bits=FP8_SCALE_BITS,
        kernels="fp8" if bits == 8 else integer_kernels(bits),
        arithmetic="fp8" if bits == 8 else None,
    )


MXFP4 = _block_float("mxfp4", 4, MICROSCALING_GROUP)
MXFP8 = _block_float("mxfp8", 8, MICROSCALING_GROUP)
NVFP4 = _block_float("nvfp4", 4, _NVFP4_GROUP)
