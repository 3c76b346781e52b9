"""Does this device compute what the reference computes, and does speculation write the target's own text on it?

    logits      of random Llamas after every token of a text, against transformers in fp32 on the CPU: the error's RMS over
                the logits' own, of our decoder and, for comparison, of transformers on the device
    lossless    the plain loop's tokens against speculative ones under random policies, for the reference family and for a
                random model that drafts for itself: in fp32 all must be equal
    gaps        in bf16, where a pass of one row and one of several may round a near-tie apart: how far each emitted token's
                logit lies below the teacher-forced target's largest, as a histogram

The last line has `is_correct`: no fp32 mismatch, and errors within the limits below. Ends with exit code 1 where it is false.

Example: python benchmarks/device_check.py --quick
"""

import argparse
import random
import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import RESULTS, finish, make_parser, one_thread
from lossless import random_policy

from perfmodel.console import add_verbose_flag, print_err, print_out, run_command, table
from perfmodel.geometry import DraftGeometry, ModelGeometry
from perfmodel.profile import Dtype
from perfmodel.sampling import GREEDY
from profiler.device import device_facts
from s2d.bench import token_gaps
from s2d.device import check_device
from s2d.generate import Settings
from s2d.load import torch_dtype
from s2d.pair import ModelPair, load_pair
from s2d.prompts import FAMILY_PROMPTS, read_prompts
from s2d.random_pair import random_pair
from tests.stubs import TinySpec, loaded, tiny_llama

