"""Schemes for storing one matrix: bits per weight, with scales and zero points."""

from dataclasses import dataclass

from perfmodel.models.dtypes import Dtype, WeightKernels

PLAIN_BITS = 16.0
SCALE_BITS = 16.0
"""Bits of one scale in fp16 or bf16."""
FLOAT32_BITS = 32.0
MIN_INT8_BITS = 5
"""Integers with at least this many bits use the int8 kernels, others the int4 kernels."""
FP8_SCALE_BITS = 8.0
MICROSCALING_GROUP = 32
"""Number of weights that share a scale in mxfp4 and mxfp8."""
_NVFP4_GROUP = 16
_WHOLE_MATRIX = 1
"""Group size for a matrix with a single scale, which is not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A way to store one matrix."""

    label: str
    """`int4, groups of 128`."""
    value_bits: float
    group_weights: int | None
    """Number of weights that share one scale; None for one scale per row."""
    scale_bits: float
    """Bits of one group's scale and zero point together; 0 if the whole matrix shares one."""
    kernels: WeightKernels
    arithmetic: Dtype | None
    """Type of the products; None if weights are unpacked to the 16-bit type of the activations."""

    def bits(self, columns: int) -> float:
        """Bits per weight in a matrix with this number of input columns."""
        return self.value_bits + self.scale_bits / (self.group_weights or columns)


PLAIN = Scheme(label="16 bits", value_bits=PLAIN_BITS, group_weights=1, scale_bits=0.0, kernels="bf16", arithmetic=None)
"""An unquantised matrix."""


def integer_scheme(bits: int, group: int | None, *, has_zero_points: bool, scale_bits: float = SCALE_BITS) -> Scheme:
    """Integers that are unpacked to 16 bits before multiplication.

    Args:
        bits: bits of one value, 1 to 8.
        group: number of weights that share a scale; None for one scale per row.
        has_zero_points: whether every scale comes with a zero point of the same bits as a value.
        scale_bits: bits of one scale.
    """
    scale_layout = "a scale per row" if group is None else f"groups of {group}"
    return Scheme(
        label=f"int{bits}, {scale_layout}",
        value_bits=bits,
        group_weights=group,
        scale_bits=scale_bits + (bits if has_zero_points else 0),
        kernels=integer_kernels(bits),
        arithmetic=None,
    )


def mean_bits_scheme(name: str, bits: float) -> Scheme:
    """A method that states its mean bits per weight with scales; weights are unpacked to 16 bits.

    Args:
        name: the method's name.
        bits: mean bits per weight.
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
    """The kernels that read integers: int4 below `MIN_INT8_BITS`, else int8."""
    return "int4" if bits < MIN_INT8_BITS else "int8"


def fp8_scheme(scale_layout: str, *, group: int | None, scale_bits: float, computes_in_fp8: bool = True) -> Scheme:
    """8-bit floats.

    Args:
        scale_layout: the layout of the scales, in words.
        group: number of weights that share a scale; None for one scale per row.
        scale_bits: bits of one scale.
        computes_in_fp8: whether products use fp8 on devices that support it; otherwise weights are unpacked to 16 bits.
    """
    return Scheme(
        label=f"fp8, {scale_layout}",
        value_bits=8,
        group_weights=group,
        scale_bits=scale_bits,
        kernels="fp8",
        arithmetic="fp8" if computes_in_fp8 else None,
    )


FP8_PER_MATRIX = fp8_scheme("a scale per matrix", group=_WHOLE_MATRIX, scale_bits=0.0)
FP8_PER_ROW = fp8_scheme("a scale per row", group=None, scale_bits=FLOAT32_BITS)


def fp8_blocks(rows: int, columns: int, scale_bits: float = FLOAT32_BITS) -> Scheme:
    """8-bit floats with a scale per block of the matrix."""
    return fp8_scheme(f"blocks of {rows} x {columns}", group=rows * columns, scale_bits=scale_bits)


def int8_w8a8_scheme(scale_bits: float) -> Scheme:
    """W8A8: int8 weights and activations with integer products."""
    return Scheme(
        label="int8 weights and activations, a scale per row",
        value_bits=8,
        group_weights=None,
        scale_bits=scale_bits,
        kernels="int8",
        arithmetic="int8",
    )


def _block_float(name: str, bits: int, group: int) -> Scheme:
    """Floats with an 8-bit scale per group. 4-bit floats are unpacked to 16 bits: the device table has no peak for them."""
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
