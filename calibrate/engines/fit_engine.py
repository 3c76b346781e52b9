"""Fit the seconds of an engine's passes to its profile.

Weighted least squares of the formula of `perfmodel.engines.engine_fit`, in steps of plain decoding:

    T(e, K) = V(K + 1) + n (a + b e + d_e) + c e

V has one free value for each profiled length, so that curves may be bent. Adding the same slope to V and taking it from `a`
changes no prediction between profiled lengths. The exits decoded alone fix this slope weakly, because alone a draft finds its
weights in the caches; the engine's own timers fix it well where it has them. Weak priors keep a profile of one exit or one
length solvable: what it does not determine, it predicts with a large error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from calibrate.engines.agreement import agreement_kept
from calibrate.engines.observations import Observation, Observations, observe
from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Floats, Frac
from perfmodel.engines.engine import Engine, RoundShape
from perfmodel.engines.engine_fit import EngineFit, FittedRun, VerifyPoint
from perfmodel.engines.engine_profile import EngineProfile
from perfmodel.engines.find_engine import find_engine
from perfmodel.hardware.kernel_efficiency import WIDEST_ERROR_FRAC

MISFIT_FRAC: Frac = 0.015
"""Assumed standard deviation of a run from the formula, beside its noise."""
MODEL_ERROR_FRAC: Frac = 0.05
"""Smallest error of a predicted speedup: that of four measured engines, at exits that were not profiled (docs/log.md)."""
ALONE_ERROR_FRAC: Frac = 0.3
"""A draft pass decoded alone against one in a round: 0.091 ms and 0.135 ms for exit 4 in ONNX Runtime GenAI."""
SLOPE_ERROR_FRAC: Frac = 0.25
"""The same of the seconds that a layer adds."""
COLD_LAYERS = 2.0
"""Prior of the cold seconds of a layer, in a layer's share of a draft pass."""
TIMER_ERROR_FRAC: Frac = 0.05
EXIT_ERROR_FRAC: Frac = 0.03
"""Prior of what an exit takes beyond a line in its layers."""
VERIFY_PRIOR = (1.5, 3.0)
"""Mean and standard deviation of a verification in plain steps, where a profile does not determine it."""
_NUM_ITERATIONS = 30
"""For passes in which the draft reads a block, whose seconds depend on the verification's."""
_SMALLEST_VERIFY = 0.05


def fit_engine(profile: EngineProfile, trace: Trace | None, engine: Engine | None = None) -> EngineFit:
    """Seconds of the passes of an engine.

    Args:
        profile: plain decoding, and at least one exit at one fixed length; better two exits at two or three lengths, and each
            exit decoded alone.
        trace: acceptance of the profile's prompts, which shows how much of its agreement is left in the engine. None: unknown.
        engine: the row of the engine, whose rounds have a shape. None: the row that the profile names.

    Raises:
        UnknownName: the table has no such engine.
        UserInputError: no run drafts at a fixed length, or the rounds of a run are unknown.
    """
    observed, shape = observe(profile, trace), (engine or find_engine(profile.setting.engine)).round_shape
    if not observed.runs:
        raise UserInputError(
            f"the profile of {profile.setting.label} holds no run with a draft of fixed length: expected at least one exit at "
            "one length. Profile again: s2d-profile engine."
        )
    solved = _Solution(observed, shape)
    step_s, overhead = observed.plain_s, solved.overhead_steps
    knots = [VerifyPoint(rows=1, seconds=step_s)]
    for rows, steps in zip(solved.rows, solved.verify_steps, strict=True):
        knots.append(VerifyPoint(rows=rows, seconds=max(_SMALLEST_VERIFY, steps - overhead) * step_s))
    exit_layers = profile.draft.exit_layers
    return EngineFit(
        setting=profile.setting,
        exit_layers=exit_layers,
        round_shape=shape,
        verify=tuple(knots),
        overhead_s=overhead * step_s,
        draft_pass_s=solved.pass_steps * step_s,
        draft_layer_s=solved.layer_steps * step_s,
        cold_layer_s=solved.cold_steps * step_s,
        exit_extra_s=tuple(solved.extra_steps.get(layer, 0.0) * step_s for layer in exit_layers),
        profiled_exits=solved.exits,
        timed_exits=tuple(sorted({*solved.exits, *observed.alone_steps})),
        context_tokens=max(call.prompt_tokens + call.num_tokens for run in profile.runs for call in run.calls),
        agreement_kept_frac=None if trace is None else agreement_kept(profile, trace),
        error_frac=min(WIDEST_ERROR_FRAC, math.hypot(MODEL_ERROR_FRAC, solved.misfit_frac, observed.noise_frac)),
        noise_frac=observed.noise_frac,
        runs=tuple(_fitted_run(run, solved, step_s) for run in observed.runs),
    )


