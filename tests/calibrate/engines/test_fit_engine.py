"""Fits of simulated engine profiles, whose truth is known."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.engines.agreement import thin_agreement
from calibrate.engines.fit_engine import fit_engine
from calibrate.engines.observations import observe
from calibrate.engines.predict import predict_in_engine
from perfmodel.core.errors import OutOfDomain, UserInputError
from perfmodel.engines.engine import RoundShape
from perfmodel.engines.engine_fit import EngineFit
from perfmodel.engines.engine_latency import engine_latencies
from perfmodel.engines.engine_profile import EngineCall, EngineProfile, EngineRun
from perfmodel.policies.policy import Policy
from tests.calibrate.engines.simulate_engine import SimulatedEngine, bent
from tests.calibrate.factories import make_trace

TRACE = make_trace()
EXITS, PROFILED_EXITS, LENGTHS = TRACE.header.exit_layers, (1, 4), (3, 8)
SHAPES = (
    RoundShape(),
    RoundShape(rereads_block=True),
    RoundShape(catches_up_apart=True),
    RoundShape(starts_with_block=True, drafts_past_limit=True),
)


def predicted(fit: EngineFit, exit_layer: int, tokens: int) -> float:
    """The speedup that a fit predicts on the trace."""
    return predict_in_engine(fit, TRACE, Policy(exits=(exit_layer,), tokens=tokens)).speedup.value


def errors(simulated: SimulatedEngine, fit: EngineFit, cells: Sequence[tuple[int, int]]) -> list[float]:
    """Relative errors of predicted speedups."""
    return [predicted(fit, *cell) / simulated.speedup(TRACE, *cell) - 1 for cell in cells]


def cells_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    return [(layer, tokens) for layer in EXITS for tokens in lengths]


def profile_of(simulated: SimulatedEngine, **changes: object) -> EngineProfile:
    return simulated.profile(TRACE, PROFILED_EXITS, LENGTHS, alone=EXITS, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_exit_is_predicted_at_and_between_the_profiled_lengths(shape: RoundShape) -> None:
    simulated = SimulatedEngine(shape=shape)
    fit = fit_engine(profile_of(simulated), TRACE, simulated.engine)
    assert max(map(abs, errors(simulated, fit, cells_of((3, 4, 5, 6, 7, 8))))) < 0.01


@given(
    shape=st.sampled_from(SHAPES),
    steps=st.lists(st.floats(0.0, 2.5), min_size=2, max_size=2),
    costs=st.tuples(*(st.floats(1e-5, 2e-4) for _ in range(3))),
    cold=st.floats(0.0, 2.0),
    has_timers=st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_any_curve_with_knots_at_the_profiled_lengths_is_recovered(
    shape: RoundShape, steps: list[float], costs: tuple[float, ...], cold: float, has_timers: bool
) -> None:
    """Rising verification curves, flat to as steep as one row each; a cold layer takes up to three times as long."""
    knots = np.cumsum([1.0, *(step + 0.02 for step in steps)])
    simulated = SimulatedEngine(
        shape=shape,
        verify_steps=lambda rows: float(np.interp(rows, (1, 4, 9), knots)),
        draft_pass_s=costs[0],
        draft_layer_s=costs[1],
        cold_layer_s=cold * costs[1],
        overhead_s=costs[2],
        timers=has_timers,
    )
    fit = fit_engine(profile_of(simulated), TRACE, simulated.engine)
    assert max(map(abs, errors(simulated, fit, cells_of((3, 5, 8))))) < 0.03


def test_noise_moves_predictions_less_than_the_stated_error() -> None:
    """Two sigma hold for at least nine predictions of ten."""
    misses = []
    for seed in range(12):
        simulated = SimulatedEngine(shape=SHAPES[seed % len(SHAPES)], noise_frac=0.05)
        fit = fit_engine(profile_of(simulated, seed=seed), TRACE, simulated.engine)
        misses += [abs(error) > 2 * fit.error_frac for error in errors(simulated, fit, cells_of((3, 5, 8)))]
    assert sum(misses) <= len(misses) / 10


def test_a_bent_curve_is_kept_as_measured() -> None:
    """Four rows of q8_0 cost 4.2 single rows, and more rows hardly more: no line fits that."""
    simulated = SimulatedEngine(verify_steps=lambda rows: float(np.interp(rows, (1, 4, 9), (1.0, 4.2, 4.6))), timers=True)
    fit = fit_engine(profile_of(simulated), TRACE, simulated.engine)
    assert [point.rows for point in fit.verify] == [1, 4, 9]
    assert [point.seconds / fit.plain_s for point in fit.verify] == pytest.approx([1.0, 4.2, 4.6], rel=0.03)


def test_timers_separate_draft_verification_and_overhead() -> None:
    simulated = SimulatedEngine(timers=True)
    fit = fit_engine(profile_of(simulated), TRACE, simulated.engine)
    assert fit.overhead_s == pytest.approx(simulated.overhead_s, rel=0.1)
    assert fit.draft_pass_s == pytest.approx(simulated.draft_pass_s, rel=0.05)
    assert fit.draft_layer_s == pytest.approx(simulated.draft_layer_s, rel=0.05)
    for run in fit.runs:
        assert run.draft_s == pytest.approx(run.fitted_draft_s, rel=0.05)


def test_seconds_of_a_disturbed_minute_cancel_in_the_speedup() -> None:
    """All configurations of a prompt are slower together, as the machine drifts."""
    simulated = SimulatedEngine()
    profile = profile_of(simulated)
    runs = tuple(
        replace(run, calls=tuple(replace(call, decode_s=call.decode_s * (1 + number)) for number, call in enumerate(run.calls)))
        for run in profile.runs
    )
    fit = fit_engine(replace(profile, runs=runs), TRACE, simulated.engine)
    assert max(map(abs, errors(simulated, fit, cells_of(LENGTHS)))) < 0.05


def test_rounds_come_from_accepted_tokens_or_from_replay_if_the_engine_does_not_count_them() -> None:
    simulated = SimulatedEngine(shape=RoundShape(rereads_block=True))
    counted = profile_of(simulated)
    runs = tuple(replace(run, calls=tuple(replace(call, num_rounds=None) for call in run.calls)) for run in counted.runs)
    accepted_only = observe(replace(counted, runs=runs), None)
    for run, other in zip(observe(counted, None).runs, accepted_only.runs, strict=True):
        assert run.num_rounds == other.num_rounds
    uncounted = profile_of(replace(simulated, counts=False))
    fit = fit_engine(uncounted, TRACE, simulated.engine)
    assert median(map(abs, errors(simulated, fit, cells_of((3, 5, 8))))) < 0.02
    with pytest.raises(UserInputError, match="reports neither rounds nor accepted tokens, and no trace"):
        fit_engine(uncounted, None, simulated.engine)


def test_one_exit_at_one_length_predicts_itself_and_no_other_exit() -> None:
    simulated = SimulatedEngine()
    profile = simulated.profile(TRACE, (4,), (3,))
    fit = fit_engine(profile, TRACE, simulated.engine)
    assert abs(errors(simulated, fit, [(4, 3)])[0]) < 0.01
    assert engine_latencies(fit, 4, 6, context_tokens=104)[0].level == "extrapolated"
    with pytest.raises(OutOfDomain, match="Profile two exits or more"):
        predicted(fit, 2, 3)
    with pytest.raises(OutOfDomain, match="Profile longer drafts"):
        predicted(fit, 4, 12)


def test_one_exit_in_rounds_and_all_alone_predict_the_others_roughly() -> None:
    simulated = SimulatedEngine(cold_layer_s=0.0)
    fit = fit_engine(simulated.profile(TRACE, (4,), LENGTHS, alone=EXITS), TRACE, simulated.engine)
    assert max(map(abs, errors(simulated, fit, cells_of(LENGTHS)))) < 0.05


def test_lost_agreement_is_part_of_a_prediction_on_any_prompts() -> None:
    simulated, kept_frac = SimulatedEngine(), 0.85
    lossy = thin_agreement(TRACE, kept_frac)
    fit = fit_engine(simulated.profile(lossy, PROFILED_EXITS, LENGTHS), TRACE, simulated.engine)
    policy = Policy(exits=(4,), tokens=5)
    found = predict_in_engine(fit, TRACE, policy).speedup.value
    assert found == pytest.approx(simulated.speedup(lossy, 4, 5), rel=0.03)
    assert found < 0.97 * simulated.speedup(TRACE, 4, 5)
    assert predict_in_engine(fit, TRACE, None).speedup.value == 1.0


def test_a_profile_without_a_draft_is_refused() -> None:
    simulated = SimulatedEngine()
    profile = simulated.profile(TRACE, (), (), alone=(1, 4))
    with pytest.raises(UserInputError, match="holds no run with a draft of fixed length: expected at least one exit"):
        fit_engine(profile, TRACE, simulated.engine)


def test_each_run_is_compared_with_the_plain_calls_of_its_own_visits() -> None:
    """Every second configuration ran in another group, when the whole machine was half as fast."""
    simulated = SimulatedEngine()
    profile = profile_of(simulated)

    def ran(run: EngineRun, group: int) -> tuple[EngineCall, ...]:
        return tuple(
            replace(call, visit=2 * number + group, decode_s=(1 + group) * call.decode_s)
            for number, call in enumerate(run.calls)
        )

    plain, *others = profile.runs
    runs = [replace(plain, calls=(*ran(plain, 0), *ran(plain, 1)))]
    runs += [replace(run, calls=ran(run, number % 2)) for number, run in enumerate(others)]
    fit = fit_engine(replace(profile, runs=tuple(runs)), TRACE, simulated.engine)
    assert max(map(abs, errors(simulated, fit, cells_of(LENGTHS)))) < 0.01


def test_disturbed_calls_are_left_out() -> None:
    simulated = SimulatedEngine()
    profile = profile_of(simulated)
    runs = tuple(
        replace(
            run,
            calls=tuple(
                replace(call, decode_s=3 * call.decode_s, waited_frac=0.5) if number % 2 else call
                for number, call in enumerate(run.calls)
            ),
        )
        for run in profile.runs
    )
    disturbed = fit_engine(replace(profile, runs=runs), TRACE, simulated.engine)
    assert max(map(abs, errors(simulated, disturbed, cells_of(LENGTHS)))) < 0.01


def test_the_simulated_curve_is_bent() -> None:
    assert bent(2) - bent(1) < bent(4) - bent(3)
