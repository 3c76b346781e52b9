"""Agreement that is left in an engine."""

from dataclasses import replace

import numpy as np
import pytest

from calibrate.engines.agreement import agreement_kept, thin_agreement
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.engines.engine_profile import EngineRun
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.replay.replay import replay
from profiler.engines.engine_request import Arm
from tests.calibrate.engines.simulate_engine import SimulatedEngine
from tests.calibrate.factories import make_trace, provenance

TRACE = make_trace()
POLICY = Policy(exits=(4,), tokens=5)


@pytest.mark.parametrize("kept_frac", [0.75, 0.9, 0.97])
def test_a_lost_share_is_found_from_the_rounds_of_the_engine(kept_frac: float) -> None:
    profile = SimulatedEngine().profile(thin_agreement(TRACE, kept_frac), (1, 4), (3, 8))
    found = agreement_kept(profile, TRACE)
    assert found == pytest.approx(kept_frac, abs=0.02)


def test_an_engine_with_the_rounds_of_the_replay_keeps_all_agreement() -> None:
    assert agreement_kept(SimulatedEngine().profile(TRACE, (1, 4), (3, 8)), TRACE) == 1.0


def test_other_prompts_or_no_counts_leave_it_unknown() -> None:
    other = replace(TRACE.header, prompts=tuple(replace(p, name=f"other-{p.name}") for p in TRACE.header.prompts))
    profile = SimulatedEngine().profile(replace(TRACE, header=other), (1, 4), (3,))
    assert agreement_kept(profile, TRACE) is None
    assert agreement_kept(SimulatedEngine(counts=False).profile(TRACE, (1, 4), (3,)), TRACE) is None


def test_thinning_is_repeatable_nested_and_keeps_the_text() -> None:
    thin, thinner = thin_agreement(TRACE, 0.9), thin_agreement(TRACE, 0.8)
    assert np.array_equal(thin.accept_prob, thin_agreement(TRACE, 0.9).accept_prob)
    assert (thinner.accept_prob <= thin.accept_prob).all()
    assert (thin.accept_prob <= TRACE.accept_prob).all()
    assert np.array_equal(thin.target_token, TRACE.target_token)
    assert thin.accept_prob.mean() / TRACE.accept_prob.mean() == pytest.approx(0.9, abs=0.03)
    assert replay(TRACE, POLICY).num_rounds < replay(thin, POLICY).num_rounds < replay(thinner, POLICY).num_rounds


def test_a_thinned_trace_is_a_trace(tmp_path) -> None:
    TRACE_FILE.write(tmp_path / "trace.npz", thin_agreement(TRACE, 0.8), provenance())
    assert replay(TRACE_FILE.read(tmp_path / "trace.npz").record, POLICY) == replay(thin_agreement(TRACE, 0.8), POLICY)


def test_under_the_ratio_test_every_probability_shrinks() -> None:
    ratio = replace(TRACE, header=replace(TRACE.header, sampling=Sampling(rule="ratio", temperature=1.0, seed=0)))
    assert thin_agreement(ratio, 0.9).accept_prob == pytest.approx(TRACE.accept_prob * np.float32(0.9))


def test_no_loss_changes_nothing() -> None:
    assert thin_agreement(TRACE, 1.0) is TRACE


def test_runs_count_by_how_little_their_prompts_scatter() -> None:
    """Exit 4 repeats the replay of a thinned trace; exit 1 has as many rounds as the replay of the whole one, but scattered."""
    profile = SimulatedEngine().profile(thin_agreement(TRACE, 0.9), (1, 4), (3, 8))
    plain_replay = {Arm.of(run): run for run in SimulatedEngine().profile(TRACE, (1, 4), (3, 8)).runs}
    runs = [_scattered(plain_replay[Arm.of(run)]) if run.exit_layer == 1 else run for run in profile.runs]
    found = agreement_kept(replace(profile, runs=tuple(runs)), TRACE)
    assert found == pytest.approx(0.9, abs=0.02)


def _scattered(run: EngineRun) -> EngineRun:
    """Prompts with a half, and with three halves of their rounds."""
    names = sorted({call.prompt for call in run.calls})
    factors = {name: (0.5, 1.5)[number % 2] for number, name in enumerate(names)}
    calls = [
        call if call.num_rounds is None else replace(call, num_rounds=round(call.num_rounds * factors[call.prompt]))
        for call in run.calls
    ]
    return replace(run, calls=tuple(calls))
