"""Let the draft go on after some of its mistakes, and ask every exit what it says there: the second, small trace.

The whole text goes through the draft once. Then, from the last mistake to the first, what comes after is forgotten, the
mistaken token takes its place, and the draft goes on from it token by token, as the exit that made the mistake chooses; all
exits are asked at each.
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
"""As long as drafts are, mostly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A token that an exit drafts and the target refuses."""

    step: int
    """Position in the written text, zero-based."""
    exit: int
    token: int


def prompt_seed(prompt_name: str) -> int:
    """What is recorded of a prompt does not depend on the prompts beside it."""
    return zlib.crc32(prompt_name.encode())


def draw_mistakes(accept_prob: NDArray[np.float32], name: str, most: int) -> list[tuple[int, int]]:
    """Steps and exits of some of a prompt's mistakes, at most one a step: as likely as the token is refused.

    Args:
        accept_prob: [N, E].
        name: of the prompt.
        most: of the mistakes.
    """
    refused = 1 - accept_prob[:-1].astype(np.float64)  # behind the last token nothing was written to compare with
    rng = np.random.default_rng(prompt_seed(name))
    by_step = refused.sum(axis=1)
    number = min(most, int(np.count_nonzero(by_step)))
    if not number:
        return []
    steps = np.sort(rng.choice(len(by_step), number, replace=False, p=by_step / by_step.sum()))
    return [(step, int(rng.choice(refused.shape[1], p=refused[step] / by_step[step]))) for step in steps.tolist()]


@torch.inference_mode()
def record_off_path(
    pair: Pair, verifier: Verifier, text: Sequence[int], prompt_tokens: Tokens, mistakes: Sequence[Mistake]
) -> OffPath:
    """What all exits say behind some mistakes; positions are steps of the written text.

    Args:
        pair: whose draft.
        verifier: how an exit answers.
        text: prompt and what was written after it.
        prompt_tokens: of it.
        mistakes: in it, by rising steps.
    """
    verifier.start(prompt_tokens, len(text))
    draft = pair.draft.decoder
    cache = draft.new_cache(pair.geometry.exit_layers, len(text))
    ladder = Ladder(draft, cache, 0)

    def said_after(tokens: list[int]) -> Iterator[tuple[int, float]]:
        for segment in cache.segments:
            ladder.push((segment,), tokens, len(tokens))
            states = cache.states[segment.index][len(tokens) - 1 : len(tokens)]
            token, confidence = verifier.check_exit(draft, states, tokens, prompt_tokens, segment.index)()
            yield token, check_confidence(confidence, draft)

    for segment in cache.segments:
        ladder.push((segment,), list(text), len(text) - 1)
    position: list[int] = []
    number: list[int] = []
    confidence: list[list[float]] = []
    for mistake in reversed(mistakes):
        known = prompt_tokens + mistake.step
        cache.crop(known)
        tokens = [*text[:known], mistake.token]
        while len(tokens) < min(len(text), known + 1 + TOKENS_PER_MISTAKE) and tokens[-1] != pair.eos_token_id:
            answers = list(said_after(tokens))
            position.append(len(tokens) - prompt_tokens)
            number.append(mistake.exit)
            confidence.append([sure for _, sure in answers])
            tokens.append(answers[mistake.exit][0])
    return OffPath(
        position=np.array(position, np.int32),
        exit=np.array(number, np.int32),
        confidence=np.array(confidence, np.float32).reshape(-1, len(cache.segments)).clip(0, 1),
    )
