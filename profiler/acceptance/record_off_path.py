"""Record confidences off the target's path: the draft continues after some of its mistakes.

First the whole text passes through the draft. Then, from the last mistake to the first, the cache is cropped before the
mistake, the mistaken token is inserted, and the exit that made the mistake continues to draft from it, token by token. All
exits predict each of these tokens.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from perfmodel.acceptance.off_path_trace import OffPath
from perfmodel.core.units import Tokens
from s2d.decoding.draft import Ladder
from s2d.decoding.pair import Pair
from s2d.decoding.verify import Verifier
from s2d.model.finite import check_confidence

TOKENS_PER_MISTAKE: Tokens = 8
"""Tokens drafted after each mistake: the length of most drafts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A token that an exit drafts and the target refuses."""

    step: int
    """Position in the written text, zero-based."""
    exit: int
    token: int


def prompt_seed(prompt_name: str) -> int:
    """The seed of a prompt's draws. It depends on the name only, so other prompts do not change the recording."""
    return zlib.crc32(prompt_name.encode())


def draw_mistakes(accept_prob: NDArray[np.float32], name: str, max_mistakes: int) -> list[tuple[int, int]]:
    """Draw steps and exits of mistakes, at most one per step, with the probability that the token is refused.

    Args:
        accept_prob: [N, E].
        name: the prompt's name.
        max_mistakes: the maximum number of mistakes.
    """
    refused = 1 - accept_prob[:-1].astype(np.float64)  # after the last token there is no text to compare with
    rng = np.random.default_rng(prompt_seed(name))
    by_step = refused.sum(axis=1)
    num_mistakes = min(max_mistakes, int(np.count_nonzero(by_step)))
    if not num_mistakes:
        return []
    steps = np.sort(rng.choice(len(by_step), num_mistakes, replace=False, p=by_step / by_step.sum()))
    return [(step, int(rng.choice(refused.shape[1], p=refused[step] / by_step[step]))) for step in steps.tolist()]


@torch.inference_mode()
def record_off_path(
    pair: Pair, verifier: Verifier, text: Sequence[int], prompt_tokens: Tokens, mistakes: Sequence[Mistake]
) -> OffPath:
    """Predictions of all exits after some mistakes. Positions are steps of the written text.

    Args:
        pair: the models.
        verifier: chooses the tokens of an exit.
        text: the prompt and the tokens written after it.
        prompt_tokens: the length of the prompt.
        mistakes: mistakes in the text, in ascending order of their steps.
    """
    verifier.start(prompt_tokens, len(text))
    draft = pair.draft.decoder
    cache = draft.new_cache(pair.geometry.exit_layers, len(text))
    ladder = Ladder(draft, cache, 0)

    def predictions_after(tokens: list[int]) -> Iterator[tuple[int, float]]:
        for segment in cache.segments:
            ladder.push((segment,), tokens, len(tokens))
            states = cache.states[segment.index][len(tokens) - 1 : len(tokens)]
            token, confidence = verifier.check_exit(draft, states, tokens, prompt_tokens, segment.index)()
            yield token, check_confidence(confidence, draft)

    for segment in cache.segments:
        ladder.push((segment,), list(text), len(text) - 1)
    position: list[int] = []
    exit_id: list[int] = []
    confidence: list[list[float]] = []
    for mistake in reversed(mistakes):
        known = prompt_tokens + mistake.step
        cache.crop(known)
        tokens = [*text[:known], mistake.token]
        while len(tokens) < min(len(text), known + 1 + TOKENS_PER_MISTAKE) and tokens[-1] != pair.eos_token_id:
            predictions = list(predictions_after(tokens))
            position.append(len(tokens) - prompt_tokens)
            exit_id.append(mistake.exit)
            confidence.append([value for _, value in predictions])
            tokens.append(predictions[mistake.exit][0])
    return OffPath(
        position=np.array(position, np.int32),
        exit=np.array(exit_id, np.int32),
        confidence=np.array(confidence, np.float32).reshape(-1, len(cache.segments)).clip(0, 1),
    )
