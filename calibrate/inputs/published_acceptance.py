"""Derive the shipped acceptance traces from the published means of S2D's authors.

Run it with `python -m calibrate.inputs.published_acceptance`. No trace of the S2D draft is public, only mean accepted tokens
(MAT) of a few policies. For each target, this module makes a seeded synthetic trace on which replay of those policies gives
those MATs. Search and replay then run on it as on a user's own trace. docs/published-acceptance.md lists which of its numbers
are published and which are assumed.

The model, for position p and exit e; difficulty and noise are standard normal:
    exit e agrees with the target if difficulty[p] <= cut[e]; a deeper exit agrees wherever a shallower one does
    logit(confidence[p, e]) = level + LOGIT_SPREAD * noise[p, e], with a level for each of three cases:
        agreed    the exit agrees
        deferred  it does not, but the deepest exit does
        hopeless  no exit does
The cuts are fitted to the MATs of the single exits, the deferred level to the MAT of S2D, and the agreed and hopeless levels
to the mean confidences that the authors plotted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.inputs.acceptance import DEFAULT_OUTPUT_TOKENS, DEFAULT_PROMPT_TOKENS, SYNTHETIC_PREFIX, shipped_path
from perfmodel.acceptance.off_path_trace import OffPath
from perfmodel.acceptance.trace import TRACE_FILE, Trace, TracedPrompt, TraceHeader
from perfmodel.core.provenance import make_provenance
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.policies.policy import HeuristicLength, Policy
from perfmodel.policies.sampling import GREEDY
from perfmodel.replay.replay import replay

DRAFT = "s2d-vicuna-12"
EXIT_LAYERS = (6, 9, 12)

NUM_PROMPTS = 16
POSITIONS_PER_PROMPT = DEFAULT_OUTPUT_TOKENS
PROMPT_TOKENS = DEFAULT_PROMPT_TOKENS
SEED = 2407_01955

PROMPT_SHARE = 0.05
"""Share of the variance of difficulty that is common to a prompt. Assumed."""
SERIAL_SHARE = 0.20
"""Share that is correlated from one token to the next. Assumed: with it, runs of agreement with Vicuna-7B reach 63 tokens;
the authors' histograms reach 57."""
SERIAL_CORRELATION = 0.90

LOGIT_SPREAD = 1.5
"""Standard deviation of a confidence's logit. Assumed: confidence then predicts agreement with an AUC of about 0.86."""
AGREED_CONFIDENCE = 0.80
"""Mean confidence of exit 6 if it agrees, from the authors' plot of its probability inside an accepted run."""
REJECTED_CONFIDENCE = 0.43
"""Mean confidence of exit 6 if it disagrees, from the same plot at the first rejected token."""
COMMON_NOISE_SHARE = 0.5
"""Share of the variance of the confidence noise that all exits have in common. Assumed."""
CONFIDENCE_STEP = 2.0**-12
"""Confidences are rounded to it. This makes files smaller, and identical on machines whose exp differs in the last bit."""

PUBLISHED_LENGTH = HeuristicLength(start=5)
"""transformers' schedule, with which S2D's authors measured."""
PUBLISHED_TOKENS = 64
"""The schedule has no cap. No accepted run in the authors' histograms is longer than this."""

_CUT_RANGE = (-2.0, 3.0)
_LOGIT_RANGE = (-4.0, 4.0)
_STEPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedMat:
    """Mean tokens per target pass, the target's own token counted, as Spec-Bench does."""

    target: str
    single_exit: tuple[float, float, float]
    """SoFT L6, L9 and L12."""
    s2d: float
    """SoFT + S2D: exits 6/9/12 at .5/.5."""


PUBLISHED = (
    PublishedMat(target="llama-2-70b", single_exit=(2.05, 2.27, 2.39), s2d=2.36),
    PublishedMat(target="vicuna-7b", single_exit=(2.43, 3.00, 3.11), s2d=2.86),
)

