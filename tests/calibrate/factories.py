"""Synthetic evidence for tests: a trace, latency profiles and reports with known numbers."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from perfmodel.acceptance.off_path_trace import OffPath
from perfmodel.acceptance.trace import TRACE_FILE, Trace, TracedPrompt, TraceHeader
from perfmodel.core.provenance import Provenance, make_provenance
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.kernels import STANDARD_KERNELS
from perfmodel.passes.latency_profile import PROFILE_FILE, LatencyProfile
from perfmodel.passes.passes import PASS_KINDS, PassKind, PassSample, PassSamples
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY
from perfmodel.replay.estimate import Decoded, mean_round_cost, measured_speedup
from perfmodel.replay.replay import replay_prompts
from perfmodel.replay.round_stats import RoundStats
from perfmodel.results.plan import Plan
from perfmodel.results.report import Arm, PromptRun, RunReport

TARGET, DRAFT = find_model("ref-target-16"), find_draft("ref-draft")
TARGET_SHA256, DRAFT_SHA256 = "a" * 64, "b" * 64
CPU = DeviceKey(device="a CPU", num_devices=1, num_threads=1, dtype="fp32", mode="eager", kernels=STANDARD_KERNELS)
SECONDS: dict[PassKind, float] = {
    "segment": 1e-4,
    "exit": 5e-5,
    "ahead": 1e-4,
    "verify": 4e-3,
    "round": 2e-5,
    "draft_prefill": 1e-3,
    "target_prefill": 1e-3,
}
NUM_PROMPTS, NUM_POSITIONS = 6, 64


def provenance() -> Provenance:
    return make_provenance(argv=("test",))


def make_trace(seed: int = 0) -> Trace:
    """A trace in which deeper exits agree more often, and confidence predicts agreement with some error."""
    rng = np.random.default_rng(seed)
    exits, positions = len(DRAFT.exit_layers), NUM_PROMPTS * NUM_POSITIONS
    agreed = rng.random((positions, 1)) < np.linspace(0.5, 0.85, exits)
    confidence = np.clip(np.where(agreed, 0.8, 0.4) + 0.2 * rng.standard_normal((positions, exits)), 0.01, 0.99)
    prompts = tuple(
        TracedPrompt(name=f"{n}.py:1", category="code", prompt_tokens=40, num_positions=NUM_POSITIONS, distinct_6gram_frac=0.9)
        for n in range(NUM_PROMPTS)
    )
    header = TraceHeader(
        draft_kind=DRAFT.kind,
        exit_layers=DRAFT.exit_layers,
        draft_model=DRAFT.model,
        draft_sha256=DRAFT_SHA256,
        target_model=TARGET,
        target_sha256=TARGET_SHA256,
        tokenizer_sha256="c" * 64,
        sampling=GREEDY,
        confidence="max-prob",
        max_new_tokens=NUM_POSITIONS,
        eos_token_id=None,
        prompts=prompts,
    )
    return Trace(
        header=header,
        confidence=confidence.astype(np.float32),
        draft_token=agreed.astype(np.int32),
        target_token=np.ones(positions, dtype=np.int32),
        accept_prob=agreed.astype(np.float32),
        off_path=OffPath.empty(exits),
    )


def with_sure_first_exit(trace: Trace) -> Trace:
    """The same trace with a first exit that is right whenever it is confident, so gating pays at any price of passes."""
    rng, shape = np.random.default_rng(0), trace.confidence.shape
    is_sure, is_right = rng.random(shape[0]) < 0.6, rng.random(shape) < 0.7
    is_right[:, 0] = is_sure
    confidence = 0.5 + 0.05 * rng.random(shape)
    confidence[:, 0] += np.where(is_sure, 0.4, -0.4)
    target_token = trace.target_token[:, None]
    return replace(
        trace,
        confidence=confidence.astype(np.float32),
        draft_token=np.where(is_right, target_token, target_token + 1).astype(np.int32),
        accept_prob=is_right.astype(np.float32),
    )


def make_profile(
    model: ModelGeometry, exit_layers: Sequence[int], sha256: str, beside: str | None, *, is_self_draft: bool = False
) -> LatencyProfile:
    """A profile in which every pass of a kind takes the same time, whatever its rows and cached tokens."""
    shapes: list[tuple[PassKind, int, int]] = [
        ("draft_prefill" if exit_layers and not is_self_draft else "target_prefill", 0, 39)
    ]
    if exit_layers:
        shapes += [("exit", stage, 1) for stage in range(len(exit_layers))]
        shapes += [("segment", stage, rows) for stage in range(len(exit_layers)) for rows in range(1, 15)]
    if not exit_layers or is_self_draft:
        shapes += [("verify", 0, rows) for rows in range(1, 14)] + [("round", 0, rows) for rows in range(14)]
    samples = PassSamples.from_passes(
        PassSample(kind, stage, rows, cached, 1, SECONDS[kind]) for kind, stage, rows in shapes for cached in range(0, 120, 4)
    )
    return LatencyProfile(
        model=model,
        model_sha256=sha256,
        exit_layers=tuple(exit_layers),
        beside=beside,
        device=CPU,
        rule="greedy",
        processing=(),
        samples=samples,
    )


def target_profile() -> LatencyProfile:
    return make_profile(TARGET, (), TARGET_SHA256, DRAFT.model.name)


def draft_profile() -> LatencyProfile:
    return make_profile(DRAFT.model, DRAFT.exit_layers, DRAFT_SHA256, TARGET.name)


def write_profile(path: Path, profile: LatencyProfile) -> Path:
    PROFILE_FILE.write(path, profile, provenance())
    return path


def write_evidence(folder: Path) -> list[str]:
    """The three files of `s2d-profile`, and the flags that name them."""
    TRACE_FILE.write(folder / "trace.npz", make_trace(), provenance())
    write_profile(folder / "target.latency.json", target_profile())
    write_profile(folder / "draft.latency.json", draft_profile())
    profiles = [flag for name in ("target", "draft") for flag in ("--profile", str(folder / f"{name}.latency.json"))]
    return ["--trace", str(folder / "trace.npz"), *profiles]


def make_report(plan: Plan, plan_sha256: str, trace: Trace, *, slower: dict[PassKind, float] | None = None) -> RunReport:
    """A run of a plan over a trace's prompts whose passes take SECONDS, some kinds slower by a factor."""
    factors = slower or {}
    seconds = {kind: SECONDS[kind] * factors.get(kind, 1.0) for kind in PASS_KINDS}
    plan_arm, plain_arm = (make_arm(policy, trace, seconds) for policy in (plan.chosen.policy, None))
    decoded = [
        [Decoded(num_tokens=run.rounds.num_tokens, decode_s=run.decode_s) for run in arm.runs] for arm in (plan_arm, plain_arm)
    ]
    return RunReport(
        plan_sha256=plan_sha256,
        target=TARGET,
        target_sha256=TARGET_SHA256,
        draft=DRAFT,
        draft_sha256=DRAFT_SHA256,
        device=plan.device,
        sampling=GREEDY,
        max_new_tokens=NUM_POSITIONS,
        plan_arm=plan_arm,
        plain_arm=plain_arm,
        measured=measured_speedup(*decoded, mean_round_cost({"verify": 1.0}, num_rounds=1)),
        check=None,
        adaptation=None,
    )


