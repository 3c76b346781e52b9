"""How fast do `generate` and assisted generation of transformers run at the size of real models?

Target and assistants are Llamas of known shapes with random weights, created on the device in their compute dtype. Calls that
write one token give the time of the prompt's pass. The rest of a longer call are rounds, like plain decoding in `at_scale.py`.
An assistant's own pass over the prompt counts as part of its rounds.

transformers accepts no scripted acceptance. The models are therefore constructed to agree. Matrices that write to the residual
stream are zero, which takes the same time, so the logits depend only on embedding and head, which make the target count
upwards. An assistant does the same at the traced share of tokens of its exit, drawn once per token, and skips one number
elsewhere. Drafted tokens thus agree as often as in the trace, but independently of each other, and every arm must write the
same numbers. Assistants are the first layers of the traced draft, one per exit, at constant lengths. Their confidence is
always near 1, so a threshold would never stop a draft.

Example: python benchmarks/generate_at_scale.py --target llama-2-7b --device cuda
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import LlamaConfig, LlamaForCausalLM

from details.scale_models import acceptance_of, draft_of, tiny
from perfmodel.acceptance.trace import Trace
from perfmodel.core.console import add_verbose_flag, print_out, run_command, table
from perfmodel.core.errors import UserInputError
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import GIB, Frac, Seconds, Tokens, format_bytes, format_frac, format_number, format_speedup
from perfmodel.models.dtypes import Dtype
from perfmodel.models.find_model import find_model
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.flops_bytes import kv_cache_bytes
from perfmodel.quantisation.weight_format import model_weight_bytes, plain_format
from profiler.machine.machine_facts import device_facts
from s2d.decoding.random_pair import with_layers
from s2d.loading.memory import free_device_bytes
from s2d.model.torch_device import device_key, use_device
from s2d.model.torch_dtypes import torch_dtype
from shared.common import add_device_flags, finish, make_parser, median, use_one_thread
from shared.transformers_arms import CONSTANT_SETTINGS, HF_ASSISTED, HF_GENERATE, AssistedSetting, assistant_config

NAME = "generate_at_scale"
SEED = 20261123
FULL_PROMPT_TOKENS, FULL_NEW_TOKENS, FULL_REPEATS = 512, 128, 2
QUICK_PROMPT_TOKENS, QUICK_NEW_TOKENS, QUICK_REPEATS = 32, 24, 1
GENERATE_BYTES = GIB
"""Reserve for memory of transformers and libraries, besides weights and caches."""
SPECIAL = {"eos_token_id": None, "pad_token_id": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Assistant:
    """The draft up to one exit."""

    exit_layer: int
    agreement_frac: Frac
    """Share of tokens after which it predicts the target's token."""
    model: LlamaForCausalLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to decode, and its calls."""

    assistant: Assistant | None
    setting: AssistedSetting | None
    seconds: list[Seconds] = field(default_factory=list)
    target_passes: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name, as in `speed.py`."""
        if self.assistant is None or self.setting is None:
            return HF_GENERATE
        return f"{HF_ASSISTED}, exit {self.assistant.exit_layer}, {self.setting.name}"


def counting_llama(
    geometry: ModelGeometry, dtype: Dtype, device: torch.device, max_tokens: Tokens, successor: Tensor
) -> LlamaForCausalLM:
    """A Llama of transformers with its own head. After every token it predicts the token's successor.

    Args:
        geometry: its shapes.
        dtype: of its weights.
        device: where to create it.
        max_tokens: of the longest text.
        successor: int64 [V].

    Raises:
        UserInputError: it does not fit in the device's memory.
    """
    untied = replace(geometry, tied_embeddings=False)
    needed = (
        model_weight_bytes(untied, plain_format(dtype))
        + kv_cache_bytes(untied, plain_format(dtype), max_tokens)
        + GENERATE_BYTES
    )
    free = free_device_bytes(device)
    if needed > free:
        raise UserInputError(
            f"{geometry.name} takes {format_bytes(needed)}, and {device} has {format_bytes(free)} left. Give a larger "
            "--device, a smaller --dtype or fewer --layers."
        )
    config = LlamaConfig(
        vocab_size=untied.vocab_size,
        hidden_size=untied.hidden_size,
        intermediate_size=untied.intermediate_size,
        num_hidden_layers=untied.num_layers,
        num_attention_heads=untied.num_heads,
        num_key_value_heads=untied.num_kv_heads,
        head_dim=untied.head_dim,
        max_position_embeddings=untied.max_context_tokens,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch_dtype(dtype))
    try:
        with device:
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(normalize(model.lm_head.weight.float(), dim=-1))
        model.model.embed_tokens.weight.copy_(model.lm_head.weight[successor.to(device)])
    return model


