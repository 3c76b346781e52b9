"""Types of quantities by unit, and the only functions that format numbers as ms, GB and %.

Code and files hold seconds, bytes, FLOP, tokens, joules, watts and fractions of 1. The types below are aliases of `float` and
`int` and only document the unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Seconds = float
Bytes = int
Tokens = int
Flops = float
Joules = float
Watts = float
Frac = float
"""A fraction of 1: 0.25 is a quarter."""
TokensPerS = float
BytesPerS = float
FlopsPerS = float
Floats: TypeAlias = "NDArray[np.float64]"
"""An array of numbers in any unit; a comment gives its shape."""

NANO = 1e-9
MICRO = 1e-6
MILLI = 1e-3
KILO = 10**3
MEGA = 10**6
GIGA = 10**9
TERA = 10**12
MB = 10**6
GB = 10**9
TB = 10**12
MIB = 2**20
GIB = 2**30

MINUTE_S = 60
HOUR_S = 3600

_SIGNIFICANT_DIGITS = 3


def format_seconds(seconds: Seconds) -> str:
    """A measured time with three significant digits: `1.53 s`, `27.1 ms`, `8.40 µs`."""
    return _scaled(seconds, ((1.0, "s"), (MILLI, "ms"), (MICRO, "µs"), (NANO, "ns")))


def format_duration(seconds: Seconds) -> str:
    """A waiting time, rounded up to a second: `41 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = math.ceil(seconds)
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min {whole % MINUTE_S:02d} s"
    return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S:02d} min"


def format_bytes(num_bytes: float) -> str:
    """Bytes with decimal prefixes: `140 GB`, `16.8 MB`, `512 B`."""
    return _scaled(num_bytes, ((TB, "TB"), (GB, "GB"), (MB, "MB"), (KILO, "kB"), (1.0, "B")))


def format_bytes_per_s(bytes_per_s: BytesPerS) -> str:
    """A bandwidth: `2.04 TB/s`."""
    return f"{format_bytes(bytes_per_s)}/s"


def format_flops_per_s(flops_per_s: FlopsPerS) -> str:
    """A compute rate: `312 TFLOP/s`."""
    return _scaled(flops_per_s, ((TERA, "TFLOP/s"), (GIGA, "GFLOP/s"), (MEGA, "MFLOP/s"), (1.0, "FLOP/s")))


def format_joules(joules: Joules) -> str:
    """An energy: `1.53 kJ`, `12.0 J`, `420 mJ`."""
    return _scaled(joules, ((KILO, "kJ"), (1.0, "J"), (MILLI, "mJ")))


def format_frac(frac: Frac) -> str:
    """A fraction of 1 as a percentage with one decimal: `12.5 %`."""
    return f"{100 * frac:.1f} %"


def format_signed_frac(frac: Frac) -> str:
    """A difference as a percentage with its sign: `+3.0 %`."""
    return f"{100 * frac:+.1f} %"


def format_rate(tokens_per_s: TokensPerS) -> str:
    """A generation rate: `53.1 tokens/s`."""
    return f"{format_number(tokens_per_s)} tokens/s"


def format_speedup(ratio: float) -> str:
    """A ratio of rates: `1.53x`."""
    return f"{ratio:.2f}x"


def format_interval(low: float, high: float, format_value: Callable[[float], str]) -> str:
    """An interval, each end formatted by the function for its unit: `1.41x to 1.62x`."""
    return f"{format_value(low)} to {format_value(high)}"


def format_number(value: float) -> str:
    """A number without unit, with three significant digits and without exponent: `0.0123`, `1.50`, `8231`."""
    rounded = _rounded(value)
    if rounded == 0:
        return "0"
    decimals = max(0, _SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:.{decimals}f}"


def _rounded(value: float) -> float:
    """The value rounded to three significant digits. Its unit is chosen after rounding: 999.9 ms is 1.00 s."""
    return float(f"{value:.{_SIGNIFICANT_DIGITS - 1}e}")


def _scaled(value: float, scales: tuple[tuple[float, str], ...]) -> str:
    """The value in the largest unit that does not exceed it; `scales` descend and include 1."""
    rounded = abs(_rounded(value))
    if rounded == 0:
        return f"0 {next(name for scale, name in scales if scale == 1)}"
    scale, name = next(((scale, name) for scale, name in scales if rounded >= scale), scales[-1])
    return f"{format_number(value / scale)} {name}"
