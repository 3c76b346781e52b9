"""The second trace: what was said of a few tokens behind mistakes is told of all by ranks."""

from dataclasses import replace

import numpy as np
import pytest

from perfmodel.off_path import MIN_RECORDED, OffPath, nothing_off_path, stand_in
from perfmodel.policy import ExitPolicy, FixedLength, FloorStop
from perfmodel.replay import replay
from perfmodel.rounds import sum_rounds
from tests.strategies import TraceSpec, make_trace

NUM_EXITS = 4


def test_the_median_on_the_path_becomes_the_median_off_it() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random((3000, NUM_EXITS)).astype(np.float32)
    position = rng.choice(3000, 2000, replace=False).astype(np.int32)
    shrunk = confidence[position][rng.permutation(2000)] * np.array([1.0, 0.9, 0.5, 0.1], np.float32)
    mapped = stand_in(confidence, OffPath(position=position, confidence=shrunk))
    assert mapped is not None
    assert np.median(mapped, axis=0) == pytest.approx(np.median(shrunk, axis=0), rel=0.05)
    assert (np.argsort(mapped[:50], axis=0) == np.argsort(confidence[:50], axis=0)).all()  # ranks stay


def test_of_too_few_tokens_nothing_is_told() -> None:
    trace = make_trace(TraceSpec(num_positions=[50], num_off_path=MIN_RECORDED - 1))
    assert stand_in(trace.confidence, trace.off_path) is None
    assert len(nothing_off_path(NUM_EXITS)) == 0


def test_a_draft_that_is_lost_off_the_path_stops_sooner_and_leaves_deeper() -> None:
    trace = make_trace(TraceSpec(num_positions=[64] * 8, agreement=(0.3, 0.4, 0.5, 0.6)))
    rows = np.arange(len(trace.target_token), dtype=np.int32)
    lost = replace(trace, off_path=OffPath(position=rows, confidence=0.01 * trace.confidence))
    stops = ExitPolicy(exit_layers=(6,), thresholds=(), confidence="max-prob", length=FloorStop(draft_cap=8, floor=0.1))
    gated = ExitPolicy(exit_layers=(1, 6), thresholds=(0.3,), confidence="max-prob", length=FixedLength(draft_cap=8))
    for policy in (stops, gated):
        known, told = (sum_rounds(replay(one, policy)) for one in (trace, lost))
        assert (told.num_rounds, told.num_tokens, told.num_accepted) == (known.num_rounds, known.num_tokens, known.num_accepted)
        if policy is stops:
            assert told.num_drafted < known.num_drafted
        else:
            assert told.num_drafted == known.num_drafted
            assert told.exits_taken[-1] > known.exits_taken[-1]
