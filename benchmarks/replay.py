"""How many policies per second can be replayed and priced on a trace of 10,000 positions and 4 exits?

Runs on one core. The timed work is that of a search on its candidates: `replay_batch`, which counts all passes with their rows
and cached tokens, including the backlog, and `seconds`, which prices them. The trace is laid out again in every repetition.

The mixture has all 15 subsets of the exits equally often, 4 of them with a single exit. It has all four length rules in equal
parts, with caps from 1 to 12. Thresholds and floors come from `calibrate/search/neighbourhood.py`; survival curves are fitted
as in a search. Two policies in a row differ only in their length rule, because a search changes lengths about as often as
thresholds. The trace is synthetic, from a fixed seed. Some texts end with a stop token, others at the limit.

Example: python benchmarks/replay.py --quick
"""

import argparse
import sys
from itertools import combinations
from time import perf_counter

import numpy as np

from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS, SURVIVAL_FLOORS, threshold_grid
from calibrate.search.search import NUM_CURVE_BINS
from perfmodel.acceptance.confidence_curves import fit_curve
from perfmodel.acceptance.off_path_trace import OffPath
from perfmodel.acceptance.trace import Trace, TracedPrompt, TraceHeader
from perfmodel.core.console import add_verbose_flag, print_out, run_command, table
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Seconds
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.passes import Line, PassKind
from perfmodel.policies.policy import (
    CalibrationCurve,
    ConfidenceFloor,
    HeuristicLength,
    Policy,
    StopRule,
    SurvivalFloor,
)
from perfmodel.policies.sampling import GREEDY
from perfmodel.replay.compiled import lay_out
from perfmodel.replay.replay import replay_batch
from shared.common import finish, make_parser, median, quantile

NAME = "replay"
SEED = 20260708
EXIT_LAYERS = (1, 2, 4, 6)
AGREEMENT = (0.55, 0.65, 0.75, 0.85)
"""By exit. A confidence of 1 raises it by 0.2, a confidence of 0 lowers it by 0.2."""
NUM_PROMPTS = 64
NUM_POSITIONS = 10_000
NUM_POLICIES = 512
EOS = 0


def synthetic_trace(rng: np.random.Generator) -> Trace:
    """Texts of nearly equal length. Exits agree more often where their confidence is higher."""
    shape = (NUM_POSITIONS, len(EXIT_LAYERS))
    confidence = rng.random(shape, np.float32)
    agrees = rng.random(shape) < np.array(AGREEMENT) + 0.4 * (confidence - 0.5)
    target = rng.integers(EOS + 1, 1000, NUM_POSITIONS, np.int32)
    ends = np.linspace(0, NUM_POSITIONS, NUM_PROMPTS + 1).astype(int)
    num_positions = np.diff(ends)
    target[ends[1:][num_positions < num_positions.max()] - 1] = EOS
    return Trace(
        header=_header(num_positions.tolist()),
        confidence=confidence,
        draft_token=np.where(agrees, target[:, None], target[:, None] + 1).astype(np.int32),
        target_token=target,
        accept_prob=agrees.astype(np.float32),
        off_path=OffPath.empty(len(EXIT_LAYERS)),
    )


def _header(num_positions: list[int]) -> TraceHeader:
    model = ModelGeometry(
        name="synthetic",
        num_layers=EXIT_LAYERS[-1],
        hidden_size=128,
        intermediate_size=320,
        num_heads=2,
        num_kv_heads=2,
        head_dim=64,
        vocab_size=2048,
        tied_embeddings=True,
        max_context_tokens=512,
        source="made up",
    )
    return TraceHeader(
        draft_kind="separate",
        exit_layers=EXIT_LAYERS,
        draft_model=model,
        draft_sha256=None,
        target_model=model,
        target_sha256=None,
        tokenizer_sha256=None,
        sampling=GREEDY,
        confidence="max-prob",
        max_new_tokens=max(num_positions),
        eos_token_id=EOS,
        prompts=tuple(
            TracedPrompt(name=f"{i}", category="made up", prompt_tokens=64, num_positions=number, distinct_6gram_frac=1.0)
            for i, number in enumerate(num_positions)
        ),
    )