def make_arm(policy: Policy | None, trace: Trace, seconds: dict[PassKind, float]) -> Arm:
    rounds = replay_prompts(trace, policy)
    runs = tuple(
        PromptRun(
            name=prompt.name,
            category=prompt.category,
            prompt_tokens=prompt.prompt_tokens,
            rounds=counts,
            prefill_s=seconds["target_prefill"],
            decode_s=math.fsum(count.num_passes * seconds[count.kind] for count in counts.passes),
            distinct_6gram_frac=0.9,
        )
        for prompt, counts in zip(trace.header.prompts, rounds, strict=True)
    )
    return Arm(policy=policy, runs=runs, samples=samples_of(rounds, seconds))


def samples_of(rounds: Sequence[RoundStats], seconds: dict[PassKind, float]) -> PassSamples:
    """Every pass of the rounds as a sample of its own."""
    return PassSamples.from_passes(
        PassSample(
            count.kind, count.stage, count.rows, round(count.cached_tokens_sum / count.num_passes), 1, seconds[count.kind]
        )
        for stats in rounds
        for count in stats.passes
        for _ in range(count.num_passes)
    )


def at_device(profile: LatencyProfile, **changes: object) -> LatencyProfile:
    """The same profile, taken on another device."""
    return replace(profile, device=replace(profile.device, **changes))  # type: ignore[arg-type]


def unfolded(text: str) -> str:
    """A text without the line breaks of folded prose and of continued commands."""
    return " ".join(text.replace("\\\n", " ").split())
