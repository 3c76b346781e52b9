"""Numbers as people read them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.core import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.format_seconds(0.0271), "27.1 ms"),
        (units.format_seconds(0.9999), "1.00 s"),
        (units.format_seconds(8.4e-6), "8.40 µs"),
        (units.format_seconds(3e-9), "3.00 ns"),
        (units.format_seconds(-0.0015), "-1.50 ms"),
        (units.format_seconds(0), "0 s"),
        (units.format_seconds(4e-12), "0.00400 ns"),
        (units.format_duration(0.2), "1 s"),
        (units.format_duration(200), "3 min 20 s"),
        (units.format_duration(59.5), "1 min 00 s"),
        (units.format_duration(7500), "2 h 05 min"),
        (units.format_bytes(140e9), "140 GB"),
        (units.format_bytes(16_800_000), "16.8 MB"),
        (units.format_bytes(512), "512 B"),
        (units.format_bytes(0), "0 B"),
        (units.format_bytes_per_s(2.039e12), "2.04 TB/s"),
        (units.format_flops_per_s(312e12), "312 TFLOP/s"),
        (units.format_flops_per_s(0), "0 FLOP/s"),
        (units.format_joules(0.42), "420 mJ"),
        (units.format_frac(0.125), "12.5 %"),
        (units.format_signed_frac(0.03), "+3.0 %"),
        (units.format_signed_frac(-0.03), "-3.0 %"),
        (units.format_rate(53.14), "53.1 tokens/s"),
        (units.format_rate(8231.4), "8231 tokens/s"),
        (units.format_speedup(1.534), "1.53x"),
        (units.format_number(9.996), "10.0"),
        (units.format_number(0), "0"),
        (units.format_interval(1.411, 1.618, units.format_speedup), "1.41x to 1.62x"),
    ],
)
def test_a_number_is_formatted_in_a_readable_unit(text: str, expected: str) -> None:
    assert text == expected


@given(st.floats(min_value=1e-8, max_value=1e5))
def test_a_formatted_time_is_right_to_three_digits(seconds: float) -> None:
    number, unit = units.format_seconds(seconds).split()
    scale = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit]
    assert math.isclose(float(number) * scale, seconds, rel_tol=0.0051)
    assert "e" not in number


def test_a_gigabyte_and_a_gibibyte_differ() -> None:
    assert (units.GB, units.GIB, units.TERA) == (10**9, 2**30, 10**12)
