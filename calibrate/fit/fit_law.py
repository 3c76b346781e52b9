"""Fit the latency law to observations, with standard errors and held-out errors.

Errors are relative: a draft's segment counts as much as a target's verify pass. The loss is robust (soft L1): an interrupted
pass hardly changes the fit. Leaving out each model in turn gives the error on a model that the law was not fitted to.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.core.errors import UserInputError
from perfmodel.core.stats import INTERVAL_FRAC
from perfmodel.core.units import Frac, Seconds
from perfmodel.passes.flops_bytes import PassWork
from perfmodel.passes.latency_law import Law

Array: TypeAlias = NDArray[np.float64]

_TIED_TERMS = {"head_byte_s": "weight_byte_s", "head_flop_s": "flop_s"}
"""Terms set equal to another term: unquantised weights have the same rates in layers and head."""
LAW_TERMS: tuple[str, ...] = tuple(field.name for field in fields(Law) if field.name not in _TIED_TERMS)
_ROW_TERMS = {"row_layer_s", "many_rows_layer_s", "many_rows_byte_s", "flop_s", "attn_flop_s"}
"""Terms that can be identified only from passes with different numbers of rows."""
CACHE_TERM = "cache_bytes"
TOLERANCE, START_TOLERANCE = 1e-8, 1e-3
"""Relative change of the loss at which a fit stops, and at which the search for its start stops."""
CACHE_STARTS = (0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.2, 0.4)
"""Cache sizes to start from, as shares of the largest model."""
MIN_SIZE_RATIO = 4
"""Smallest ratio of model sizes at which memory beyond the caches can be distinguished from the caches."""
ROBUST_SCALE: Frac = 0.05
"""Relative error above which the loss of an observation grows linearly instead of quadratically."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The work and the undisturbed time of passes with one shape."""

    group: str
    """Observations that are left out together: the model's name."""
    work: PassWork
    cached_tokens: float
    max_cached_tokens: int
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedLaw:
    """A law, its standard errors, and its mean absolute relative error on the fitted observations."""

    law: Law
    standard_error: Law
    residual_frac: Frac


def fit_law(
    observations: Sequence[Observation],
    *,
    launch_bound: bool,
    allowed_terms: Collection[str] = LAW_TERMS,
    start_law: Law | None = None,
) -> FittedLaw:
    """Fit the law to observations; terms that no observation depends on stay 0.

    Far from the true cache size the gradient of the cache term vanishes, so the search starts from several sizes.

    Args:
        observations: the passes to fit.
        launch_bound: whether launches can take longer than kernels (a GPU without graphs). Otherwise that term is 0.
        allowed_terms: the terms that may differ from 0.
        start_law: the only start of the search, if given.

    Raises:
        UserInputError: there are fewer observations than terms.
    """
    measured = np.array([observation.seconds for observation in observations])
    scales = _scales(observations, measured, launch_bound=launch_bound)
    terms = [term for term in scales if term in allowed_terms]
    if len(observations) < len(terms) or not terms:
        raise UserInputError(
            f"a latency fit of {len(terms)} terms needs at least as many different passes, got {len(observations)}. "
            "Profile more shapes with s2d-profile law."
        )
    scale = np.array([scales[term] for term in terms])
    is_free = np.array([term != CACHE_TERM for term in terms])
    works = _WorkTable(observations)

    def errors(values: Array) -> Array:
        ratios: Array = works.seconds(_law(terms, values * scale)) / measured
        return ratios - 1

    if start_law is None:
        candidates = [_minimise(errors, start, is_free, tolerance=START_TOLERANCE) for start in _starts(terms)]
        start = min(candidates, key=lambda candidate: candidate.cost).x
    else:
        start = np.array([getattr(start_law, term) for term in terms]) / scale
    best = _minimise(errors, start, np.full(len(terms), True), tolerance=TOLERANCE)
    return FittedLaw(
        law=_law(terms, best.x * scale),
        standard_error=_law(terms, _standard_errors(best.jac, errors(best.x)) * scale),
        residual_frac=float(np.mean(np.abs(errors(best.x)))),
    )


def _starts(terms: Sequence[str]) -> Iterator[Array]:
    """Starts of the search: half of each term's scale, combined with each cache size."""
    for share in CACHE_STARTS if CACHE_TERM in terms else (0.0,):
        yield np.array([share if term == CACHE_TERM else 0.5 for term in terms])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Minimum:
    """A minimum of the robust loss."""

    x: Array
    cost: float
    jac: Array


def _minimise(errors: Callable[[Array], Array], start: Array, is_free: NDArray[np.bool_], *, tolerance: float) -> _Minimum:
    """Minimise the robust loss over the free values up to a relative tolerance; the other values stay fixed."""
    from scipy.optimize import least_squares

    def with_fixed(free: Array) -> Array:
        values = start.copy()
        values[is_free] = free
        return values

    result = least_squares(
        lambda free: errors(with_fixed(free)),
        start[is_free],
        bounds=(0, np.inf),
        loss="soft_l1",
        f_scale=ROBUST_SCALE,
        x_scale="jac",
        ftol=tolerance,
    )
    return _Minimum(x=with_fixed(result.x), cost=float(result.cost), jac=result.jac)