SINGLE_EXIT_POLICIES = tuple(Policy(exits=(layer,), tokens=PUBLISHED_TOKENS, stop=PUBLISHED_LENGTH) for layer in EXIT_LAYERS)
S2D_POLICY = Policy(exits=EXIT_LAYERS, thresholds=(0.5, 0.5), tokens=PUBLISHED_TOKENS, stop=PUBLISHED_LENGTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Random numbers of a trace, drawn once. The fit then depends on its parameters only."""

    difficulty: NDArray[np.float64]  # [P]
    confidence: NDArray[np.float64]  # [P, E]


def derive_trace(published: PublishedMat) -> Trace:
    """The synthetic trace on which the published policies have their published MATs."""
    noise, header = draw_noise(SEED), _header(published.target)
    agreed = _fit_agreement(header, noise, published)

    def trace(deferred_logit: float) -> Trace:
        return _trace(header, agreed, _confidence(agreed, noise, deferred_logit))

    def minus_s2d_mat(deferred_logit: float) -> float:
        return -mean_accepted_tokens(trace(deferred_logit), S2D_POLICY)

    return trace(_solve(minus_s2d_mat, -published.s2d, _LOGIT_RANGE))


def mean_accepted_tokens(trace: Trace, policy: Policy) -> float:
    """Tokens per target pass, the target's own token included."""
    return replay(trace, policy).tokens_per_round


def draw_noise(seed: int) -> Noise:
    """Difficulty of every position (prompt effect, first-order serial correlation and white noise), and confidence noise."""
    rng = np.random.default_rng(seed)
    shape, exits = (NUM_PROMPTS, POSITIONS_PER_PROMPT), len(EXIT_LAYERS)
    serial = _serially_correlated(rng.standard_normal(shape))
    by_prompt, white = rng.standard_normal((NUM_PROMPTS, 1)), rng.standard_normal(shape)
    white_share = 1 - PROMPT_SHARE - SERIAL_SHARE
    difficulty = np.sqrt(PROMPT_SHARE) * by_prompt + np.sqrt(SERIAL_SHARE) * serial + np.sqrt(white_share) * white
    positions = difficulty.size
    common, apart = rng.standard_normal((positions, 1)), rng.standard_normal((positions, exits))
    confidence = np.sqrt(COMMON_NOISE_SHARE) * common + np.sqrt(1 - COMMON_NOISE_SHARE) * apart
    return Noise(difficulty=difficulty.ravel(), confidence=confidence)


def _serially_correlated(white: NDArray[np.float64]) -> NDArray[np.float64]:
    """A stationary first-order process along the last axis, of unit variance."""
    process = white.copy()
    for step in range(1, white.shape[-1]):
        process[:, step] = SERIAL_CORRELATION * process[:, step - 1] + np.sqrt(1 - SERIAL_CORRELATION**2) * white[:, step]
    return process


def _fit_agreement(header: TraceHeader, noise: Noise, published: PublishedMat) -> NDArray[np.bool_]:
    """Agreement of each exit [P, E] at which each exit alone has its published MAT."""
    agreed = np.empty(noise.confidence.shape, dtype=bool)
    for number, (policy, mat) in enumerate(zip(SINGLE_EXIT_POLICIES, published.single_exit, strict=True)):

        def mat_at(cut: float, policy: Policy = policy) -> float:
            everywhere = np.repeat((noise.difficulty <= cut)[:, None], len(EXIT_LAYERS), axis=1)
            return mean_accepted_tokens(_trace(header, everywhere, np.zeros(everywhere.shape)), policy)

        agreed[:, number] = noise.difficulty <= _solve(mat_at, mat, _CUT_RANGE)
    return agreed


def _confidence(agreed: NDArray[np.bool_], noise: Noise, deferred_logit: float) -> NDArray[np.float64]:
    """Confidences [P, E] that have the authors' means at the first exit, both where it agrees and where it does not."""
    hopeless = ~agreed[:, -1:]
    rejected_first = ~agreed[:, 0]

    def with_levels(agreed_logit: float, hopeless_logit: float) -> NDArray[np.float64]:
        level = np.where(agreed, agreed_logit, np.where(hopeless, hopeless_logit, deferred_logit))
        return 1 / (1 + np.exp(-(level + LOGIT_SPREAD * noise.confidence)))

    agreed_logit = _solve(lambda logit: with_levels(logit, 0.0)[~rejected_first, 0].mean(), AGREED_CONFIDENCE, _LOGIT_RANGE)
    hopeless_logit = _solve(lambda logit: with_levels(0.0, logit)[rejected_first, 0].mean(), REJECTED_CONFIDENCE, _LOGIT_RANGE)
    return with_levels(agreed_logit, hopeless_logit)


def _trace(header: TraceHeader, agreed: NDArray[np.bool_], confidence: NDArray[np.float64]) -> Trace:
    """A trace of given agreement. Tokens are 1 where an exit agrees and 0 elsewhere, as there is no text."""
    rounded = np.round(confidence / CONFIDENCE_STEP) * CONFIDENCE_STEP
    return Trace(
        header=header,
        confidence=rounded.astype(np.float32),
        draft_token=agreed.astype(np.int32),
        target_token=np.ones(len(agreed), dtype=np.int32),
        accept_prob=agreed.astype(np.float32),
        off_path=OffPath.empty(agreed.shape[1]),
    )


def _header(target: str) -> TraceHeader:
    prompts = tuple(
        TracedPrompt(
            name=f"{SYNTHETIC_PREFIX}{number:02d}",
            category="mt-bench",
            prompt_tokens=PROMPT_TOKENS,
            num_positions=POSITIONS_PER_PROMPT,
            distinct_6gram_frac=1.0,
        )
        for number in range(NUM_PROMPTS)
    )
    draft = find_draft(DRAFT)
    return TraceHeader(
        draft_kind=draft.kind,
        exit_layers=draft.exit_layers,
        draft_model=draft.model,
        draft_sha256=None,
        target_model=find_model(target),
        target_sha256=None,
        tokenizer_sha256=None,
        sampling=GREEDY,
        confidence="max-prob",
        max_new_tokens=POSITIONS_PER_PROMPT,
        eos_token_id=None,
        prompts=prompts,
    )


def _solve(function: Callable[[float], float], goal: float, bounds: tuple[float, float]) -> float:
    """The argument at which a rising function reaches a value, by bisection: the closer of the last two bounds."""
    low, high = bounds
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < goal else (low, middle)
    return min((low, high), key=lambda value: abs(function(value) - goal))


def main() -> None:
    """Write every shipped trace. The same code gives the same bodies."""
    for published in PUBLISHED:
        trace = derive_trace(published)
        provenance = make_provenance(
            argv=("python", "-m", "calibrate.inputs.published_acceptance"), libraries=("numpy",), seed=SEED
        )
        TRACE_FILE.write(shipped_path(DRAFT, published.target), trace, provenance)


if __name__ == "__main__":
    main()