NAME = "device_check"
SEED = 20261122
DTYPES: tuple[Dtype, ...] = ("fp32", "bf16")
MAX_FP32_ERROR_FRAC = 1e-4
MAX_BF16_OVER_TRANSFORMERS = 2.0
"""Times the error that transformers has in bf16 on the same device."""
SPECS = (
    TinySpec(),
    TinySpec(num_layers=8, hidden_size=256, intermediate_size=704, num_heads=4, num_kv_heads=2, head_dim=64, vocab_size=512),
)
FULL_CASES, QUICK_CASES = 40, 2
"""Of each pair and dtype."""
TEXT_TOKENS, PROMPT_TOKENS, NEW_TOKENS = 96, 48, 48
GAP_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
RANDOM_TARGET = ModelGeometry(
    name="random",
    num_layers=8,
    hidden_size=256,
    intermediate_size=704,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=1024,
    tied_embeddings=False,
    max_context_tokens=128,
    source="random weights",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsError:
    """One random Llama in one dtype on the device."""

    hidden_size: int
    dtype: Dtype
    ours_frac: float
    transformers_frac: float

    @property
    def is_right(self) -> bool:
        """Whether ours is within its limit."""
        if self.dtype == "fp32":
            return self.ours_frac <= MAX_FP32_ERROR_FRAC
        return self.ours_frac <= MAX_BF16_OVER_TRANSFORMERS * self.transformers_frac


@dataclass(frozen=True, slots=True, kw_only=True)
class Lossless:
    """Texts of one pair in one dtype, written plainly and speculatively."""

    pair: str
    dtype: Dtype
    num_cases: int
    num_mismatches: int
    num_drafted: int
    num_accepted: int
    gaps: Sequence[float]
    """Of every token that speculation emitted."""

    @property
    def histogram(self) -> dict[str, int]:
        """Tokens by gap: 0, then up to each edge, then beyond."""
        labels = ("0", *(f"<={edge:g}" for edge in GAP_EDGES[1:]), f">{GAP_EDGES[-1]:g}")
        counts = [0] * len(labels)
        for gap in self.gaps:
            counts[bisect_left(GAP_EDGES, gap)] += 1
        return dict(zip(labels, counts, strict=True))


@torch.inference_mode()
def logits_errors(device: str) -> list[LogitsError]:
    """Every random Llama in every dtype."""
    found = []
    for spec in SPECS:
        model = tiny_llama(spec)
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(0, spec.vocab_size, (1, TEXT_TOKENS), generator=generator)
        reference = model(ids).logits[0]
        for dtype in DTYPES:
            decoder = loaded(model, (), dtype, device).decoder
            ours = decoder.all_exit_logits(ids[0].tolist(), (spec.num_layers,))[0]
            theirs = tiny_llama(spec).to(device, torch_dtype(dtype))(ids.to(device)).logits[0]
            errors = [_error_frac(one, reference) for one in (ours, theirs)]
            found.append(
                LogitsError(hidden_size=spec.hidden_size, dtype=dtype, ours_frac=errors[0], transformers_frac=errors[1])
            )
    return found


def _error_frac(logits: torch.Tensor, reference: torch.Tensor) -> float:
    difference = logits.float().cpu() - reference
    return float(difference.square().mean().sqrt() / reference.square().mean().sqrt())


def lossless(pair: ModelPair, dtype: Dtype, prompts: Sequence[Sequence[int]], num_cases: int) -> Lossless:
    """Random policies on prompts in turn; the same in every dtype."""
    session, rng = pair.session(PROMPT_TOKENS + NEW_TOKENS), random.Random(SEED)
    mismatches = drafted = accepted = 0
    gaps: list[float] = []
    for number in range(num_cases):
        prompt = prompts[number % len(prompts)]
        arm = Settings(
            policy=random_policy(session.exit_layers, rng), sampling=GREEDY, max_new_tokens=NEW_TOKENS, eos_token_id=None
        )
        plain, found = (session.generate(prompt, one) for one in (replace(arm, policy=None), arm))
        mismatches += plain.tokens != found.tokens
        drafted += found.rounds.num_drafted
        accepted += round(found.rounds.num_accepted)
        gaps += token_gaps(pair, prompt, found.tokens, GREEDY)
    return Lossless(
        pair=pair.label,
        dtype=dtype,
        num_cases=num_cases,
        num_mismatches=mismatches,
        num_drafted=drafted,
        num_accepted=accepted,
        gaps=gaps,
    )


def lossless_of_all(device: str, num_cases: int) -> list[Lossless]:
    """The reference family, and a random model that drafts for itself, in every dtype."""
    found = []
    rng = random.Random(SEED)
    drawn = [[rng.randrange(RANDOM_TARGET.vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(num_cases)]
    itself = DraftGeometry(kind="self", model=RANDOM_TARGET, exit_layers=(4, 6, 7))
    for dtype in DTYPES:
        print_err(f"lossless, {dtype}")
        family = load_pair("ref-target-16", "ref-draft", dtype, device)
        texts = [prompt.text for prompt in read_prompts(FAMILY_PROMPTS)[:num_cases]]
        written = [family.tokenizer(text, add_special_tokens=False)["input_ids"][:PROMPT_TOKENS] for text in texts]
        found.append(lossless(family, dtype, written, num_cases))
        alone = random_pair(RANDOM_TARGET, itself, dtype, device, max_tokens=PROMPT_TOKENS + NEW_TOKENS, seed=SEED)
        found.append(lossless(alone, dtype, drawn, num_cases))
    return found


def result_of(errors: Sequence[LogitsError], texts: Sequence[Lossless]) -> dict[str, object]:
    """The figures that end it."""
    by_dtype = {dtype: [one for one in texts if one.dtype == dtype] for dtype in DTYPES}
    mismatches = {dtype: sum(one.num_mismatches for one in some) for dtype, some in by_dtype.items()}
    return {
        "is_correct": all(one.is_right for one in errors) and not mismatches["fp32"],
        "num_cases": {dtype: sum(one.num_cases for one in some) for dtype, some in by_dtype.items()},
        "num_mismatches": mismatches,
        "worst_gap": {dtype: max(gap for one in some for gap in one.gaps) for dtype, some in by_dtype.items()},
        "worst_logits_error_frac": {dtype: max(one.ours_frac for one in errors if one.dtype == dtype) for dtype in DTYPES},
        "transformers_logits_error_frac": {
            dtype: max(one.transformers_frac for one in errors if one.dtype == dtype) for dtype in DTYPES
        },
    }


def tables(errors: Sequence[LogitsError], texts: Sequence[Lossless]) -> str:
    """Logits, then texts and their gaps."""
    logits = [
        [
            str(one.hidden_size),
            one.dtype,
            f"{one.ours_frac:.1e}",
            f"{one.transformers_frac:.1e}",
            "yes" if one.is_right else "NO",
        ]
        for one in errors
    ]
    rows = [
        [
            one.pair,
            one.dtype,
            f"{one.num_mismatches} of {one.num_cases}",
            f"{one.num_accepted} of {one.num_drafted}",
            *map(str, one.histogram.values()),
        ]
        for one in texts
    ]
    headers = ["pair", "dtype", "other texts", "accepted", *(f"gap {label}" for label in texts[0].histogram)]
    first = table(logits, headers=["hidden size", "dtype", "our error", "transformers'", "within limits"], align="rlrrl")
    return f"{first}\n\n{table(rows, headers=headers, align='ll' + 'r' * (len(headers) - 2))}"


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    check_device(args.device)
    one_thread()
    errors, texts = logits_errors(args.device), lossless_of_all(args.device, QUICK_CASES if args.quick else FULL_CASES)
    facts, result = device_facts(torch.device(args.device)), result_of(errors, texts)
    print_out(f"{facts.label}\n\n{tables(errors, texts)}")
    finish(
        NAME,
        result=result,
        quick=args.quick,
        libraries=("torch", "transformers"),
        device=facts.label,
        driver=facts.driver,
        seed=SEED,
        details={"gaps": [{"pair": one.pair, "dtype": one.dtype, **one.histogram} for one in texts]},
        folder=args.output,
    )
    return 0 if result["is_correct"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="cpu", metavar="NAME", help="torch's name: cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS, metavar="FOLDER", help="where the result goes")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
