"""Leviathan's formula and its inverse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.engines.leviathan import acceptance_rate, leviathan_speedup


def test_the_formula_gives_the_published_speedups() -> None:
    # Leviathan et al. 2023, Table 1: the factors by which the operations and the speed grow at c = 0.
    for rate, tokens, speedup in ((0.6, 2, 1.96), (0.7, 3, 2.53), (0.8, 5, 3.69), (0.9, 10, 6.86)):
        assert leviathan_speedup(rate, tokens, 0.0) == pytest.approx(speedup, abs=0.01)


@given(rate=st.floats(0.01, 0.99), tokens=st.integers(1, 16))
def test_the_rate_of_a_mean_length_is_the_rate_that_gives_it(rate: float, tokens: int) -> None:
    length = leviathan_speedup(rate, tokens, 0.0)
    assert acceptance_rate(length, tokens) == pytest.approx(rate, abs=1e-6)


@given(rate=st.floats(0, 1), tokens=st.integers(0, 16), cost=st.floats(0, 2))
def test_a_dearer_draft_is_never_faster(rate: float, tokens: int, cost: float) -> None:
    assert leviathan_speedup(rate, tokens, cost + 0.1) <= leviathan_speedup(rate, tokens, cost)


def test_a_rate_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match="rate from 0 to 1"):
        leviathan_speedup(1.2, 4, 0.1)
