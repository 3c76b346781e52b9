"""A 1.1B target and a nested draft with random weights that agree at a known share of tokens, in every engine and precision.

The target has TinyLlama's shape. Its weights are random and none is zero, so that kernels and quantisation have ordinary work.
The residual stream is led by the embedding of a token, which is the head's row of the token's successor: the target counts
upwards. Layers add noise of half the norm of the embedding. The draft has the target's first layers and its head. Its embedding
skips a number at a share of the tokens, drawn once per token. Both exits have the same embedding, so they agree at the same
tokens. Acceptance therefore follows from the construction, without running a model.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from details.engines.evidence import PairEvidence
from details.engines.sizes import EngineSize
from perfmodel.acceptance.trace import Trace
from perfmodel.core.console import print_err
from perfmodel.core.disk import atomic_folder
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Frac, Tokens
from s2d.loading.load_model import load_tokenizer
from s2d.loading.model_folder import FAMILY_PROMPTS, find_model
from s2d.loading.read_config import read_geometry
from s2d.loading.sidecar import Sidecar, write_sidecar
from s2d.prompt_files.read import read_prompts
from s2d.prompts.conversation import Prompt
from s2d.prompts.special_tokens import text_ids

AGREEMENT: Frac = 0.75
EXITS = (2, 4)
_SEED = 7
_NOISE: Frac = 0.5
"""Norm of what all layers add, in norms of the embedding."""
_PROMPT_TOKENS: Tokens = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama-shaped target."""

    num_layers: int = 22
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_heads: int = 32
    num_kv_heads: int = 4
    vocab_size: int = 32_000
    max_context_tokens: Tokens = 2048

    @property
    def head_dim(self) -> int:
        """Of keys and values too."""
        return self.hidden_size // self.num_heads


TINY_LLAMA = Shape()


def counting_evidence(size: EngineSize, folder: Path, shape: Shape = TINY_LLAMA) -> PairEvidence:
    """The pair, its prompts and their traces. The models are made once and kept in a folder. Texts do not overlap."""
    target, draft = folder / "counting-target", folder / "counting-draft"
    for path, num_layers, steps in ((target, shape.num_layers, None), (draft, EXITS[-1], agreed_steps(shape.vocab_size))):
        if not path.exists():
            print_err(f"writing {path.name}")
            _write_model(path, shape, num_layers, steps)
    num_evaluated = max(setting.num_prompts for setting in size.settings)
    prompts = _prompts(load_tokenizer(target), size.traced_prompts + num_evaluated, size.max_new_tokens)
    halves = prompts[: size.traced_prompts], prompts[size.traced_prompts :]
    calibration, evaluation = (_trace(half, size.max_new_tokens, target, draft, shape.vocab_size) for half in halves)
    seen, unseen = (tuple(prompt for prompt, _ in half) for half in halves)
    return PairEvidence(
        target=str(target),
        draft=str(draft),
        exits=EXITS,
        calibration_prompts=seen,
        calibration=calibration,
        evaluation_prompts=unseen,
        evaluation=evaluation,
    )