def _fitted_run(run: Observation, solved: _Solution, step_s: float) -> FittedRun:
    return FittedRun(
        exit_layer=run.exit_layer,
        draft_tokens=run.draft_tokens,
        num_rounds=run.num_rounds,
        tokens_per_round=run.tokens_per_round,
        round_s=run.round_steps * step_s,
        fitted_round_s=solved.round_steps(run) * step_s,
        draft_s=None if run.draft_steps is None else run.draft_steps * step_s,
        fitted_draft_s=solved.draft_steps(run) * step_s,
    )


@dataclass(frozen=True, slots=True)
class _Equation:
    """One row of the least squares: coefficients, value, and standard deviation."""

    coefficients: Floats  # [unknowns]
    value: float
    error: float


class _Solution:
    """The least-squares solution of a profile's observations.

    Unknowns, in order: V at each profiled length, a, b, c, and d of each exit that drafted.
    """

    def __init__(self, observed: Observations, shape: RoundShape) -> None:
        self.observed, self.shape = observed, shape
        self.rows = tuple(sorted({run.draft_tokens + 1 for run in observed.runs}))
        self.exits = tuple(sorted({run.exit_layer for run in observed.runs}))
        self.num_unknowns = len(self.rows) + 3 + len(self.exits)
        self.values: Floats = np.ones(self.num_unknowns)
        for _ in range(_NUM_ITERATIONS if shape.rereads_block or shape.starts_with_block else 1):
            self.values, self.leverage = _solve(list(self._equations()), self._bounded)
        self._num_free = float(np.sum(self.leverage[: len(observed.runs)]))

    @property
    def verify_steps(self) -> list[float]:
        """V at each of `rows`, the overhead of a round included."""
        steps: list[float] = self.values[: len(self.rows)].tolist()
        return steps

    @property
    def pass_steps(self) -> float:
        """`a`."""
        return float(self.values[len(self.rows)])

    @property
    def layer_steps(self) -> float:
        """`b`."""
        return float(self.values[len(self.rows) + 1])

    @property
    def cold_steps(self) -> float:
        """`c`."""
        return float(self.values[len(self.rows) + 2])

    @property
    def extra_steps(self) -> dict[int, float]:
        """`d` by exit."""
        return dict(zip(self.exits, self.values[len(self.rows) + 3 :].tolist(), strict=True))

    @property
    def _bounded(self) -> range:
        """Unknowns that are not negative: a, b and c."""
        return range(len(self.rows), len(self.rows) + 3)

    @property
    def misfit_frac(self) -> Frac:
        """Root mean square of the runs' relative residuals, for the number of unknowns that they determine."""
        residuals = [self.round_steps(run) / run.round_steps - 1 for run in self.observed.runs]
        return math.sqrt(math.fsum(residual**2 for residual in residuals) / max(1.0, len(residuals) - self._num_free))

    @property
    def overhead_steps(self) -> float:
        """What the engine's timers leave of a round, neither draft nor target; 0 if it has no timers."""
        rest = [
            run.round_steps - run.draft_steps - run.verify_steps
            for run in self.observed.runs
            if run.draft_steps is not None and run.verify_steps is not None
        ]
        return max(0.0, median(rest)) if len(rest) == len(self.observed.runs) else 0.0

    def round_steps(self, run: Observation) -> float:
        """The fitted seconds of a run's mean round."""
        value, coefficients = self._round(run)
        return value + float(coefficients @ self.values)

    def draft_steps(self, run: Observation) -> float:
        """The fitted seconds of the draft in it."""
        return float(self._draft(run) @ self.values)

    def _equations(self) -> Iterator[_Equation]:
        """One equation a run first, then one for each timer, and the priors."""
        for run in self.observed.runs:
            known, coefficients = self._round(run)
            error = math.hypot(run.noise_frac, MISFIT_FRAC) * run.round_steps
            yield _Equation(coefficients, run.round_steps - known, error)
        for run in self.observed.runs:
            if run.draft_steps is not None:
                yield _Equation(self._draft(run), run.draft_steps, TIMER_ERROR_FRAC * run.draft_steps)
        yield from self._priors()

    def _priors(self) -> Iterator[_Equation]:
        alone = self.observed.alone_steps
        typical = fmean(alone.values()) if alone else 0.5
        mean, error = VERIFY_PRIOR
        for number in range(len(self.rows)):
            yield _Equation(self._unit(number), mean, error)
        for layer, steps in alone.items():
            yield _Equation(self._pass(layer, 1.0), steps, ALONE_ERROR_FRAC * steps)
        slope = _slope(alone)
        per_layer = typical / fmean(alone or self.exits)
        if slope is not None:
            yield _Equation(self._unit(len(self.rows) + 1), slope, SLOPE_ERROR_FRAC * slope)
        else:
            yield _Equation(self._unit(len(self.rows)), 0.0, typical)
            yield _Equation(self._unit(len(self.rows) + 1), per_layer, per_layer)
        yield _Equation(self._unit(len(self.rows) + 2), 0.0, COLD_LAYERS * per_layer)
        for number, layer in enumerate(self.exits):
            steps = alone.get(layer, typical)
            yield _Equation(self._unit(len(self.rows) + 3 + number), 0.0, EXIT_ERROR_FRAC * steps)

    def _unit(self, unknown: int) -> Floats:
        coefficients: Floats = np.zeros(self.num_unknowns)
        coefficients[unknown] = 1.0
        return coefficients

    def _round(self, run: Observation) -> tuple[float, Floats]:
        """A run's round: its known part, which is the share of a step of plain decoding, and the coefficients of the rest."""
        known, weights = _hat_weights((1, *self.rows), run.drafted_per_round + 1)
        coefficients = self._draft(run)
        coefficients[: len(self.rows)] += weights
        return known, coefficients

    def _draft(self, run: Observation) -> Floats:
        """Coefficients of the draft in a run's round."""
        num_passes, wide_passes = run.drafted_per_round, 0.0
        if self.shape.rereads_block:
            num_passes += self._wide_pass(run.drafted_per_round + 1)
        elif self.shape.starts_with_block:
            wide_passes = self._wide_pass(run.drafted_per_round + 2) - 1
        elif self.shape.catches_up_apart:
            num_passes += run.full_frac
        coefficients = self._pass(run.exit_layer, num_passes)
        coefficients[len(self.rows) + 1] += wide_passes * run.exit_layer
        coefficients[len(self.rows) + 2] = run.exit_layer
        return coefficients

    def _wide_pass(self, rows: float) -> float:
        """Seconds of a draft pass of several rows over those of one row: the same as in the target, as last solved."""
        knots, steps = [1, *self.rows], [1.0, *self.verify_steps]
        if rows > knots[-1]:
            slope = (steps[-1] - steps[-2]) / (knots[-1] - knots[-2])
            return steps[-1] + max(0.0, slope) * (rows - knots[-1])
        return float(np.interp(rows, knots, steps))

    def _pass(self, exit_layer: int, num_passes: float) -> Floats:
        """Coefficients of some draft passes of one row."""
        coefficients: Floats = np.zeros(self.num_unknowns)
        first = len(self.rows)
        coefficients[first : first + 2] = num_passes, num_passes * exit_layer
        if exit_layer in self.exits:
            coefficients[first + 3 + self.exits.index(exit_layer)] = num_passes
        return coefficients