class _WorkTable:
    """The distinct works of observations; a law prices each only once."""

    def __init__(self, observations: Sequence[Observation]) -> None:
        works = [(observation.work, observation.max_cached_tokens) for observation in observations]
        self._works = list(dict.fromkeys(works))
        index = {work: number for number, work in enumerate(self._works)}
        self._indices = np.array([index[work] for work in works])
        self._cached = np.array([observation.cached_tokens for observation in observations])

    def seconds(self, law: Law) -> Array:
        """Seconds that a law predicts for each observation; [observations]."""
        lines = np.array([law.line(work, max_cached_tokens=limit) for work, limit in self._works])
        seconds: Array = lines[self._indices, 0] + lines[self._indices, 1] * self._cached
        return seconds


def predict(law: Law, observations: Sequence[Observation]) -> Array:
    """Seconds that a law predicts for each observation; [observations]."""
    return _WorkTable(observations).seconds(law)


def pooled_abs_errors(errors: dict[str, Array]) -> Array | None:
    """Absolute values of all held-out errors; None without any."""
    return np.abs(np.concatenate(list(errors.values()))) if errors else None


def held_out_errors(observations: Sequence[Observation], *, launch_bound: bool) -> dict[str, Array]:
    """Signed relative errors on each group, predicted from the other groups; empty with a single group."""
    if len({observation.group for observation in observations}) < 2:
        return {}
    return leave_one_out_errors(leave_one_out_laws(observations, launch_bound=launch_bound), observations)


def leave_one_out_laws(
    observations: Sequence[Observation],
    *,
    launch_bound: bool,
    allowed_terms: Collection[str] = LAW_TERMS,
    start_law: Law | None = None,
) -> dict[str, Law]:
    """For each group, the law fitted to all other groups; arguments as in `fit_law`."""
    groups = sorted({observation.group for observation in observations})
    others = {group: [observation for observation in observations if observation.group != group] for group in groups}
    return {
        group: fit_law(rest, launch_bound=launch_bound, allowed_terms=allowed_terms, start_law=start_law).law
        for group, rest in others.items()
    }


def leave_one_out_errors(laws: Mapping[str, Law], observations: Sequence[Observation]) -> dict[str, Array]:
    """Signed relative errors on each group, by the law that was fitted without the group."""
    errors = {}
    for group, law in laws.items():
        held_out = [observation for observation in observations if observation.group == group]
        errors[group] = predict(law, held_out) / np.array([observation.seconds for observation in held_out]) - 1
    return errors


def held_out_coverage(
    observations: Sequence[Observation], *, launch_bound: bool, allowed_terms: Collection[str] = LAW_TERMS
) -> NDArray[np.bool_]:
    """Whether each group's observations lie in the 90 % interval of a fit to the others.

    The interval comes from the errors on groups left out of that fit, so there must be three groups. Arguments as in `fit_law`.
    """
    covered = []
    for group, law in leave_one_out_laws(observations, launch_bound=launch_bound, allowed_terms=allowed_terms).items():
        others = [observation for observation in observations if observation.group != group]
        inner_laws = leave_one_out_laws(others, launch_bound=launch_bound, allowed_terms=allowed_terms, start_law=law)
        inner_errors = pooled_abs_errors(leave_one_out_errors(inner_laws, others))
        assert inner_errors is not None, "an interval needs two groups besides the one that it is tested on"
        signed = leave_one_out_errors({group: law}, observations)[group]
        covered.append(np.abs(signed) <= np.quantile(inner_errors, INTERVAL_FRAC))
    return np.concatenate(covered)


def _scales(observations: Sequence[Observation], measured: Array, *, launch_bound: bool) -> dict[str, float]:
    """For each identifiable term, the coefficient at which this term alone would explain a typical pass."""
    identifiable = set(LAW_TERMS) - (set() if launch_bound else {"host_layer_s"})
    if len({observation.work.rows for observation in observations if observation.work.num_layers}) < 2:
        identifiable -= _ROW_TERMS
    sizes = [observation.work.model_bytes for observation in observations if observation.work.model_bytes]
    if not sizes or max(sizes) < MIN_SIZE_RATIO * min(sizes):
        identifiable -= {"far_byte_s", CACHE_TERM}
    scales = {}
    for term in LAW_TERMS:
        alone = predict(_law([term], np.ones(1)), observations)
        is_affected = alone > 0
        if term in identifiable and is_affected.any():
            scales[term] = float(np.median(measured[is_affected] / alone[is_affected]))
    if "far_byte_s" in scales:
        scales[CACHE_TERM] = max(sizes)
    return scales


def _law(terms: Sequence[str], values: Array) -> Law:
    """The law with the given terms; the others are 0."""
    return law_from_terms({term: float(value) for term, value in zip(terms, values, strict=True)})


def law_from_terms(values: Mapping[str, float]) -> Law:
    """The law with the given terms; the others are 0, and the head has the rates of the layers."""
    terms = dict.fromkeys(LAW_TERMS, 0.0) | dict(values)
    return Law(**terms, **{tied: terms[term] for tied, term in _TIED_TERMS.items()})


def _standard_errors(jac: Array, errors: Array) -> Array:
    """Square root of the diagonal of s² (JᵀJ)⁻¹, with s² the residual variance."""
    freedom = max(1, len(errors) - jac.shape[1])
    variance = float(errors @ errors) / freedom
    variances: Array = variance * np.diag(np.linalg.pinv(jac.T @ jac))
    return np.sqrt(np.maximum(0.0, variances))
