"""Confidences off the path: a few recorded tokens stand for all by rank."""

from dataclasses import replace

import numpy as np
import pytest

from perfmodel.acceptance.off_path_trace import MIN_RECORDED, OffPath, off_path_confidence
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.replay.replay import replay
from tests.strategies import TraceSpec, make_trace

NUM_EXITS = 4


def test_the_median_on_the_path_becomes_the_median_off_it() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random((3000, NUM_EXITS)).astype(np.float32)
    position = rng.choice(3000, 2000, replace=False).astype(np.int32)
    shrunk = confidence[position][rng.permutation(2000)] * np.array([1.0, 0.9, 0.5, 0.1], np.float32)
    mapped = off_path_confidence(confidence, OffPath(position=position, exit=np.full(2000, NUM_EXITS - 1), confidence=shrunk))
    assert mapped is not None
    assert np.median(mapped, axis=0) == pytest.approx(np.median(shrunk, axis=0), rel=0.05)
    assert (np.argsort(mapped[:50], axis=0) == np.argsort(confidence[:50], axis=0)).all()  # ranks stay


def test_too_few_recorded_tokens_are_not_used() -> None:
    trace = make_trace(TraceSpec(num_positions=[50], num_off_path=MIN_RECORDED))
    deepest, others = (replace(trace.off_path, exit=np.full(MIN_RECORDED, number)) for number in (NUM_EXITS - 1, 0))
    assert off_path_confidence(trace.confidence, deepest) is not None
    assert off_path_confidence(trace.confidence, others) is None
    assert off_path_confidence(trace.confidence, deepest.select(np.arange(40), 50)) is None
    assert len(OffPath.empty(NUM_EXITS)) == 0


def test_an_exit_uses_the_tokens_that_it_drafted_or_a_deeper_exit_drafted() -> None:
    confidence = np.random.default_rng(0).random((900, 2)).astype(np.float32)
    recorded = confidence.copy()
    recorded[:450] *= 0.1
    off_path = OffPath(position=np.arange(900), exit=np.repeat([0, 1], 450), confidence=recorded)
    mapped = off_path_confidence(confidence, off_path)
    assert mapped is not None
    assert mapped[:, 1] == pytest.approx(confidence[:, 1], abs=0.05)
    assert np.median(mapped[:, 0]) < 0.7 * np.median(confidence[:, 0])


def test_lower_confidence_off_the_path_makes_blocks_shorter_and_exits_deeper() -> None:
    trace = make_trace(TraceSpec(num_positions=[64] * 8, agreement=(0.3, 0.4, 0.5, 0.6)))
    rows = np.arange(len(trace.target_token), dtype=np.int32)
    lost = replace(trace, off_path=OffPath(position=rows, exit=np.full(len(rows), 3), confidence=0.01 * trace.confidence))
    stops = Policy(exits=(6,), tokens=8, stop=ConfidenceFloor(floor=0.1))
    gated = Policy(exits=(1, 6), thresholds=(0.3,), tokens=8)
    for policy in (stops, gated):
        on_path, off_path = (replay(each, policy) for each in (trace, lost))
        assert (off_path.num_rounds, off_path.num_tokens, off_path.num_accepted) == (
            on_path.num_rounds,
            on_path.num_tokens,
            on_path.num_accepted,
        )
        if policy is stops:
            assert off_path.num_drafted < on_path.num_drafted
        else:
            assert off_path.num_drafted == on_path.num_drafted
            assert off_path.exits_taken[-1] > on_path.exits_taken[-1]
