"""Does speculation ever write a text that the target would not write?

Covers random tiny networks of every architecture of the runtime and, if installed, the reference family, under random exits,
thresholds, stop rules, lengths and prompts. The drafts are the target's own layers, similar and different models, and models
with a reduced head. The tokens of the plain target are compared with those of speculation, greedily and with shared noise,
half of the cases with penalties, in fp32. Captured CUDA graphs run on a simulated GPU (tests/gpu_simulator) and are compared
with the plain text of the CPU.

Prints one row per kind of model, then the JSON line with `num_cases`, `num_mismatches` (greedy), `sampling_cases`,
`sampling_mismatches` (shared noise), `simulated_cases` and `simulated_mismatches` (both rules, on the simulated GPU).
`device_check.py` shows the effect of bf16 on near-ties.

    python benchmarks/lossless.py [--quick]
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle

from perfmodel.core.console import table
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Seconds
from perfmodel.policies.policy import (
    CalibrationCurve,
    ConfidenceFloor,
    HeuristicLength,
    Policy,
    StopRule,
    SurvivalFloor,
)
from perfmodel.policies.sampling import GREEDY, Sampling
from s2d.decoding.generate import Session, Settings
from s2d.loading.convert_weights import with_reduced_head
from s2d.loading.load_model import load_model, load_tokenizer
from s2d.loading.model_folder import FAMILY_FOLDER, FAMILY_PROMPTS
from s2d.model.decoder import Decoder
from s2d.prompt_files.read import read_prompts
from shared import common
from tests.stubs import EOS, VOCAB_SIZE, TinySpec, tiny_model

SEED = 20260801
FULL_CASES = 2000
"""Cases per rule, over all kinds of models."""
SIMULATED_CASES = 300
QUICK_SIMULATED_CASES = 6
QUICK_S: Seconds = 18.0
TINY_EXITS = (1, 2, 4)
TINY_SHAPES = (
    TinySpec(),
    TinySpec(num_kv_heads=2, tied=True, seed=1),
    TinySpec(num_heads=4, num_kv_heads=2, head_dim=24, update_scale=0.25, seed=2),
    TinySpec(family="mistral", rope="yarn", seed=3),
    TinySpec(family="qwen2", tied=True, seed=4),
    TinySpec(family="qwen3", rope="llama3", head_dim=24, seed=5),
)
MAX_CAP = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A tested pair, its prompts and the end-of-text token."""

    name: str
    session: Session
    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    eos_token_id: int | None


