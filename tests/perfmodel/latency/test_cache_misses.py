"""Extra seconds of the first passes of a round are separated from the seconds of their width."""

import numpy as np
import pytest

from perfmodel.latency.cache_misses import cold_extras
from perfmodel.latency.latency_model import MeasuredLatency
from perfmodel.passes.passes import COLD_PLACES, PassKind, PassSamples, places
from tests.perfmodel.latency.test_latency_model import profile_of

EXTRAS_S = (50e-6, 20e-6, 5e-6)
Pass = tuple[PassKind, int, int]


def samples_of(rounds: list[list[Pass]], *, noise_s: float = 0.0) -> PassSamples:
    """Passes of 100 µs a row plus the extra of their place, scaled by the stage."""
    rng = np.random.default_rng(5)
    passes = [drafted for round_passes in rounds for drafted in (*round_passes, ("round", 0, 0))]
    kind, stage, rows = zip(*passes, strict=True)
    place = tuple(places(zip(kind, stage, strict=True)))
    seconds = []
    for (pass_kind, at, width), number in zip(passes, place, strict=True):
        is_drafts = pass_kind in ("segment", "exit")
        extra = EXTRAS_S[number - 1] if is_drafts and number <= COLD_PLACES else 0.0
        seconds.append((1 + at) * (1e-4 * max(width, 1) + extra) + noise_s * abs(rng.standard_normal()))
    return PassSamples(kind=kind, stage=stage, rows=rows, cached_tokens=(0,) * len(rows), place=place, seconds=tuple(seconds))


def block(length: int, *, first_rows: int = 1) -> list[Pass]:
    return [("segment", 0, first_rows if i == 0 else 1) for i in range(length)]


def test_places_count_the_passes_of_a_round_with_the_same_weights() -> None:
    passes = [("target_prefill", 0), ("segment", 0), ("exit", 0), ("segment", 1), ("exit", 1), ("segment", 0), ("exit", 0)]
    passes += [("verify", 0), ("round", 0), ("segment", 0), ("exit", 0), ("verify", 0), ("round", 0), ("verify", 0)]
    assert list(places(passes)) == [1, 1, 1, 1, 2, 2, 3, 2, 1, 1, 1, 1, 1, 0]


def test_extras_do_not_depend_on_the_widths_of_the_first_passes() -> None:
    rounds = [block(2 + number % 5, first_rows=1 + number % 2) for number in range(60)]
    assert cold_extras(samples_of(rounds)) == {("segment", 0): pytest.approx(dict(enumerate(EXTRAS_S, 1)))}


def test_each_segment_has_its_own_extras_and_all_exits_share_theirs() -> None:
    token: list[Pass] = [("segment", 0, 1), ("exit", 0, 1), ("segment", 1, 1), ("exit", 0, 1)]
    extras = cold_extras(samples_of([token * 3] * 30))
    assert extras["segment", 0] == pytest.approx({1: EXTRAS_S[0] - EXTRAS_S[2], 2: EXTRAS_S[1] - EXTRAS_S[2], 3: 0.0}, abs=1e-9)
    assert extras["segment", 1] == pytest.approx({place: 2 * extra for place, extra in extras["segment", 0].items()})
    assert set(extras) == {("segment", 0), ("segment", 1), ("exit", 0)}


def test_extras_are_never_negative() -> None:
    kind: tuple[PassKind, ...] = ("segment",) * 5
    samples = PassSamples(
        kind=kind,
        stage=(0,) * 5,
        rows=(1,) * 5,
        cached_tokens=(0,) * 5,
        place=(1, 2, 3, 4, 5),
        seconds=(1.0, 2.0, 3.0, 4.0, 4.0),
    )
    extras = cold_extras(samples)["segment", 0]
    assert extras[1] == extras[2] == 0.0
    assert extras[3] >= 0.0


def test_a_place_measured_at_no_other_width_has_no_extra() -> None:
    rounds = [[("segment", 0, 3)]] * 20
    assert cold_extras(samples_of(rounds)) == {("segment", 0): {1: 0.0}}


def test_a_verification_takes_longer_the_more_segments_ran_before_it() -> None:
    passes: list[tuple[PassKind, int, int, float]] = []
    for number in range(60):
        depth, rows = 1 + number % 3, 2 + number % 4
        passes += [("segment", stage, 1, 1e-4) for stage in range(depth)]
        passes += [("verify", 0, rows, 1e-3 * rows + 1e-4 * (depth - 1)), ("round", 0, rows - 1, 1e-5)]
    kind, stage, rows_of, seconds = zip(*passes, strict=True)
    place = tuple(places(zip(kind, stage, strict=True)))
    samples = PassSamples(kind=kind, stage=stage, rows=rows_of, cached_tokens=(0,) * len(kind), place=place, seconds=seconds)
    assert cold_extras(samples)["verify", 0] == pytest.approx({2: 1e-4, 3: 2e-4})


def test_a_measured_model_prices_warm_passes_and_extras_separately() -> None:
    samples = samples_of([block(6, first_rows=1 + number % 2) for number in range(60)], noise_s=1e-7)
    latency = MeasuredLatency(profile_of(samples))
    for rows in (1, 2):
        assert latency.line("segment", 0, rows).base_s == pytest.approx(rows * 1e-4, rel=0.01)
    assert [latency.cold_s("segment", 0, place) for place in (1, 2, 3, 4)] == pytest.approx([*EXTRAS_S, 0.0], rel=0.05)
    assert latency.cold_s("segment", 1, 1) == latency.cold_s("verify", 0, 1) == 0.0
