"""device_check.py: how tokens that are not the target's first choice are counted."""

import math
from dataclasses import replace

import pytest
from device_check import LogitsError, result_of, tables
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.results.report import Divergence
from shared.logit_gaps import GAP_EDGES, STATED_GAP, Lossless, gap_histogram, gap_result

TEXTS = Lossless(
    pair="target with draft",
    dtype="bf16",
    mode="graph",
    num_cases=3,
    num_drafted=9,
    num_accepted=6,
    divergences=(Divergence(prompt="case 1", position=4, gap=0.02),),
    gaps=(0.0, 0.0, 0.02),
)
IN_FP32 = replace(TEXTS, dtype="fp32", divergences=(), gaps=(0.0,))
RIGHT = [LogitsError(hidden_size=32, dtype=dtype, ours_frac=1e-6, transformers_frac=1e-6) for dtype in ("fp32", "bf16")]


def test_a_gap_on_an_edge_is_within_it_and_a_gap_just_above_is_not() -> None:
    assert gap_histogram([0.0, 0.01, 0.5]) == {"0": 1, "<=0.01": 1, "<=0.03": 0, "<=0.1": 0, "<=0.3": 0, "<=0.5": 1, ">0.5": 0}
    above = [math.nextafter(edge, math.inf) for edge in (0.0, 0.01, 0.5)]
    assert gap_histogram(above) == {"0": 0, "<=0.01": 1, "<=0.03": 1, "<=0.1": 0, "<=0.3": 0, "<=0.5": 0, ">0.5": 1}


@given(st.lists(st.floats(min_value=0, allow_nan=False) | st.sampled_from(GAP_EDGES)))
def test_every_token_is_counted_once_in_the_first_bin_that_fits(gaps: list[float]) -> None:
    counts = list(gap_histogram(gaps).values())
    assert [sum(counts[: index + 1]) for index in range(len(GAP_EDGES))] == [sum(g <= edge for g in gaps) for edge in GAP_EDGES]
    assert sum(counts) == len(gaps)


def test_nan_and_infinity_are_beyond_the_stated_gap() -> None:
    assert gap_histogram([math.nan, math.inf])[f">{STATED_GAP:g}"] == 2


def test_pairs_are_summed_by_dtype() -> None:
    result = gap_result([TEXTS, replace(TEXTS, gaps=(0.7,)), IN_FP32], ("fp32", "bf16"))
    assert result["num_cases"] == {"fp32": 3, "bf16": 6}
    assert result["num_mismatches"] == {"fp32": 0, "bf16": 2}
    assert result["num_tokens"] == {"fp32": 1, "bf16": 4}
    assert result["num_beyond_stated_gap"] == {"fp32": 0, "bf16": 1}
    assert result["worst_gap"] == {"fp32": 0.0, "bf16": 0.7}
    assert result["gap_histogram"]["bf16"]["<=0.03"] == 1


@pytest.mark.parametrize(
    ("texts", "is_correct"),
    [
        ((IN_FP32, TEXTS), True),
        ((IN_FP32, replace(TEXTS, gaps=(0.51,))), False),
        ((replace(IN_FP32, divergences=TEXTS.divergences), TEXTS), False),
        ((replace(IN_FP32, gaps=(0.01,)), TEXTS), False),
    ],
)
def test_a_different_text_is_wrong_in_fp32_and_a_token_beyond_the_stated_gap_in_bf16(texts, is_correct: bool) -> None:
    assert result_of(RIGHT, texts)["is_correct"] is is_correct


def test_logits_beyond_their_limit_are_wrong() -> None:
    wrong = replace(RIGHT[1], ours_frac=3e-6)
    assert result_of([RIGHT[0], wrong], (IN_FP32, TEXTS))["is_correct"] is False


def test_the_table_has_the_histogram_and_the_stated_gap() -> None:
    lines = tables(RIGHT, (IN_FP32, TEXTS)).splitlines()
    assert lines[-1] == "gaps in logits; stated: at most 0.5"
    assert lines[-3].split()[-8:] == ["2", "0", "1", "0", "0", "0", "0", "0.02"]
