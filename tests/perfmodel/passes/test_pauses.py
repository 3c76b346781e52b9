"""Pauses are detected, left out of prices, replaced in sums, and reported."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.passes.passes import PassKind, PassSamples
from perfmodel.passes.pauses import (
    MIN_PAUSE_RATIO,
    MIN_PAUSE_S,
    find_pauses,
    pauses_text,
    replace_pauses,
    without_pauses,
)

VERIFY_S = 5e-3


def verifies(seconds: list[float], rows: list[int] | None = None, kind: PassKind = "verify") -> PassSamples:
    number = len(seconds)
    return PassSamples(
        kind=(kind,) * number,
        stage=(0,) * number,
        rows=tuple(rows or [1] * number),
        cached_tokens=tuple(range(number)),
        place=(0,) * number,
        seconds=tuple(seconds),
    )


@pytest.mark.parametrize("pause_s", [1.0, 10.0, 60.0, 3600.0, 36_000.0, 1e300])
@pytest.mark.parametrize("place", [0, 7, 19])
def test_a_paused_pass_is_detected_left_out_and_replaced_by_a_typical_one(pause_s: float, place: int) -> None:
    steady = verifies([VERIFY_S] * 20)
    paused = replace(steady, seconds=tuple(pause_s if n == place else VERIFY_S for n in range(20)))
    assert list(find_pauses(paused)) == [place]
    assert without_pauses(paused).cached_tokens == tuple(n for n in range(20) if n != place)
    assert replace_pauses(paused) == steady


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        ([VERIFY_S] * 20 + [0.9], [1] * 21),  # preempted, but for less than a pause
        ([2.0] * 20 + [50.0], [1] * 21),  # a large model whose slowest pass is 25 times as slow
        ([0.01] * 20 + [4.0], [10] * 20 + [1000]),  # a long prompt after short ones
        ([36_000.0], [1]),  # a single pass has no typical seconds
    ],
)
def test_a_pass_that_is_slow_for_its_own_reasons_is_kept(seconds: list[float], rows: list[int]) -> None:
    assert find_pauses(verifies(seconds, rows)) == {}


@given(st.lists(st.floats(1e-6, 1e300), max_size=30))
def test_no_kept_pass_is_both_a_second_long_and_far_above_the_typical_one(seconds: list[float]) -> None:
    samples = verifies(seconds)
    kept = without_pauses(samples).seconds
    assert len(kept) + len(find_pauses(samples)) == len(seconds)
    typical_s = sorted(seconds)[(len(seconds) - 1) // 2] if seconds else 0.0
    assert all(seconds_kept < max(MIN_PAUSE_S, MIN_PAUSE_RATIO * typical_s) for seconds_kept in kept)


@pytest.mark.parametrize(
    ("longest_s", "others", "text"),
    [
        (25.0, [], "1 verify pass of 25.0 s, 5,000 times the typical one, was left out"),
        (25.0, [2.0], "2 passes, the longest a verify pass of 25.0 s, 5,000 times the typical one, were left out"),
        (1e300, [], "1 verify pass of more than 1,000,000 s, more than 1,000,000,000 times the typical one, was left out"),
    ],
)
def test_pauses_are_described_in_one_line(longest_s: float, others: list[float], text: str) -> None:
    pauses = find_pauses(verifies([VERIFY_S] * 20 + [longest_s, *others])).values()
    assert pauses_text(pauses) == f"{text}: was the process stopped, or the machine suspended?"
    assert pauses_text(()) is None
