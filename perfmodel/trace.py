"""What every exit of a draft would have said, at every position of the target's own text.

Positions are the tokens the target emitted. For a position, each exit is asked with the true prefix before it; as the
ladder is exact, no policy changes the answers, so any policy can be replayed on them.

Shapes: P positions (all prompts one after another), E exits (all of the draft's).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfmodel.geometry import DraftGeometry, ModelGeometry
from perfmodel.policy import Confidence
from perfmodel.sampling import Sampling

TRACE_SCHEMA = "s2d/acceptance-trace"
TRACE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPrompt:
    """One prompt of a trace."""

    name: str
    category: str
    prompt_tokens: int
    num_positions: int
    """Tokens the target emitted after it, the end-of-text token included if it came."""
    distinct_6gram_frac: float
    """Distinct 6-grams over all 6-grams of the emitted text: below about 0.5 the text loops, which flatters acceptance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceHeader:
    """What a trace was taken of."""

    draft: DraftGeometry
    draft_sha256: str | None
    """Hash of the weights; None, like the two below, where agreement was derived from a publication, with no weights at hand."""
    target: ModelGeometry
    target_sha256: str | None
    tokenizer_sha256: str | None
    sampling: Sampling
    confidence: Confidence
    max_new_tokens: int
    eos_token_id: int | None
    prompts: tuple[TracedPrompt, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AcceptanceTrace:
    """A header and its columns."""

    header: TraceHeader
    confidence: NDArray[np.float32]  # [P, E]
    draft_token: NDArray[np.int32]  # [P, E]
    target_token: NDArray[np.int32]  # [P]
    accept_prob: NDArray[np.float32]  # [P, E]; sum(min(p, q)) under the ratio test, 0 or 1 under the exact rules

    def __post_init__(self) -> None:
        positions = sum(prompt.num_positions for prompt in self.header.prompts)
        exits = len(self.header.draft.exit_layers)
        expected = {"confidence": (positions, exits), "draft_token": (positions, exits), "accept_prob": (positions, exits)}
        for name, shape in (expected | {"target_token": (positions,)}).items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"trace column {name}: shape {getattr(self, name).shape}, expected {shape}")

    def subset(self, prompts: range | list[int]) -> AcceptanceTrace:
        """The trace of some of its prompts, by zero-based number, in the order given."""
        bounds = np.cumsum([0, *(prompt.num_positions for prompt in self.header.prompts)])
        kept = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in prompts])
        return AcceptanceTrace(
            header=replace(self.header, prompts=tuple(self.header.prompts[i] for i in prompts)),
            confidence=self.confidence[kept],
            draft_token=self.draft_token[kept],
            target_token=self.target_token[kept],
            accept_prob=self.accept_prob[kept],
        )