def successors(vocab_size: int, draws: Tensor, agreement_frac: Frac) -> Tensor:
    """The next number if the draw is below the agreement, otherwise the one after it: float [V] -> int64 [V]."""
    return (torch.arange(vocab_size) + torch.where(draws < agreement_frac, 1, 2)) % vocab_size


def call(target: LlamaForCausalLM, ids: Tensor, new_tokens: Tokens, arm: Arm) -> tuple[Seconds, int]:
    """One greedy call that writes exactly `new_tokens` tokens: its seconds, and the number of target passes."""
    synchronise = torch.cuda.synchronize if ids.device.type == "cuda" else lambda: None
    options = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens, **SPECIAL}
    if arm.assistant is not None and arm.setting is not None:
        arm.assistant.model.generation_config = assistant_config(SPECIAL, arm.setting)
        options["assistant_model"] = arm.assistant.model
    num_passes = 0

    def count(*_: object) -> None:
        nonlocal num_passes
        num_passes += 1

    hook = target.register_forward_hook(count)
    synchronise()
    start_s = time.perf_counter()
    written = target.generate(ids, attention_mask=torch.ones_like(ids), **options)
    synchronise()
    elapsed_s = time.perf_counter() - start_s
    hook.remove()
    numbers = (int(ids[0, -1]) + 1 + torch.arange(new_tokens)) % target.config.vocab_size
    assert written[0, ids.shape[1] :].tolist() == numbers.tolist(), f"{arm.name} does not write the target's numbers"
    return elapsed_s, num_passes


def measure(
    target: LlamaForCausalLM, arms: Sequence[Arm], *, prompt_tokens: Tokens, new_tokens: Tokens, repeats: int
) -> list[Seconds]:
    """Run all arms, alternating between forward and reverse order. Returns the seconds of calls of one token."""
    one_token: list[Seconds] = []
    for number in range(repeats + 1):
        ids = torch.randint(0, target.config.vocab_size, (1, prompt_tokens), device=target.device)
        prompt_s, _ = call(target, ids, 1, arms[0])
        for arm in arms if number % 2 else reversed(arms):
            elapsed_s, num_passes = call(target, ids, new_tokens, arm)
            if number:  # the first calls warm up
                arm.seconds.append(elapsed_s)
                arm.target_passes.append(num_passes)
        if number:
            one_token.append(prompt_s)
    return one_token


def build_arms(
    geometry: ModelGeometry,
    draft: DraftGeometry,
    trace: Trace,
    dtype: Dtype,
    device: torch.device,
    max_tokens: Tokens,
) -> tuple[LlamaForCausalLM, list[Arm]]:
    """The target, and all arms with it."""
    torch.manual_seed(SEED)
    vocab_size = geometry.vocab_size
    draws = torch.rand(vocab_size)

    def counting_model(shapes: ModelGeometry, agreement_frac: Frac) -> LlamaForCausalLM:
        successor = successors(vocab_size, draws, agreement_frac)
        return counting_llama(replace(shapes, vocab_size=vocab_size), dtype, device, max_tokens, successor)

    target, arms = counting_model(geometry, 1.0), [Arm(assistant=None, setting=None)]
    for layer, agreement in zip(draft.exit_layers, trace.accept_prob.mean(axis=0).tolist(), strict=True):
        model = counting_model(with_layers(draft.model, layer), agreement)
        assistant = Assistant(exit_layer=layer, agreement_frac=agreement, model=model)
        arms += [Arm(assistant=assistant, setting=setting) for setting in CONSTANT_SETTINGS]
    return target, arms


def figures_of(arms: Sequence[Arm], *, prompt_s: Seconds, new_tokens: Tokens) -> list[dict[str, Any]]:
    """The figures of each arm."""
    return [
        {
            "arm": arm.name,
            "agreement_frac": arm.assistant.agreement_frac if arm.assistant else None,
            "tokens_per_s": (new_tokens - 1) / (median(arm.seconds) - prompt_s),
            "tokens_per_pass": new_tokens / median(arm.target_passes),
            "call_s": arm.seconds,
        }
        for arm in arms
    ]


