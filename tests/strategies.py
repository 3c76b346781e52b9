"""Hypothesis strategies and factories for traces and policies, shared by all test folders."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from perfmodel.acceptance.off_path_trace import MIN_RECORDED, OffPath
from perfmodel.acceptance.trace import Trace, TracedPrompt, TraceHeader
from perfmodel.models.geometry import DraftKind, ModelGeometry
from perfmodel.policies.policy import (
    CalibrationCurve,
    Confidence,
    ConfidenceFloor,
    HeuristicLength,
    Policy,
    StopRule,
    SurvivalFloor,
)
from perfmodel.policies.sampling import GREEDY, AcceptanceRule, Sampling

EOS = 0


def tiny_geometry(num_layers: int, name: str = "tiny") -> ModelGeometry:
    return ModelGeometry(
        name=name,
        num_layers=num_layers,
        hidden_size=8,
        intermediate_size=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        vocab_size=8,
        tied_embeddings=True,
        max_context_tokens=512,
        source="made for a test",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSpec:
    """Properties of a synthetic trace. Its numbers follow from the seed."""

    num_positions: Sequence[int]
    exit_layers: tuple[int, ...] = (1, 2, 4, 6)
    agreement: tuple[float, ...] = (0.55, 0.65, 0.75, 0.85)
    """Share of positions where each exit predicts the target's token."""
    max_new_tokens: int = 64
    kind: DraftKind = "separate"
    rule: AcceptanceRule = "greedy"
    eos_token_id: int | None = None
    seed: int = 0
    num_confidences: int = 1000
    """Distinct confidences. A small number causes ties with thresholds."""
    num_off_path: int = 0
    """Tokens recorded off the path, where confidences are lower."""


def make_trace(spec: TraceSpec) -> Trace:
    """A trace with informative confidences: an exit agrees more often where its confidence is higher."""
    rng = np.random.default_rng(spec.seed)
    shape = (sum(spec.num_positions), len(spec.exit_layers))
    target = rng.integers(1, 8, shape[0])
    certainty = rng.random(shape)
    agrees = rng.random(shape) < np.clip(np.array(spec.agreement) + 0.4 * (certainty - 0.5), 0, 1)
    if spec.agreement == (1.0,) * shape[1]:
        agrees[:] = True
    ends = np.cumsum(spec.num_positions) - 1
    cut_short = np.array(spec.num_positions) < spec.max_new_tokens
    if spec.eos_token_id is not None:
        target[ends[cut_short]] = spec.eos_token_id
    different = (target[:, None] + rng.integers(1, 8, shape)) % 8
    draft = np.where(agrees, target[:, None], different)
    accept = agrees.astype(np.float32) if spec.rule != "ratio" else rng.random(shape, np.float32)
    confidence = (np.round(certainty * spec.num_confidences) / spec.num_confidences).astype(np.float32)
    position = rng.integers(0, shape[0], spec.num_off_path).astype(np.int32)
    lower = confidence[position] * rng.random((spec.num_off_path, shape[1]))
    return Trace(
        header=_header(spec),
        confidence=confidence,
        draft_token=draft.astype(np.int32),
        target_token=target.astype(np.int32),
        accept_prob=accept,
        off_path=OffPath(
            position=position,
            exit=rng.integers(0, shape[1], spec.num_off_path).astype(np.int32),
            confidence=lower.astype(np.float32),
        ),
    )


