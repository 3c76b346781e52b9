"""Observations -> Law: the coefficients of the latency law, their errors, and how the law does on what was left out.

Errors are relative, so that a draft's segment counts as much as a target's verify, and robust (soft L1), so that a
preempted pass does not bend the law. How good the law is on a model it has not seen is told by leaving each model out.
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
"""Terms that a fit does not tell from others: plain weights are read and multiplied alike in layers and head."""
LAW_TERMS: tuple[str, ...] = tuple(field.name for field in fields(Law) if field.name not in _TIED_TERMS)
_ROW_TERMS = {"row_layer_s", "many_rows_layer_s", "many_rows_byte_s", "flop_s", "attn_flop_s"}
"""Terms that only passes of different widths tell from the others."""
CACHE_TERM = "cache_bytes"
TOLERANCE, GUESS_TOLERANCE = 1e-8, 1e-3
"""Of the sum of squares, when it no longer falls: of a fit, and of the guess it starts from."""
CACHE_STARTS = (0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.2, 0.4)
"""Caches to start from, as shares of the largest model."""
MIN_SIZE_RATIO = 4
"""Models must differ by so much in size before what lies beyond the caches is told from what lies in them."""
ROBUST_SCALE: Frac = 0.05
"""Relative error beyond which an observation's pull grows linearly and no longer with the square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Passes of one shape: what they did and what they take undisturbed."""

    group: str
    """What is left out together: the model."""
    work: PassWork
    cached_tokens: float
    max_cached_tokens: int
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedLaw:
    """A law, its standard errors, and its mean absolute error on what it was fitted to."""

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
    """The law nearest to some observations; terms that no observation shows are held at 0.

    What the caches keep has no gradient where it is far off, so the search starts at several sizes of caches.

    Args:
        launch_bound: whether launches can take longer than kernels: on a GPU without graphs. Elsewhere that term is 0.
        allowed_terms: the terms that may differ from 0.
        start_law: start from this law alone.

    Raises:
        UserInputError: fewer observations than terms.
    """
    measured = np.array([one.seconds for one in observations])
    scales = _scales(observations, measured, launch_bound=launch_bound)
    terms = [term for term in scales if term in allowed_terms]
    if len(observations) < len(terms) or not terms:
        raise UserInputError(
            f"a latency fit of {len(terms)} terms needs at least as many different passes, got {len(observations)}. "
            "Profile more shapes with s2d-profile law."
        )
    scale = np.array([scales[term] for term in terms])
    is_free = np.array([term != CACHE_TERM for term in terms])
    shapes = _WorkTable(observations)

    def errors(values: Array) -> Array:
        ratios: Array = shapes.seconds(_law(terms, values * scale)) / measured
        return ratios - 1

    if start_law is None:
        guesses = [_minimise(errors, start, is_free, tolerance=GUESS_TOLERANCE) for start in _starts(terms)]
        start = min(guesses, key=lambda one: one.cost).x
    else:
        start = np.array([getattr(start_law, term) for term in terms]) / scale
    found = _minimise(errors, start, np.full(len(terms), True), tolerance=TOLERANCE)
    return FittedLaw(
        law=_law(terms, found.x * scale),
        standard_error=_law(terms, _standard_errors(found.jac, errors(found.x)) * scale),
        residual_frac=float(np.mean(np.abs(errors(found.x)))),
    )


def _starts(terms: Sequence[str]) -> Iterator[Array]:
    """Where the search begins: every term at half of what it alone would be, caches of every size."""
    for share in CACHE_STARTS if CACHE_TERM in terms else (0.0,):
        yield np.array([share if term == CACHE_TERM else 0.5 for term in terms])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Minimum:
    """Where the robust sum of squares is least."""

    x: Array
    cost: float
    jac: Array


def _minimise(errors: Callable[[Array], Array], start: Array, is_free: NDArray[np.bool_], *, tolerance: float) -> _Minimum:
    """The least robust sum of squares with some values free and the others as they are, up to a relative tolerance."""
    from scipy.optimize import least_squares

    def whole(free: Array) -> Array:
        values = start.copy()
        values[is_free] = free
        return values

    found = least_squares(
        lambda free: errors(whole(free)),
        start[is_free],
        bounds=(0, np.inf),
        loss="soft_l1",
        f_scale=ROBUST_SCALE,
        x_scale="jac",
        ftol=tolerance,
    )
    return _Minimum(x=whole(found.x), cost=float(found.cost), jac=found.jac)


class _WorkTable:
    """What some observations did, each kind of work once, so that a law prices them quickly."""

    def __init__(self, observations: Sequence[Observation]) -> None:
        works = [(one.work, one.max_cached_tokens) for one in observations]
        self._works = list(dict.fromkeys(works))
        place = {work: number for number, work in enumerate(self._works)}
        self._places = np.array([place[work] for work in works])
        self._cached = np.array([one.cached_tokens for one in observations])

    def seconds(self, law: Law) -> Array:
        """Seconds of each observation's passes by a law; [observations]."""
        lines = np.array([law.line(work, max_cached_tokens=most) for work, most in self._works])
        seconds: Array = lines[self._places, 0] + lines[self._places, 1] * self._cached
        return seconds