def _hat_weights(knots: Sequence[int], rows: float) -> tuple[float, Floats]:
    """Weights of linear interpolation between knots: of the first one, and of the others."""
    weights = np.array([np.interp(rows, knots, np.eye(len(knots))[number]) for number in range(len(knots))])
    return float(weights[0]), weights[1:]


def _slope(alone: Mapping[int, float]) -> float | None:
    """Seconds that a layer adds to an exit decoded alone; None with one exit, or if deeper exits take no longer."""
    if len(alone) < 2:
        return None
    slope = float(np.polyfit(list(alone), list(alone.values()), 1)[0])
    return slope if slope > 0 else None


def _solve(equations: Sequence[_Equation], bounded: range) -> tuple[Floats, Floats]:
    """Weighted least squares in which some unknowns are not negative, and the leverage of each equation.

    An unknown that comes out negative is set to 0, the most negative first.
    """
    matrix = np.array([equation.coefficients / equation.error for equation in equations])
    values = np.array([equation.value / equation.error for equation in equations])
    free = np.ones(matrix.shape[1], np.bool_)
    while True:
        solution = np.zeros(matrix.shape[1])
        solution[free] = np.linalg.lstsq(matrix[:, free], values, rcond=None)[0]
        lowest = min(bounded, key=lambda unknown: solution[unknown])
        if solution[lowest] >= 0:
            break
        free[lowest] = False
    projected = matrix[:, free] @ np.linalg.pinv(matrix[:, free])
    return solution, np.diag(projected)