def _header(spec: TraceSpec) -> TraceHeader:
    target = tiny_geometry(16, "tiny-target")
    model = target if spec.kind == "self" else tiny_geometry(spec.exit_layers[-1], "tiny-draft")
    noisy = Sampling(rule=spec.rule, temperature=0.8, top_k=None, top_p=None, seed=7) if spec.rule != "greedy" else GREEDY
    return TraceHeader(
        draft_kind=spec.kind,
        exit_layers=spec.exit_layers,
        draft_model=model,
        draft_sha256="d" * 64,
        target_model=target,
        target_sha256="e" * 64,
        tokenizer_sha256="f" * 64,
        sampling=noisy,
        confidence="max-prob",
        max_new_tokens=spec.max_new_tokens,
        eos_token_id=spec.eos_token_id,
        prompts=tuple(
            TracedPrompt(
                name=f"prompt-{i}",
                category=("code", "prose")[i % 2],
                prompt_tokens=1 + (7 * i + spec.seed) % 11,
                num_positions=number,
                distinct_6gram_frac=1.0,
            )
            for i, number in enumerate(spec.num_positions)
        ),
    )


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Small traces with both kinds of draft and all acceptance rules. Shortened texts end with EOS, the others at the limit."""
    num_exits = draw(st.integers(1, 4))
    max_new_tokens = draw(st.integers(1, 30))
    num_positions = draw(st.lists(st.integers(1, max_new_tokens), min_size=1, max_size=4))
    spec = TraceSpec(
        num_positions=num_positions,
        exit_layers=tuple(sorted(draw(st.sets(st.integers(1, 8), min_size=num_exits, max_size=num_exits)))),
        agreement=tuple(draw(st.lists(st.floats(0, 1), min_size=num_exits, max_size=num_exits))),
        max_new_tokens=max_new_tokens,
        kind=draw(st.sampled_from(("separate", "self"))),
        rule=draw(st.sampled_from(("greedy", "ratio", "shared-noise"))),
        eos_token_id=EOS,
        seed=draw(st.integers(0, 1000)),
        num_confidences=draw(st.sampled_from((4, 1000))),
        num_off_path=draw(st.sampled_from((0, 2 * num_exits * MIN_RECORDED))),
    )
    return make_trace(spec)


penalties = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([None, 0.8, 1.3]),
        "presence_penalty": st.sampled_from([None, -0.5, 0.7]),
        "frequency_penalty": st.sampled_from([None, 0.4]),
    }
)
"""Penalties of a `Sampling`, by field."""

fractions = st.integers(0, 20).map(lambda twentieths: twentieths / 20)


@st.composite
def curves(draw: st.DrawFn) -> CalibrationCurve:
    knots = sorted(draw(st.sets(fractions, min_size=1, max_size=5)))
    return CalibrationCurve(
        confidence=tuple(knots), agreement=tuple(sorted(draw(st.lists(fractions, min_size=len(knots), max_size=len(knots)))))
    )


@st.composite
def stop_rules(draw: st.DrawFn, num_active: int, tokens: int) -> StopRule | None:
    """Any stop rule for a policy of `num_active` exits that drafts up to `tokens`."""
    match draw(st.sampled_from(("fixed", "floor", "survival", "heuristic"))):
        case "fixed":
            return None
        case "floor":
            return ConfidenceFloor(floor=draw(fractions), keeps_token=draw(st.booleans()))
        case "survival":
            return SurvivalFloor(floor=draw(fractions), calibration=tuple(draw(curves()) for _ in range(num_active)))
        case _:
            return HeuristicLength(start=draw(st.integers(1, tokens)))


segment_orders = st.sampled_from((None, "ahead", "at once"))
"""Order of segments for several exits: on demand, ahead of the exit's answer, or for every token at once."""


@st.composite
def policies(
    draw: st.DrawFn, exit_layers: tuple[int, ...], *, confidence: Confidence = "max-prob", largest_cap: int = 9
) -> Policy:
    """Any policy with some of these exits."""
    exits = tuple(sorted(draw(st.sets(st.sampled_from(exit_layers), min_size=1))))
    order = draw(segment_orders) if len(exits) > 1 else None
    tokens = draw(st.integers(1, largest_cap))
    return Policy(
        exits=exits,
        thresholds=tuple(draw(fractions) for _ in exits[1:]),
        tokens=tokens,
        stop=draw(stop_rules(len(exits), tokens)),
        confidence=confidence,
        runs_ahead=order == "ahead",
        catches_up_at_once=order == "at once",
    )


@st.composite
def traces_with_policies(draw: st.DrawFn, *, most: int = 4) -> tuple[Trace, list[Policy | None]]:
    """A trace and policies for it, which may include plain decoding."""
    trace = draw(traces())
    exit_layers = trace.header.exit_layers
    return trace, draw(st.lists(st.none() | policies(exit_layers), min_size=1, max_size=most))