def agreed_steps(vocab_size: int) -> torch.Tensor:
    """What the draft adds to each token: 1 as the target does, or 2 where it is wrong. [V]."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    return torch.where(torch.rand(vocab_size, generator=generator) < AGREEMENT, 1, 2)


def _trace(
    prompts: Sequence[tuple[Prompt, tuple[int, ...]]], num_tokens: Tokens, target: Path, draft: Path, vocab_size: int
) -> Trace:
    """Acceptance by construction: at every position both exits agree, or neither does."""
    steps = agreed_steps(vocab_size).numpy()
    agrees = np.concatenate([steps[ids[-1] : ids[-1] + num_tokens] == 1 for _, ids in prompts])
    by_exit = np.repeat(agrees[:, None], len(EXITS), axis=1)  # [P, E]
    trace = Trace.from_arrays(
        np.full(by_exit.shape, AGREEMENT),
        by_exit,
        EXITS,
        prompts=[prompt.name for prompt, _ in prompts for _ in range(num_tokens)],
        prompt_tokens=[len(ids) for _, ids in prompts],
        max_new_tokens=num_tokens,
        target_model=read_geometry(target),
        draft_model=read_geometry(draft),
    )
    categories = {prompt.name: prompt.category for prompt, _ in prompts}
    named = tuple(replace(prompt, category=categories[prompt.name]) for prompt in trace.header.prompts)
    return replace(trace, header=replace(trace.header, prompts=named))


def _prompts(tokenizer: PreTrainedTokenizerFast, number: int, max_new_tokens: Tokens) -> list[tuple[Prompt, tuple[int, ...]]]:
    """Prompts of the family, cut at tokens so far apart that the texts counted from them do not overlap.

    Raises:
        UserInputError: there are too few such prompts.
    """
    chosen: list[tuple[Prompt, tuple[int, ...]]] = []
    for prompt in read_prompts(FAMILY_PROMPTS):
        starts = [ids[-1] for _, ids in chosen]
        for cut, ids in _cuts(tokenizer, prompt):
            if all(abs(ids[-1] - start) > max_new_tokens for start in starts):
                chosen.append((cut, ids))
                break
        if len(chosen) == number:
            return chosen
    raise UserInputError(f"{len(chosen)} prompts end far enough apart, expected {number}: run fewer prompts or tokens.")


def _cuts(tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> Iterator[tuple[Prompt, tuple[int, ...]]]:
    """The prompt, cut after one of some tokens, where the cut text encodes to the same tokens."""
    all_ids = text_ids(tokenizer, prompt.text, "parse", adds_special_tokens=True)
    for length in range(_PROMPT_TOKENS, min(3 * _PROMPT_TOKENS, len(all_ids))):
        text = str(tokenizer.decode(all_ids[:length]))
        ids = tuple(text_ids(tokenizer, text, "parse", adds_special_tokens=True))
        if list(ids) == list(all_ids[:length]):
            yield replace(prompt, text=text), ids


def _write_model(path: Path, shape: Shape, num_layers: int, steps: torch.Tensor | None) -> None:
    """Write a target, which counts upwards by 1; or, with steps, a draft that adds its step to each token."""
    family = find_model("ref-target-32")
    with atomic_folder(path) as folder:
        save_file(_weights(shape, num_layers, steps), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(_config(shape, num_layers), indent=1), encoding="utf-8")
        ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        (folder / "generation_config.json").write_text(json.dumps(ids), encoding="utf-8")
        tokenizer = json.loads((family / "tokenizer.json").read_text(encoding="utf-8"))
        known = set(tokenizer["model"]["vocab"].values())
        tokenizer["model"]["vocab"] |= {f"tok{number}": number for number in range(shape.vocab_size) if number not in known}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        shutil.copy(family / "tokenizer_config.json", folder)
        if steps is not None:
            write_sidecar(folder, Sidecar(exit_layers=EXITS, norm="shared-final-norm", calibration=None))


def _weights(shape: Shape, num_layers: int, steps: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Every layer draws from a seed of its own, so that a draft has the target's first layers."""
    head = _random(shape.vocab_size, shape.hidden_size, shape.hidden_size**-0.5, seed=_SEED)  # [V, D]
    step = torch.ones(shape.vocab_size, dtype=torch.long) if steps is None else steps
    successors = head[(torch.arange(shape.vocab_size) + step) % shape.vocab_size]  # [V, D]
    weights = {
        "lm_head.weight": head,
        "model.embed_tokens.weight": (successors.float() * shape.hidden_size**0.5).to(torch.bfloat16),
        "model.norm.weight": torch.ones(shape.hidden_size, dtype=torch.bfloat16),
    }
    for number in range(num_layers):
        weights |= {f"model.layers.{number}.{name}": value for name, value in _layer(shape, number).items()}
    return weights


def _layer(shape: Shape, number: int) -> dict[str, torch.Tensor]:
    hidden, mlp = shape.hidden_size, shape.intermediate_size
    query, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    noise = _NOISE / (2 * shape.num_layers) ** 0.5  # of one sublayer
    sizes = {
        "self_attn.q_proj": (query, hidden, 0.02),
        "self_attn.k_proj": (kv, hidden, 0.02),
        "self_attn.v_proj": (kv, hidden, hidden**-0.5),
        "self_attn.o_proj": (hidden, query, noise * query**-0.5),
        "mlp.gate_proj": (mlp, hidden, hidden**-0.5),
        "mlp.up_proj": (mlp, hidden, hidden**-0.5),
        "mlp.down_proj": (hidden, mlp, 1.7 * noise * mlp**-0.5),  # gate x up has a smaller norm than its inputs
    }
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    weights = {
        f"{name}.weight": _random(*size, seed=_SEED + 100 * (number + 1) + place)
        for place, (name, size) in enumerate(sizes.items())
    }
    return weights | {"input_layernorm.weight": ones, "post_attention_layernorm.weight": ones.clone()}


def _random(rows: int, columns: int, std: float, *, seed: int) -> torch.Tensor:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return (values * std).to(torch.bfloat16)


def _config(shape: Shape, num_layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dtype": "bfloat16",
        "eos_token_id": 0,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_context_tokens,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }
