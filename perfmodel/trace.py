"""What every exit of a draft would have said, at every position of the target's own text.

Positions are the tokens the target emitted. For a position, each exit is asked with the true prefix before it; as the
ladder is exact, no policy changes the answers, so any policy can be replayed on them.

Shapes: P positions (all prompts one after another), E exits (all of the draft's).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from perfmodel.artifact import Stored, read_arrays, write_arrays
from perfmodel.disk import PathLike
from perfmodel.errors import BadFile
from perfmodel.geometry import DraftGeometry, ModelGeometry, with_llama_layers, with_whole_heads
from perfmodel.policy import Confidence
from perfmodel.provenance import Provenance
from perfmodel.repetition import distinct_ngram_frac
from perfmodel.sampling import Sampling, with_sampling_unpenalised
from perfmodel.units import Tokens

TRACE_SCHEMA = "s2d/acceptance-trace"
TRACE_VERSION = 4

_COLUMN_DTYPES = {"confidence": np.float32, "draft_token": np.int32, "target_token": np.int32, "accept_prob": np.float32}
_UPGRADES = {1: with_llama_layers, 2: with_whole_heads, 3: with_sampling_unpenalised}
_REMAKE = "Record the trace again with s2d-profile acceptance"


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

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.num_positions < 1:
            raise ValueError(f"prompt {self.name!r}: at least one token before and one emitted, got {self!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceHeader:
    """What a trace was taken of."""

    draft: DraftGeometry
    draft_sha256: str | None
    """Hash of the weights; None, like the two below, where agreement was derived from a publication."""
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
        by_exit = (positions, len(self.header.draft.exit_layers))
        expected = {"confidence": by_exit, "draft_token": by_exit, "target_token": (positions,), "accept_prob": by_exit}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"trace column {name}: shape {getattr(self, name).shape}, expected {shape}")

    def subset(self, prompts: range | list[int]) -> AcceptanceTrace:
        """The trace of some of its prompts, by zero-based number, in the order given."""
        bounds = self._bounds
        kept = [np.arange(bounds[i], bounds[i + 1]) for i in prompts]
        return self._with(replace(self.header, prompts=tuple(self.header.prompts[i] for i in prompts)), kept)

    def shortened(self, max_new_tokens: Tokens) -> AcceptanceTrace:
        """What the trace would have been of so many new tokens at most: nothing that comes later changes what was before."""
        kept = [np.arange(begin, min(begin + max_new_tokens, end)) for begin, end in pairwise(self._bounds.tolist())]
        prompts = tuple(
            prompt
            if prompt.num_positions == len(places)
            else replace(
                prompt,
                num_positions=len(places),
                distinct_6gram_frac=distinct_ngram_frac(self.target_token[places].tolist()),
            )
            for prompt, places in zip(self.header.prompts, kept, strict=True)
        )
        most = min(max_new_tokens, self.header.max_new_tokens)
        return self._with(replace(self.header, max_new_tokens=most, prompts=prompts), kept)

    @property
    def _bounds(self) -> NDArray[np.int64]:
        """Where the positions of each prompt begin, and the end. [prompts + 1]."""
        return np.cumsum([0, *(prompt.num_positions for prompt in self.header.prompts)])

    def _with(self, header: TraceHeader, kept: list[NDArray[np.int64]]) -> AcceptanceTrace:
        """Another header, and some positions of each of its prompts."""
        places = np.concatenate(kept)
        return AcceptanceTrace(
            header=header,
            confidence=self.confidence[places],
            draft_token=self.draft_token[places],
            target_token=self.target_token[places],
            accept_prob=self.accept_prob[places],
        )


def write_trace(path: PathLike, trace: AcceptanceTrace, provenance: Provenance) -> None:
    """Write a trace as `.npz`, whole or not at all."""
    columns = {name: getattr(trace, name).astype(dtype) for name, dtype in _COLUMN_DTYPES.items()}
    write_arrays(path, trace.header, columns, schema=TRACE_SCHEMA, version=TRACE_VERSION, provenance=provenance)


def read_trace(path: PathLike) -> Stored[AcceptanceTrace]:
    """Read a trace back.

    Raises:
        BadFile: not a whole trace, columns of other types or lengths than its header says, or no probabilities.
    """
    stored = read_arrays(
        path, TraceHeader, schema=TRACE_SCHEMA, version=TRACE_VERSION, names=_COLUMN_DTYPES, upgrades=_UPGRADES
    )
    for name, dtype in _COLUMN_DTYPES.items():
        if stored.arrays[name].dtype != dtype:
            raise BadFile(path, f"trace column {name}: of {stored.arrays[name].dtype}, expected {np.dtype(dtype)}", _REMAKE)
    try:
        trace = AcceptanceTrace(header=stored.record, **stored.arrays)
        _check_values(trace)
    except ValueError as err:
        raise BadFile(path, str(err), _REMAKE) from err
    return Stored(record=trace, provenance=stored.provenance, sha256=stored.sha256)


def _check_values(trace: AcceptanceTrace) -> None:
    """Fractions are fractions, and under the exact rules a token is accepted if and only if it is the target's own."""
    for name in ("confidence", "accept_prob"):
        column = getattr(trace, name)
        if ((column < 0) | (column > 1)).any():
            raise ValueError(f"trace column {name}: values from {column.min()} to {column.max()}, expected 0 to 1")
    is_equal = trace.draft_token == trace.target_token[:, None]
    if trace.header.sampling.rule != "ratio" and (trace.accept_prob != is_equal).any():
        rule = trace.header.sampling.rule
        raise ValueError(f"trace column accept_prob: under rule {rule!r} expected 1 where draft_token is target_token, else 0")
