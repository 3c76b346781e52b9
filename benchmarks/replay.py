"""How many policies a second can be replayed and priced on a trace of 10,000 positions and 4 exits?

One core, no two policies with the same thresholds, every subset of the exits, all four length rules in equal parts. Replay
counts every pass with its rows and cached tokens, backlog included, and pricing is part of the time. The trace is made up
from a fixed seed: replay's speed does not depend on where a trace comes from.

Example: python benchmarks/replay.py --quick
"""

import argparse
import sys
from itertools import combinations
from time import perf_counter

import numpy as np
from common import finish, make_parser, median, quantile

from perfmodel.console import add_verbose_flag, print_out, run_command, table
from perfmodel.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes import PassKind
from perfmodel.policy import CalibrationCurve, ExitPolicy, FixedLength, FloorStop, HeuristicLength, LengthRule, SurvivalStop
from perfmodel.replay import replay_many
from perfmodel.sampling import GREEDY
from perfmodel.trace import AcceptanceTrace, TracedPrompt, TraceHeader

NAME = "replay"
SEED = 20260708
EXIT_LAYERS = (1, 2, 4, 6)
AGREEMENT = (0.55, 0.65, 0.75, 0.85)
"""By exit; a confidence of 1 raises it by 0.2 and one of 0 lowers it as much."""
NUM_PROMPTS = 64
NUM_POSITIONS = 10_000
NUM_POLICIES = 512
CURVE = CalibrationCurve(confidence=(0.0, 0.5, 1.0), agreement=(0.4, 0.8, 0.95))


def synthetic_trace(rng: np.random.Generator) -> AcceptanceTrace:
    """Prompts of equal length whose exits agree the more often the surer they are."""
    shape = (NUM_POSITIONS, len(EXIT_LAYERS))
    confidence = rng.random(shape, np.float32)
    agrees = rng.random(shape) < np.array(AGREEMENT) + 0.4 * (confidence - 0.5)
    target = rng.integers(0, 1000, NUM_POSITIONS, np.int32)
    return AcceptanceTrace(
        header=_header(np.diff(np.linspace(0, NUM_POSITIONS, NUM_PROMPTS + 1).astype(int)).tolist()),
        confidence=confidence,
        draft_token=np.where(agrees, target[:, None], target[:, None] + 1).astype(np.int32),
        target_token=target,
        accept_prob=agrees.astype(np.float32),
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
        draft=DraftGeometry(kind="separate", model=model, exit_layers=EXIT_LAYERS),
        draft_sha256=None,
        target=model,
        target_sha256=None,
        tokenizer_sha256=None,
        sampling=GREEDY,
        confidence="max-prob",
        max_new_tokens=max(num_positions),
        eos_token_id=None,
        prompts=tuple(
            TracedPrompt(name=f"{i}", category="made up", prompt_tokens=64, num_positions=number, distinct_6gram_frac=1.0)
            for i, number in enumerate(num_positions)
        ),
    )


def mixed_policies(rng: np.random.Generator, number: int) -> list[ExitPolicy]:
    """Policies over every exit subset in turn, thresholds, floors and caps drawn at random."""
    subsets = [subset for size in range(1, 5) for subset in combinations(EXIT_LAYERS, size)]
    policies = []
    for i in range(number):
        layers, cap = subsets[i % len(subsets)], int(rng.integers(1, 13))
        rules: tuple[LengthRule, ...] = (
            FixedLength(draft_cap=cap),
            FloorStop(draft_cap=cap, floor=float(rng.uniform(0, 0.5))),
            SurvivalStop(draft_cap=cap, floor=float(rng.uniform(0, 0.6)), calibration=(CURVE,) * len(layers)),
            HeuristicLength(start=min(5, cap), draft_cap=cap),
        )
        thresholds = tuple(rng.random(len(layers) - 1).tolist())
        policies.append(ExitPolicy(exit_layers=layers, thresholds=thresholds, confidence="max-prob", length=rules[i % 4]))
    return policies


def price(kind: PassKind, stage: int, rows: int) -> tuple[float, float]:
    """Any price will do."""
    return 1e-4 * (1 + rows) + 1e-5 * stage, 1e-7 * len(kind)


def replay_and_price_s(trace: AcceptanceTrace, policies: list[ExitPolicy]) -> float:
    """Seconds to replay and price all the policies once."""
    begin = perf_counter()
    seconds = replay_many(trace, policies).seconds(price)
    elapsed_s = perf_counter() - begin
    assert np.isfinite(seconds).all()
    return elapsed_s


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    rng = np.random.default_rng(SEED)
    trace, policies = synthetic_trace(rng), mixed_policies(rng, NUM_POLICIES)
    single = [policy for policy in policies if len(policy.exit_layers) == 1]
    replay_and_price_s(trace, policies[:64])
    rates = {
        name: [len(group) / replay_and_price_s(trace, group) for _ in range(5 if args.quick else 25)]
        for name, group in (("all", policies), ("one exit", single))
    }
    rows = [
        (name, f"{median(found):.0f}", f"{quantile(found, 0.25):.0f}", f"{quantile(found, 0.75):.0f}")
        for name, found in rates.items()
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
    finish(NAME, result, libraries=("numpy",), seed=SEED)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
