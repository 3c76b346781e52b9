"""Kinds of passes, their cold places, and the columns that measured passes are stored in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.passes.passes import (
    COLD_PLACES,
    PASS_KINDS,
    PASS_MODEL,
    Line,
    PassKind,
    PassSample,
    PassSamples,
    is_cold,
)

EXIT_CHECK = PassSample("exit", 1, 1, 0, 2, 1e-4)
VERIFIES = [PassSample("verify", 0, rows, 40 + rows, 1, 5e-3) for rows in (2, 3, 2)]

passes = st.builds(
    PassSample,
    st.sampled_from(PASS_KINDS),
    *(st.integers(0, 20) for _ in range(4)),
    st.floats(1e-9, 1e3),
)


@given(st.lists(passes, max_size=20))
def test_columns_hold_the_passes_they_were_made_from_in_order(some: list[PassSample]) -> None:
    samples = PassSamples.from_passes(some)
    assert list(samples) == some
    assert len(samples) == len(some)


@given(st.lists(st.lists(passes, max_size=5), max_size=4))
def test_concat_keeps_every_pass_of_every_run(runs: list[list[PassSample]]) -> None:
    samples = PassSamples.concat(PassSamples.from_passes(run) for run in runs)
    assert list(samples) == [sample for run in runs for sample in run]


def test_passes_are_selected_by_a_condition_and_grouped_by_kind_stage_and_rows() -> None:
    samples = PassSamples.from_passes([EXIT_CHECK, *VERIFIES])
    assert list(samples.where(lambda sample: sample.rows == 2)) == [VERIFIES[0], VERIFIES[2]]
    first, second, third = VERIFIES
    assert samples.by_name() == {("exit", 1, 1): [EXIT_CHECK], ("verify", 0, 2): [first, third], ("verify", 0, 3): [second]}


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("kind", ("exit", "exit"), "columns of unequal lengths"),
        ("seconds", (0.0,), "every pass takes more than 0 s"),
        ("rows", (-1,), "rows holds -1, expected 0 to 2147483647"),
    ],
)
def test_columns_that_hold_no_passes_are_refused(column: str, value: tuple[object, ...], problem: str) -> None:
    columns = {name: (cell,) for name, cell in EXIT_CHECK._asdict().items()}
    with pytest.raises(ValueError, match=problem):
        PassSamples(**columns | {column: value})


def test_a_line_is_seconds_with_nothing_cached_and_seconds_for_each_cached_token() -> None:
    assert Line(base_s=1e-3, per_token_s=1e-6).at(500) == pytest.approx(1.5e-3)
    assert Line(base_s=1e-3, per_token_s=1e-6).at(0) == 1e-3


def test_the_first_draft_passes_of_a_round_are_cold_and_a_verification_after_several_segments() -> None:
    cold = {kind: [place for place in range(8) if place and is_cold(kind, place)] for kind in PASS_KINDS}
    first = list(range(1, COLD_PLACES + 1))
    expected: dict[PassKind, list[int]] = {kind: [] for kind in PASS_KINDS}
    assert cold == expected | {"segment": first, "exit": first, "ahead": first, "verify": list(range(2, 8))}


def test_every_kind_is_a_pass_of_the_draft_or_of_the_target() -> None:
    assert {kind for kind, model in PASS_MODEL.items() if model == "draft"} == {"segment", "exit", "ahead", "draft_prefill"}
    assert {kind for kind, model in PASS_MODEL.items() if model == "target"} == {"verify", "round", "target_prefill"}
