"""Does a device compute the reference's logits, and is speculation lossless on it?

    logits      of random Llamas after every token of a text, against transformers in fp32 on the CPU. The error is the RMS of
                the difference over that of the logits, for our decoder and, as a comparison, for transformers on the device
    lossless    the tokens of the plain loop against those of speculation under random policies. Covers both targets of the
                reference family with every kind of draft (own weights, the same with a reduced head, the target's first
                layers), and a random model that drafts for itself. In fp32 all tokens must be equal
    gaps        in bf16, passes of one row and of several rows may round a near-tie differently. A histogram shows how far the
                logit of each emitted token lies below the largest of the teacher-forced target. None may exceed the stated gap
    modes     all checks kernel by kernel and with graphs. The tokens of both are compared with the same teacher-forced
                logits, computed kernel by kernel. On a CPU, passes are not captured, but padded to the same widths

The last line has `is_correct`: no fp32 mismatch, every fp32 token the target's largest except for rounding, no token beyond
the stated gap, and errors within the limits below. If it is false, the exit code is 1.

Example: python benchmarks/device_check.py --quick
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from lossless import random_policy

from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command, table
from perfmodel.core.errors import UserInputError
from perfmodel.core.provenance import make_provenance
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import SELF_DRAFT, DraftGeometry, ModelGeometry, with_reduced_head
from perfmodel.passes.device_key import LaunchMode
from perfmodel.policies.sampling import GREEDY
from perfmodel.results.report import Divergence
from profiler.machine.machine_facts import device_facts
from s2d.decoding.generate import Settings
from s2d.decoding.pair import ModelPair, PairRequest, load_pair
from s2d.decoding.random_pair import random_pair
from s2d.loading import convert_weights
from s2d.loading.load_model import DECODERS
from s2d.loading.memory import PairPlacement, TextLimits
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.model.torch_device import use_device
from s2d.model.torch_dtypes import torch_dtype
from s2d.prompt_files.read import read_prompts
from s2d.running.compare_outputs import first_difference, logit_gaps
from shared.common import add_device_flags, finish, make_parser, use_one_thread
from shared.logit_gaps import GAP_HEADERS, STATED_GAP, Lossless, gap_result
from tests.stubs import TinySpec, loaded, tiny_llama

NAME = "device_check"
SEED = 20261122
DTYPES: tuple[Dtype, ...] = ("fp32", "bf16")
MAX_FP32_ERROR_FRAC = 1e-4
MAX_FP32_GAP = 1e-3
"""In logits: the effect of the order of summation on a tie."""
MAX_BF16_OVER_TRANSFORMERS = 2.0
"""Ratio to the error of transformers in bf16 on the same device."""
SPECS = (
    TinySpec(),
    TinySpec(num_layers=8, hidden_size=256, intermediate_size=704, num_heads=4, num_kv_heads=2, head_dim=64, vocab_size=512),
)
TARGETS = ("ref-target-16", "ref-target-32")
FULL_CASES, QUICK_CASES = 16, 1
"""Cases per pair and dtype."""
TEXT_TOKENS, PROMPT_TOKENS, NEW_TOKENS = 96, 48, 48
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

Subject = tuple[ModelPair, Sequence[Sequence[int]]]
"""A tested pair and its prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsError:
    """The error of one random Llama in one dtype on the device."""

    hidden_size: int
    dtype: Dtype
    ours_frac: float
    transformers_frac: float

    @property
    def is_within_limit(self) -> bool:
        """Whether our error is within its limit."""
        if self.dtype == "fp32":
            return self.ours_frac <= MAX_FP32_ERROR_FRAC
        return self.ours_frac <= MAX_BF16_OVER_TRANSFORMERS * self.transformers_frac


@torch.inference_mode()
def logits_errors(device: str) -> list[LogitsError]:
    """The errors of every random Llama in every dtype."""
    errors = []
    for spec in SPECS:
        model = tiny_llama(spec)
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(0, spec.vocab_size, (1, TEXT_TOKENS), generator=generator)
        reference = model(ids).logits[0]
        for dtype in DTYPES:
            decoder = loaded(model, (), dtype, device).decoder
            ours = decoder.all_exit_logits(ids[0].tolist(), (spec.num_layers,))[0]
            theirs = tiny_llama(spec).to(device, torch_dtype(dtype))(ids.to(device)).logits[0]
            ours_frac, transformers_frac = error_frac(ours, reference), error_frac(theirs, reference)
            errors.append(
                LogitsError(hidden_size=spec.hidden_size, dtype=dtype, ours_frac=ours_frac, transformers_frac=transformers_frac)
            )
    return errors