def main() -> None:
    from details.lossless_simulated import simulated_cases  # it imports this module

    args = common.make_parser(__doc__ or "").parse_args()
    common.use_one_thread()
    rng = random.Random(SEED)
    cases: Counter[tuple[str, str]] = Counter()
    mismatches: Counter[tuple[str, str]] = Counter()
    accepted: Counter[str] = Counter()
    drafted: Counter[str] = Counter()
    start_s = time.perf_counter()
    subjects = [*tiny_subjects(rng), *family_subjects()]
    for subject in cycle(subjects):
        for sampling in (penalised(GREEDY, rng), penalised(random_noise(rng), rng)):
            equal, blocks = one_case(subject, sampling, rng)
            cases[subject.name, sampling.rule] += 1
            mismatches[subject.name, sampling.rule] += not equal
            drafted[subject.name] += sum(block[0] for block in blocks)
            accepted[subject.name] += sum(block[1] for block in blocks)
        if is_enough(sum(cases.values()) // 2, time.perf_counter() - start_s, quick=args.quick):
            break
    rules = ("greedy", "shared-noise")
    rows = [
        [
            name,
            *(f"{mismatches[name, rule]} of {cases[name, rule]}" for rule in rules),
            f"{accepted[name] / drafted[name]:.2f}" if drafted[name] else "",
        ]
        for name in sorted({subject.name for subject in subjects})
    ]
    print(table(rows, headers=["mismatches", *rules, "accepted share"]))
    simulated, different = simulated_cases(rng, QUICK_SIMULATED_CASES if args.quick else SIMULATED_CASES)
    simulated_rows = [[name, f"{different[name]} of {number}"] for name, number in sorted(simulated.items())]
    print(table(simulated_rows, headers=["on the simulated GPU", "mismatches"]))
    result = {
        "num_cases": total_for_rule(cases, "greedy"),
        "num_mismatches": total_for_rule(mismatches, "greedy"),
        "sampling_cases": total_for_rule(cases, "shared-noise"),
        "sampling_mismatches": total_for_rule(mismatches, "shared-noise"),
        "simulated_cases": simulated.total(),
        "simulated_mismatches": different.total(),
    }
    common.finish(
        "lossless",
        quick=args.quick,
        result=result,
        provenance=make_provenance(libraries=("torch", "transformers"), seed=SEED),
    )


def total_for_rule(counts: Counter[tuple[str, str]], rule: str) -> int:
    """Total over all kinds of models."""
    return sum(number for (_, case_rule), number in counts.items() if case_rule == rule)


def is_enough(num_cases: int, elapsed_s: Seconds, *, quick: bool) -> bool:
    """Whether to stop: after a number of cases, or after a time in a quick run."""
    return elapsed_s > QUICK_S if quick else num_cases >= FULL_CASES


def tiny_subjects(rng: random.Random) -> Iterator[Subject]:
    """Random networks of several shapes and families, with every kind of draft."""
    for spec in TINY_SHAPES:
        target, similar = tiny_model(spec, TINY_EXITS), tiny_model(replace(spec, num_layers=4), TINY_EXITS)
        kept = sorted(rng.sample(range(VOCAB_SIZE), VOCAB_SIZE // 2))
        reduced = Decoder(similar.geometry, with_reduced_head(similar.decoder.weights, kept))
        drafts = {
            "draft of the first layers": similar,
            "the same with a reduced head": replace(similar, decoder=reduced),
            "different draft": tiny_model(TinySpec(num_layers=4, seed=spec.seed + 10), TINY_EXITS),
            "its own layers": None,
        }
        for kind, draft in drafts.items():
            name = f"tiny {spec.family}, {kind}"
            prompts = tuple(tuple(rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 20))) for _ in range(20))
            session = Session(target, draft, 20 + 40)
            yield Subject(name=name, session=session, prompts=prompts, max_new_tokens=40, eos_token_id=EOS)


def family_subjects() -> Iterator[Subject]:
    """Both targets of the reference family, with its draft and drafting for themselves."""
    if not FAMILY_PROMPTS.is_file():
        return
    draft = load_model(FAMILY_FOLDER / "draft", "fp32")
    tokenizer = load_tokenizer(FAMILY_FOLDER / "draft")
    texts = [prompt.text for prompt in read_prompts(FAMILY_PROMPTS)]
    prompts = tuple(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    longest = max(map(len, prompts))
    for name in ("target-16", "target-32"):
        target = load_model(FAMILY_FOLDER / name, "fp32")
        for drafter in (draft, None):
            label = f"ref-{name}, {'its own layers' if drafter is None else 'ref-draft'}"
            session = Session(target, drafter, longest + 64)
            eos = tokenizer.eos_token_id
            yield Subject(name=label, session=session, prompts=prompts, max_new_tokens=64, eos_token_id=eos)


def random_noise(rng: random.Random) -> Sampling:
    return Sampling(
        rule="shared-noise",
        temperature=rng.choice([0.5, 0.8, 1.0, 1.5]),
        top_k=rng.choice([None, None, 5, 50]),
        top_p=rng.choice([None, None, 0.7, 0.95]),
        min_p=rng.choice([None, None, 0.05]),
        seed=rng.randrange(4),
    )


def penalised(sampling: Sampling, rng: random.Random) -> Sampling:
    """The same sampling, in half of the cases with random penalties."""
    if rng.random() < 0.5:
        return sampling
    return replace(
        sampling,
        repetition_penalty=rng.choice([None, 0.9, 1.2, 1.5]),
        presence_penalty=rng.choice([None, 0.5]),
        frequency_penalty=rng.choice([None, 0.3]),
    )


def random_policy(exit_layers: tuple[int, ...], rng: random.Random) -> Policy:
    exits = tuple(sorted(rng.sample(exit_layers, rng.randint(1, len(exit_layers)))))
    cap = rng.randint(1, MAX_CAP)
    order = rng.choice(("on demand", "ahead", "at once")) if len(exits) > 1 else None
    curve = CalibrationCurve(confidence=(0.0, 0.5, 1.0), agreement=(0.2, 0.8, 1.0))
    rules: list[StopRule | None] = [
        None,
        ConfidenceFloor(floor=rng.random(), keeps_token=rng.random() < 0.5),
        SurvivalFloor(floor=rng.random(), calibration=(curve,) * len(exits)),
        HeuristicLength(start=rng.randint(1, cap)),
    ]
    return Policy(
        exits=exits,
        thresholds=tuple(rng.random() for _ in exits[:-1]),
        tokens=cap,
        confidence=rng.choice(["max-prob", "margin", "entropy", "top10-prob"]),
        stop=rng.choice(rules),
        runs_ahead=order == "ahead",
        catches_up_at_once=order == "at once",
    )


def one_case(subject: Subject, sampling: Sampling, rng: random.Random) -> tuple[bool, tuple[tuple[int, int], ...]]:
    """Whether one prompt under one random policy gives the plain target's tokens, and the blocks of the run."""
    prompt = rng.choice(subject.prompts)
    eos = rng.choice([None, subject.eos_token_id])
    new_tokens = rng.randint(1, subject.max_new_tokens)
    policy = random_policy(subject.session.exit_layers, rng)
    plain, speculative = (
        subject.session.generate(
            prompt, Settings(policy=arm_policy, sampling=sampling, max_new_tokens=new_tokens, eos_token_id=eos)
        )
        for arm_policy in (None, policy)
    )
    return plain.tokens == speculative.tokens, speculative.blocks


if __name__ == "__main__":
    main()
