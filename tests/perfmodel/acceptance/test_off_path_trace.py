"""The second trace: what was said of a few tokens behind mistakes is told of all by ranks."""

from dataclasses import replace

import numpy as np
import pytest

from perfmodel.acceptance.off_path_trace import MIN_RECORDED, OffPath, nothing_off_path, stand_in
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.replay.replay import replay
from tests.strategies import TraceSpec, make_trace

NUM_EXITS = 4


def test_the_median_on_the_path_becomes_the_median_off_it() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random((3000, NUM_EXITS)).astype(np.float32)
    position = rng.choice(3000, 2000, replace=False).astype(np.int32)
    shrunk = confidence[position][rng.permutation(2000)] * np.array([1.0, 0.9, 0.5, 0.1], np.float32)
    mapped = stand_in(confidence, OffPath(position=position, exit=np.full(2000, NUM_EXITS - 1), confidence=shrunk))
    assert mapped is not None
    assert np.median(mapped, axis=0) == pytest.approx(np.median(shrunk, axis=0), rel=0.05)
    assert (np.argsort(mapped[:50], axis=0) == np.argsort(confidence[:50], axis=0)).all()  # ranks stay


def test_of_too_few_tokens_nothing_is_told() -> None:
    trace = make_trace(TraceSpec(num_positions=[50], num_off_path=MIN_RECORDED))
    deepest, others = (replace(trace.off_path, exit=np.full(MIN_RECORDED, number)) for number in (NUM_EXITS - 1, 0))
    assert stand_in(trace.confidence, deepest) is not None
    assert stand_in(trace.confidence, others) is None
    assert stand_in(trace.confidence, deepest.taken(np.arange(40), 50)) is None
    assert len(nothing_off_path(NUM_EXITS)) == 0


def test_an_exit_is_asked_about_the_text_of_its_own_and_of_deeper_exits() -> None:
    confidence = np.random.default_rng(0).random((900, 2)).astype(np.float32)
    said = confidence.copy()
    said[:450] *= 0.1
    off_path = OffPath(position=np.arange(900), exit=np.repeat([0, 1], 450), confidence=said)
    mapped = stand_in(confidence, off_path)
    assert mapped is not None
    assert mapped[:, 1] == pytest.approx(confidence[:, 1], abs=0.05)
    assert np.median(mapped[:, 0]) < 0.7 * np.median(confidence[:, 0])


def test_a_draft_that_is_lost_off_the_path_stops_sooner_and_leaves_deeper() -> None:
    trace = make_trace(TraceSpec(num_positions=[64] * 8, agreement=(0.3, 0.4, 0.5, 0.6)))
    rows = np.arange(len(trace.target_token), dtype=np.int32)
    lost = replace(trace, off_path=OffPath(position=rows, exit=np.full(len(rows), 3), confidence=0.01 * trace.confidence))
    stops = Policy(exits=(6,), tokens=8, stop=ConfidenceFloor(floor=0.1))
    gated = Policy(exits=(1, 6), thresholds=(0.3,), tokens=8)
    for policy in (stops, gated):
        known, told = (replay(one, policy) for one in (trace, lost))
        assert (told.num_rounds, told.num_tokens, told.num_accepted) == (known.num_rounds, known.num_tokens, known.num_accepted)
        if policy is stops:
            assert told.num_drafted < known.num_drafted
        else:
            assert told.num_drafted == known.num_drafted
            assert told.exits_taken[-1] > known.exits_taken[-1]
