"""How fast does transformers' `generate` decode at the size of real models?

A Llama of a known model's shape with random weights, built on the device in the dtype it is run in, writes after random
prompts. Calls that write one token alternate with calls that write many: their difference is what the rounds take, without
the prompt's pass, which is what `at_scale.py` calls plain decoding.

Assisted generation is not measured. Models with random weights never agree, `generate` takes no acceptance from outside, and
a speed at an acceptance of 0 says nothing; `speed.py` measures it on real models.

Example: python benchmarks/generate_at_scale.py --target llama-2-7b --device cuda
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from common import RESULTS, finish, make_parser, median, one_thread
from scale_models import tiny
from transformers import LlamaConfig, LlamaForCausalLM

from perfmodel.console import add_verbose_flag, print_out, run_command, table
from perfmodel.errors import UserInputError
from perfmodel.geometry import ModelGeometry, find_model
from perfmodel.profile import Dtype
from perfmodel.units import Seconds, Tokens, format_bytes, format_number, format_seconds
from perfmodel.work import kv_cache_bytes, model_weight_bytes
from profiler.device import device_facts
from s2d.device import device_key, use_device
from s2d.load import torch_dtype
from s2d.random_pair import WORKSPACE_BYTES, free_bytes_of, with_layers

NAME = "generate_at_scale"
SEED = 20261123
FULL_PROMPT_TOKENS, FULL_NEW_TOKENS, FULL_REPEATS = 512, 128, 5
QUICK_PROMPT_TOKENS, QUICK_NEW_TOKENS, QUICK_REPEATS = 32, 24, 2


def random_llama(target: ModelGeometry, dtype: Dtype, device: torch.device, max_tokens: Tokens) -> LlamaForCausalLM:
    """As transformers runs it.

    Raises:
        UserInputError: the device does not hold it.
    """
    needed = model_weight_bytes(target, dtype) + kv_cache_bytes(target, dtype, max_tokens) + WORKSPACE_BYTES
    free = free_bytes_of(device)
    if needed > free:
        raise UserInputError(
            f"{target.name} takes {format_bytes(needed)}, and {device} has {format_bytes(free)} left. Give a larger --device, "
            "a smaller --dtype or fewer --layers."
        )
    config = LlamaConfig(
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        intermediate_size=target.intermediate_size,
        num_hidden_layers=target.num_layers,
        num_attention_heads=target.num_heads,
        num_key_value_heads=target.num_kv_heads,
        head_dim=target.head_dim,
        max_position_embeddings=target.max_context_tokens,
        tie_word_embeddings=target.tied_embeddings,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch_dtype(dtype))
    try:
        with device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def call_s(model: LlamaForCausalLM, ids: torch.Tensor, new_tokens: Tokens) -> Seconds:
    """One greedy call that writes just so many tokens."""
    synchronise = torch.cuda.synchronize if ids.device.type == "cuda" else lambda: None
    synchronise()
    start_s = time.perf_counter()
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens
    )
    synchronise()
    took_s = time.perf_counter() - start_s
    assert written.shape[1] == ids.shape[1] + new_tokens
    return took_s


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    use_device(args.device)
    one_thread()
    device = torch.device(args.device)
    dtype: Dtype = args.dtype or ("bf16" if device.type == "cuda" else "fp32")
    prompt_tokens, new_tokens, repeats = (
        (QUICK_PROMPT_TOKENS, QUICK_NEW_TOKENS, QUICK_REPEATS)
        if args.quick
        else (FULL_PROMPT_TOKENS, FULL_NEW_TOKENS, FULL_REPEATS)
    )
    model = find_model(args.target)
    target = with_layers(tiny(model) if args.quick else model, args.layers)
    torch.manual_seed(SEED)
    llama = random_llama(target, dtype, device, prompt_tokens + new_tokens)
    found: dict[Tokens, list[Seconds]] = {1: [], new_tokens: []}
    for number in range(repeats + 1):
        ids = torch.randint(0, target.vocab_size, (1, prompt_tokens), device=device)
        for many, seconds in found.items():
            took_s = call_s(llama, ids, many)
            if number:  # the first calls warm up
                seconds.append(took_s)
    prompt_s, whole_s = (median(seconds) for seconds in found.values())
    tokens_per_s = (new_tokens - 1) / (whole_s - prompt_s)
    facts = device_facts(device)
    print_out(f"{target.name}, random weights, {dtype} on {facts.label}\n")
    row = ["hf generate", format_number(tokens_per_s), format_seconds(prompt_s), format_seconds(whole_s)]
    print_out(table([row], headers=["arm", "tokens/s of the rounds", "1 token", f"{new_tokens} tokens"]))
    result = {
        "target": target.name,
        "device": device_key(device, dtype, "eager").device,
        "dtype": dtype,
        "hf_generate_tokens_per_s": tokens_per_s,
        "one_token_s": prompt_s,
        "new_tokens": new_tokens,
        "new_tokens_s": whole_s,
    }
    finish(
        NAME,
        result=result,
        quick=args.quick,
        libraries=("torch", "transformers"),
        device=facts.label,
        driver=facts.driver,
        seed=SEED,
        details={"call_s": {str(many): seconds for many, seconds in found.items()}},
        folder=args.output,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    target_help = "a known model; with --quick a tiny one of its kind (default: llama-2-7b)"
    add("--target", default="llama-2-7b", metavar="NAME", help=target_help)
    add("--layers", type=int, metavar="N", help="cut it to its first N layers")
    add("--device", default="cpu", metavar="NAME", help="torch's name: cpu, cuda, cuda:1 (default: cpu)")
    add("--dtype", choices=("fp32", "bf16", "fp16"), help="to compute in (default: bf16 on a GPU, else fp32)")
    add("-o", "--output", type=Path, default=RESULTS, metavar="FOLDER", help="where the result goes")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
