"""Compare outputs with plain decoding, and each token with the teacher-forced target."""

from collections.abc import Sequence

import torch

from perfmodel.policies.sampling import Sampling
from perfmodel.results.report import Check, Divergence
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.generate import Generation
from s2d.decoding.pair import ModelPair, Pair
from s2d.decoding.process_logits import LogitsProcessor
from s2d.model.choose_tokens import NoiseTable, new_noise_table
from s2d.model.finite import check_logits, naming_prompt


def compare_outputs(
    pair: Pair,
    prompts: Sequence[EncodedPrompt],
    sampling: Sampling,
    outputs: Sequence[Generation],
    plain_outputs: Sequence[Generation],
) -> Check:
    """Compare each output with plain decoding, and compute the logit gap of each token.

    The gap of a token is the target's largest logit at its position minus the token's logit, both teacher-forced. Under shared
    noise the position's noise is added to both. It is 0 for the target's own choice, and near 0 for a near-tie that another
    kernel may decide otherwise.
    """
    noise = new_noise_table(sampling, pair.target.decoder.vocab_size, pair.target.decoder.device)
    if noise is not None:
        lengths = (len(prompt.token_ids) + len(output.tokens) for prompt, output in zip(prompts, outputs, strict=True))
        noise.grow(max(lengths))
    divergences, worst_gap, num_equal = [], 0.0, 0
    for prompt, output, plain in zip(prompts, outputs, plain_outputs, strict=True):
        with naming_prompt(prompt.name):
            gaps = logit_gaps(pair, prompt.token_ids, output.tokens, sampling, noise)
        worst_gap = max(worst_gap, *gaps)
        if output.tokens == plain.tokens:
            num_equal += 1
            continue
        position = first_difference(output.tokens, plain.tokens)
        gap = gaps[position] if position < len(gaps) else 0.0
        divergences.append(Divergence(prompt=prompt.name, position=position, gap=gap))
    return Check(num_prompts=len(prompts), num_equal=num_equal, worst_gap=worst_gap, divergences=tuple(divergences))


@torch.inference_mode()
def logit_gaps(
    pair: ModelPair, prompt_ids: Sequence[int], tokens: Sequence[int], sampling: Sampling, noise: NoiseTable | None = None
) -> list[float]:
    """The logit gap of each new token; see `compare_outputs`.

    Args:
        pair: the models.
        prompt_ids: the prompt.
        tokens: the new tokens.
        sampling: how the tokens were chosen.
        noise: the noise table of this sampling; None creates one for this text.

    Raises:
        NotFinite: the target's logits are not finite.
    """
    text = [*prompt_ids, *tokens]
    depth = pair.target.geometry.num_layers
    logits = pair.target.decoder.all_exit_logits(text[:-1], (depth,))[0][len(prompt_ids) - 1 :]  # [new tokens, V]
    check_logits(logits, "target", pair.target.decoder)
    logits = LogitsProcessor(sampling, len(prompt_ids))(logits, text[:-1], len(prompt_ids)).float()
    if noise is None:
        noise = new_noise_table(sampling, logits.shape[-1], logits.device)
    if noise is not None:
        logits = logits + noise.rows(len(prompt_ids), len(text))
    emitted = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    # The gap of a token excluded by top-k or top-p is infinite. Files hold finite numbers only.
    return (logits.amax(-1) - emitted).clamp(max=torch.finfo(torch.float32).max).tolist()


def first_difference(tokens: Sequence[int], other: Sequence[int]) -> int:
    """The first position at which two different texts differ; the shorter length if one is a prefix of the other."""
    for position, (token, other_token) in enumerate(zip(tokens, other, strict=False)):
        if token != other_token:
            return position
    return min(len(tokens), len(other))