def mixed_policies(rng: np.random.Generator, trace: Trace, number: int) -> list[Policy]:
    """Policies over all exit subsets in turn, with random thresholds, floors and caps from the search grids."""
    subsets = [subset for size in range(1, 5) for subset in combinations(EXIT_LAYERS, size)]
    confidence, agreement = trace.confidence.T.astype(np.float64), trace.accept_prob.T.astype(np.float64)
    cuts = {layer: threshold_grid(values) for layer, values in zip(EXIT_LAYERS, confidence, strict=True)}
    curves = {
        layer: fit_curve(*evidence, num_bins=NUM_CURVE_BINS)
        for layer, *evidence in zip(EXIT_LAYERS, confidence, agreement, strict=True)
    }
    policies: list[Policy] = []
    while len(policies) < number:
        pair = len(policies) // 2
        layers = subsets[pair % len(subsets)]
        thresholds = tuple(float(rng.choice(cuts[layer])) for layer in layers[:-1])
        for kind in ((0, 1), (2, 3))[pair % 2]:
            tokens, stop = _length(rng, kind, cuts[layers[-1]], tuple(curves[layer] for layer in layers))
            policies.append(Policy(exits=layers, thresholds=thresholds, tokens=tokens, stop=stop))
    return policies


def _length(
    rng: np.random.Generator, kind: int, floors: tuple[float, ...], calibration: tuple[CalibrationCurve, ...]
) -> tuple[int, StopRule | None]:
    cap = int(rng.integers(1, MAX_DRAFT_TOKENS + 1))
    rules: tuple[StopRule | None, ...] = (
        None,
        ConfidenceFloor(floor=float(rng.choice(floors))),
        SurvivalFloor(floor=float(rng.choice(SURVIVAL_FLOORS)), calibration=calibration),
        HeuristicLength(start=min(5, cap)),
    )
    return cap, rules[kind]


class AnyLatency:
    """Synthetic pass times. They do not affect the time of replay."""

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        return Line(1e-4 * (1 + rows) + 1e-5 * stage, 1e-7 * len(kind))

    def cold_s(self, kind: PassKind, stage: int, place: int) -> Seconds:
        return 1e-5 / place


LATENCY = AnyLatency()


def replay_and_price_s(trace: Trace, policies: list[Policy]) -> float:
    """Seconds to replay and price all policies once."""
    lay_out.cache_clear()
    begin = perf_counter()
    seconds = replay_batch(trace, policies).seconds(LATENCY, LATENCY)
    elapsed_s = perf_counter() - begin
    assert np.isfinite(seconds).all()
    return elapsed_s


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    rng = np.random.default_rng(SEED)
    trace = synthetic_trace(rng)
    policies = mixed_policies(rng, trace, NUM_POLICIES)
    single = [policy for policy in policies if len(policy.exits) == 1]
    replay_and_price_s(trace, policies[:64])
    rates = {
        name: [len(group) / replay_and_price_s(trace, group) for _ in range(5 if args.quick else 25)]
        for name, group in (("all", policies), ("one exit", single))
    }
    rows = [
        (name, f"{median(values):.0f}", f"{quantile(values, 0.25):.0f}", f"{quantile(values, 0.75):.0f}")
        for name, values in rates.items()
    ]
    print_out(table(rows, headers=("policies", "per second", "lower quartile", "upper quartile"), align="lrrr"))
    result = {
        "policies_per_s": median(rates["all"]),
        "policies_per_s_quartiles": [quantile(rates["all"], 0.25), quantile(rates["all"], 0.75)],
        "one_exit_policies_per_s": median(rates["one exit"]),
        "num_policies": len(policies),
        "num_positions": NUM_POSITIONS,
        "num_exits": len(EXIT_LAYERS),
        "num_prompts": NUM_PROMPTS,
    }
    finish(
        NAME,
        quick=args.quick,
        result=result,
        provenance=make_provenance(libraries=("numpy",), seed=SEED),
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