def figures_table(figures: Sequence[dict[str, Any]]) -> str:
    """A row per arm."""
    rows = [
        (
            arm["arm"],
            format_number(arm["tokens_per_s"]),
            format_speedup(arm["tokens_per_s"] / figures[0]["tokens_per_s"]),
            "" if arm["agreement_frac"] is None else format_frac(arm["agreement_frac"]),
            f"{arm['tokens_per_pass']:.2f}",
        )
        for arm in figures
    ]
    return table(rows, headers=("arm", "tokens/s, rounds only", "over generate", "agreement", "tokens per target pass"))


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    use_device(args.device)
    use_one_thread()
    device = torch.device(args.device)
    dtype: Dtype = args.dtype or ("bf16" if device.type == "cuda" else "fp32")
    prompt_tokens, new_tokens, repeats = (
        (QUICK_PROMPT_TOKENS, QUICK_NEW_TOKENS, QUICK_REPEATS)
        if args.quick
        else (FULL_PROMPT_TOKENS, FULL_NEW_TOKENS, FULL_REPEATS)
    )
    new_tokens, repeats = args.max_new_tokens or new_tokens, args.repeats or repeats
    if new_tokens < 2 or repeats < 1:
        raise UserInputError(f"--max-new-tokens {new_tokens}, --repeats {repeats}: expected at least 2 and at least 1.")
    known = find_model(args.target)
    geometry = with_layers(tiny(known) if args.quick else known, args.layers)
    acceptance = acceptance_of(args.acceptance, known)
    trace = acceptance.trace
    draft = draft_of(None, geometry, trace.header.draft, is_tiny=args.quick)
    target, arms = build_arms(geometry, draft, trace, dtype, device, prompt_tokens + new_tokens)
    one_token = measure(target, arms, prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats)
    figures, facts = figures_of(arms, prompt_s=median(one_token), new_tokens=new_tokens), device_facts(device)
    print_out(f"{geometry.name}, {dtype} on {facts.label}; assistants of {draft.model.name}\n")
    print_out(figures_table(figures))
    plain, best = figures[0], max(figures[1:], key=lambda arm: float(arm["tokens_per_s"]))
    result = {
        "target": geometry.name,
        "device": device_key(device, dtype, "eager").device,
        "dtype": dtype,
        "acceptance_of": trace.header.target.name,
        "hf_generate_tokens_per_s": plain["tokens_per_s"],
        "best_hf_assisted": best["arm"],
        "best_hf_assisted_tokens_per_s": best["tokens_per_s"],
        "best_hf_assisted_over_generate": best["tokens_per_s"] / plain["tokens_per_s"],
        "best_hf_assisted_tokens_per_pass": best["tokens_per_pass"],
        "one_token_s": median(one_token),
        "new_tokens": new_tokens,
    }
    finish(
        NAME,
        quick=args.quick,
        result=result,
        provenance=make_provenance(
            libraries=("torch", "transformers"),
            device=facts.label,
            driver=facts.driver,
            seed=SEED,
            inputs={"acceptance": acceptance.evidence.sha256 or ""},
        ),
        details={"one_token_s": one_token, "arms": figures},
        folder=args.output,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    target_help = "a known model; with --quick a tiny one of its kind (default: llama-2-7b)"
    add("--target", default="llama-2-7b", metavar="NAME", help=target_help)
    add("--layers", type=int, metavar="N", help="keep its first N layers")
    acceptance_help = "a target with a shipped trace, or trace.npz: the agreement of exits (default: vicuna-7b)"
    add("--acceptance", default="vicuna-7b", metavar="NAME", help=acceptance_help)
    add_device_flags(parser)
    add("--dtype", choices=("fp32", "bf16", "fp16"), help="compute dtype (default: bf16 on a GPU, else fp32)")
    add("--max-new-tokens", type=int, metavar="TOKENS", help=f"new tokens per call (default: {FULL_NEW_TOKENS})")
    add("--repeats", type=int, metavar="N", help=f"measured repeats of every call (default: {FULL_REPEATS})")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