def error_frac(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """The RMS of the difference over the RMS of the reference."""
    difference = logits.float().cpu() - reference
    return float(difference.square().mean().sqrt() / reference.square().mean().sqrt())


def lossless(pair: ModelPair, dtype: Dtype, prompts: Sequence[Sequence[int]], num_cases: int) -> Lossless:
    """Decode prompts in turn under random policies. The policies are the same in every dtype."""
    session, rng = pair.session(PROMPT_TOKENS + NEW_TOKENS), random.Random(SEED)
    drafted = accepted = 0
    divergences: list[Divergence] = []
    gaps: list[float] = []
    for number in range(num_cases):
        prompt = prompts[number % len(prompts)]
        policy = random_policy(session.exit_layers, rng)
        arm = Settings(policy=policy, sampling=GREEDY, max_new_tokens=NEW_TOKENS, eos_token_id=None)
        plain, speculative = (session.generate(prompt, settings) for settings in (replace(arm, policy=None), arm))
        drafted += speculative.rounds.num_drafted
        accepted += round(speculative.rounds.num_accepted)
        case_gaps = logit_gaps(pair, prompt, speculative.tokens, GREEDY)
        if plain.tokens != speculative.tokens:
            position = first_difference(plain.tokens, speculative.tokens)
            divergences.append(Divergence(prompt=f"case {number}", position=position, gap=case_gaps[position]))
        gaps += case_gaps
    return Lossless(
        pair=pair.label,
        dtype=dtype,
        mode=pair.device_key.mode,
        num_cases=num_cases,
        num_drafted=drafted,
        num_accepted=accepted,
        divergences=divergences,
        gaps=gaps,
    )


def subjects(dtype: Dtype, device: str, mode: LaunchMode, num_prompts: int) -> Iterator[Subject]:
    """Both targets of the reference family with every kind of draft, then a random model that drafts for itself."""
    texts = [prompt.text for prompt in read_prompts(FAMILY_PROMPTS)[:num_prompts]]
    for target in TARGETS:
        whole = load_pair(PairRequest(target=target, draft="ref-draft", dtype=dtype, device=device, mode=mode))
        prompts = [whole.tokenizer(text, add_special_tokens=False)["input_ids"][:PROMPT_TOKENS] for text in texts]
        for pair in (
            whole,
            with_half_a_head(whole),
            load_pair(PairRequest(target=target, draft=SELF_DRAFT, dtype=dtype, device=device, mode=mode)),
        ):
            yield pair, prompts
    yield random_subject(dtype, device, mode, num_prompts)


def random_subject(dtype: Dtype, device: str, mode: LaunchMode, num_prompts: int) -> Subject:
    """A random model that drafts for itself."""
    rng = random.Random(SEED)
    prompts = [[rng.randrange(RANDOM_TARGET.vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(num_prompts)]
    draft = DraftGeometry(kind="self", model=RANDOM_TARGET, exit_layers=(4, 6, 7))
    max_tokens = PROMPT_TOKENS + NEW_TOKENS
    models = PairPlacement(target=RANDOM_TARGET, draft=draft, dtype=dtype, device=torch.device(device), mode=mode)
    text = TextLimits(max_tokens=max_tokens, prompt_tokens=max_tokens, num_noise_tables=0)
    return random_pair(models, text, seed=SEED), prompts


def with_half_a_head(pair: ModelPair) -> ModelPair:
    """The same pair, with a draft that can only predict every other token."""
    kept = range(0, pair.target.geometry.vocab_size, 2)
    whole = pair.geometry.model
    model = replace(with_reduced_head(whole, len(kept)), name=f"{whole.name} with half a head")
    decoder = DECODERS[pair.draft.decoder.mode](model, convert_weights.with_reduced_head(pair.draft.decoder.weights, kept))
    draft = replace(pair.draft, geometry=model, decoder=decoder)
    return replace(pair, draft=draft, geometry=replace(pair.geometry, model=model))


def lossless_of_all(device: str, num_cases: int) -> list[Lossless]:
    """All pairs in every dtype under every mode."""
    results = []
    for dtype, mode in product(DTYPES, DECODERS):
        for pair, prompts in subjects(dtype, device, mode, num_cases):
            print_err(f"{dtype}, {mode}, {pair.label}")
            results.append(lossless(pair, dtype, prompts, num_cases))
    return results


def result_of(errors: Sequence[LogitsError], texts: Sequence[Lossless]) -> dict[str, object]:
    """The summary."""
    gaps = gap_result(texts, DTYPES)
    is_lossless = (
        not gaps["num_mismatches"]["fp32"]
        and gaps["worst_gap"]["fp32"] <= MAX_FP32_GAP
        and not any(gaps["num_beyond_stated_gap"].values())
    )
    return {
        "is_correct": is_lossless and all(error.is_within_limit for error in errors),
        "stated_gap": STATED_GAP,
        **gaps,
        "worst_logits_error_frac": {
            dtype: max(error.ours_frac for error in errors if error.dtype == dtype) for dtype in DTYPES
        },
        "transformers_logits_error_frac": {
            dtype: max(error.transformers_frac for error in errors if error.dtype == dtype) for dtype in DTYPES
        },
    }


def tables(errors: Sequence[LogitsError], texts: Sequence[Lossless]) -> str:
    """A table of logit errors, then a table of texts and their gaps."""
    logits = [
        [
            str(row.hidden_size),
            row.dtype,
            f"{row.ours_frac:.1e}",
            f"{row.transformers_frac:.1e}",
            "yes" if row.is_within_limit else "NO",
        ]
        for row in errors
    ]
    first = table(logits, headers=["hidden size", "dtype", "our error", "transformers'", "within limits"], align="rlrrl")
    second = table([row.as_row for row in texts], headers=GAP_HEADERS, align="lll" + "r" * (len(GAP_HEADERS) - 3))
    return f"{first}\n\n{second}\n\ngaps in logits; stated: at most {STATED_GAP:g}"


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    use_device(args.device)
    if args.cases < 1:
        raise UserInputError(f"--cases {args.cases}: expected at least 1.")
    use_one_thread()
    errors, texts = logits_errors(args.device), lossless_of_all(args.device, QUICK_CASES if args.quick else args.cases)
    facts, result = device_facts(torch.device(args.device)), result_of(errors, texts)
    print_out(f"{facts.label}\n\n{tables(errors, texts)}")
    finish(
        NAME,
        quick=args.quick,
        result=result,
        provenance=make_provenance(libraries=("torch", "transformers"), device=facts.label, driver=facts.driver, seed=SEED),
        details={"texts": [text.as_json for text in texts]},
        folder=args.output,
    )
    return 0 if result["is_correct"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add_device_flags(parser)
    cases_help = f"cases per pair and dtype in a full run (default: {FULL_CASES})"
    parser.add_argument("--cases", type=int, default=FULL_CASES, metavar="CASES", help=cases_help)
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