def predict(law: Law, observations: Sequence[Observation]) -> Array:
    """Seconds of each observation's passes by a law; [observations]."""
    return _WorkTable(observations).seconds(law)


def pooled_abs_errors(errors: dict[str, Array]) -> Array | None:
    """Sizes of all held-out errors; None where nothing could be held out."""
    return np.abs(np.concatenate(list(errors.values()))) if errors else None


def held_out_errors(observations: Sequence[Observation], *, launch_bound: bool) -> dict[str, Array]:
    """Signed relative errors on each group's observations, predicted from the others; empty with a single group."""
    if len({one.group for one in observations}) < 2:
        return {}
    return leave_one_out_errors(leave_one_out_laws(observations, launch_bound=launch_bound), observations)


def leave_one_out_laws(
    observations: Sequence[Observation],
    *,
    launch_bound: bool,
    allowed_terms: Collection[str] = LAW_TERMS,
    start_law: Law | None = None,
) -> dict[str, Law]:
    """For each group, the law fitted to the others; arguments as of `fit_law`."""
    groups = sorted({one.group for one in observations})
    others = {group: [one for one in observations if one.group != group] for group in groups}
    return {
        group: fit_law(rest, launch_bound=launch_bound, allowed_terms=allowed_terms, start_law=start_law).law
        for group, rest in others.items()
    }


def leave_one_out_errors(laws: Mapping[str, Law], observations: Sequence[Observation]) -> dict[str, Array]:
    """Signed relative errors on each group's observations, by the law that has not seen the group."""
    errors = {}
    for group, law in laws.items():
        unseen = [one for one in observations if one.group == group]
        errors[group] = predict(law, unseen) / np.array([one.seconds for one in unseen]) - 1
    return errors


def held_out_coverage(
    observations: Sequence[Observation], *, launch_bound: bool, allowed_terms: Collection[str] = LAW_TERMS
) -> NDArray[np.bool_]:
    """Whether each group's observations lie in the 90 % interval of a fit to the others, which those tell by holding out.

    Needs three groups; arguments as of `fit_law`.
    """
    covered = []
    for group, law in leave_one_out_laws(observations, launch_bound=launch_bound, allowed_terms=allowed_terms).items():
        others = [one for one in observations if one.group != group]
        inner = leave_one_out_laws(others, launch_bound=launch_bound, allowed_terms=allowed_terms, start_law=law)
        told = pooled_abs_errors(leave_one_out_errors(inner, others))
        assert told is not None, "an interval is told by groups left out: it takes two besides the one it is held against"
        signed = leave_one_out_errors({group: law}, observations)[group]
        covered.append(np.abs(signed) <= np.quantile(told, INTERVAL_FRAC))
    return np.concatenate(covered)


def _scales(observations: Sequence[Observation], measured: Array, *, launch_bound: bool) -> dict[str, float]:
    """For each term that shows, the coefficient at which it alone would explain a typical pass."""
    told = set(LAW_TERMS) - (set() if launch_bound else {"host_layer_s"})
    if len({one.work.rows for one in observations if one.work.num_layers}) < 2:
        told -= _ROW_TERMS
    sizes = [one.work.model_bytes for one in observations if one.work.model_bytes]
    if not sizes or max(sizes) < MIN_SIZE_RATIO * min(sizes):
        told -= {"far_byte_s", CACHE_TERM}
    scales = {}
    for term in LAW_TERMS:
        alone = predict(_law([term], np.ones(1)), observations)
        shown = alone > 0
        if term in told and shown.any():
            scales[term] = float(np.median(measured[shown] / alone[shown]))
    if "far_byte_s" in scales:
        scales[CACHE_TERM] = max(sizes)
    return scales


def _law(terms: Sequence[str], values: Array) -> Law:
    """A law with some of its terms, the others 0."""
    return law_of_terms({term: float(value) for term, value in zip(terms, values, strict=True)})


def law_of_terms(values: Mapping[str, float]) -> Law:
    """A law with some of its fitted terms, the others 0; the head's rates are those of the layers."""
    whole = dict.fromkeys(LAW_TERMS, 0.0) | dict(values)
    return Law(**whole, **{tied: whole[term] for tied, term in _TIED_TERMS.items()})


def _standard_errors(jac: Array, errors: Array) -> Array:
    """Square root of the diagonal of s² (JᵀJ)⁻¹, with s² the residual variance."""
    freedom = max(1, len(errors) - jac.shape[1])
    variance = float(errors @ errors) / freedom
    variances: Array = variance * np.diag(np.linalg.pinv(jac.T @ jac))
    return np.sqrt(np.maximum(0.0, variances))
