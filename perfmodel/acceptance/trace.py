"""What every exit of a draft would have said, at every position of the target's own text.

Positions are the tokens the target emitted. For a position, each exit is asked with the true prefix before it; as the
ladder is exact, no policy changes the answers, so any policy can be replayed on them. What is drafted after a mistake has no
true prefix; a second, small trace tells of it (`perfmodel.acceptance.off_path_trace`).

Shapes: P positions (all prompts one after another), E exits (all of the draft's).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from perfmodel.acceptance.off_path_trace import OffPath
from perfmodel.core.files import ArraysFormat, FileFormat
from perfmodel.core.units import Frac, Tokens
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.policies.policy import Confidence
from perfmodel.policies.sampling import Sampling

MAX_NEW_TOKENS = 2**24
"""Longer than any context, and small enough for 32-bit arithmetic."""

_COLUMN_DTYPES = {"confidence": "float32", "draft_token": "int32", "target_token": "int32", "accept_prob": "float32"}
_OFF_PATH_DTYPES = {"position": "int32", "exit": "int32", "confidence": "float32"}


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

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens <= MAX_NEW_TOKENS:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, expected 1 to {MAX_NEW_TOKENS}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """A header and its columns."""

    header: TraceHeader
    confidence: NDArray[np.float32]  # [P, E]
    draft_token: NDArray[np.int32]  # [P, E]
    target_token: NDArray[np.int32]  # [P]
    accept_prob: NDArray[np.float32]  # [P, E]; sum(min(p, q)) under the ratio test, 0 or 1 under the exact rules
    off_path: OffPath

    def __post_init__(self) -> None:
        positions = sum(prompt.num_positions for prompt in self.header.prompts)
        by_exit = (positions, len(self.header.draft.exit_layers))
        recorded = len(self.off_path)
        expected = {
            "confidence": by_exit,
            "draft_token": by_exit,
            "target_token": (positions,),
            "accept_prob": by_exit,
            "off_path_position": (recorded,),
            "off_path_exit": (recorded,),
            "off_path_confidence": (recorded, by_exit[1]),
        }
        for name, column in self.columns.items():
            if column.shape != expected[name]:
                raise ValueError(f"trace column {name}: shape {column.shape}, expected {expected[name]}")

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """All columns by their names in a file."""
        columns = {name: getattr(self, name) for name in _COLUMN_DTYPES}
        return columns | {f"off_path_{name}": getattr(self.off_path, name) for name in _OFF_PATH_DTYPES}

    @classmethod
    def from_columns(cls, header: TraceHeader, columns: Mapping[str, NDArray[Any]]) -> Self:
        """The trace with these columns, as `columns` names them.

        Raises:
            ValueError: a shape does not fit the header, or a value is impossible.
        """
        trace = cls(
            header=header,
            **{name: columns[name] for name in _COLUMN_DTYPES},
            off_path=OffPath(**{name: columns[f"off_path_{name}"] for name in _OFF_PATH_DTYPES}),
        )
        _check_values(trace)
        return trace

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """Whether the target accepts each exit's token: its acceptance probability lies above a number in [0, 1). [P, E].

        Under the exact rules the number is 1/2. Under the ratio test it is drawn from the run's seed and the prompt's name. It
        is the same for every policy, and does not depend on the other prompts of the trace.
        """
        sampling, prompts = self.header.sampling, self.header.prompts
        if sampling.rule != "ratio":
            return self.accept_prob > 0.5
        seeds = [(sampling.seed or 0, zlib.crc32(prompt.name.encode())) for prompt in prompts]
        drawn = [np.random.default_rng(seed).random(p.num_positions) for seed, p in zip(seeds, prompts, strict=True)]
        accepted: NDArray[np.bool_] = self.accept_prob > np.concatenate(drawn)[:, None]
        return accepted

    def subset(self, prompts: range | list[int]) -> Trace:
        """The trace of some of its prompts, by zero-based number, in the order given."""
        bounds = self._bounds
        kept = [np.arange(bounds[i], bounds[i + 1]) for i in prompts]
        return self._with(replace(self.header, prompts=tuple(self.header.prompts[i] for i in prompts)), kept)

    def shortened(self, max_new_tokens: Tokens) -> Trace:
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

    def _with(self, header: TraceHeader, kept: list[NDArray[np.int64]]) -> Trace:
        """Another header, and some positions of each of its prompts."""
        places = np.concatenate(kept)
        return Trace(
            header=header,
            confidence=self.confidence[places],
            draft_token=self.draft_token[places],
            target_token=self.target_token[places],
            accept_prob=self.accept_prob[places],
            off_path=self.off_path.select(places, len(self.target_token)),
        )


def _check_values(trace: Trace) -> None:
    """Fractions are fractions, and under the exact rules a token is accepted if and only if it is the target's own."""
    for name in ("confidence", "accept_prob", "off_path_confidence"):
        column = trace.columns[name]
        if ((column < 0) | (column > 1)).any():
            raise ValueError(f"trace column {name}: values from {column.min()} to {column.max()}, expected 0 to 1")
    most = {"off_path_position": len(trace.target_token) - 1, "off_path_exit": trace.confidence.shape[1] - 1}
    for name, largest in most.items():
        column = trace.columns[name]
        if ((column < 0) | (column > largest)).any():
            raise ValueError(f"trace column {name}: from {column.min()} to {column.max()}, expected 0 to {largest}")
    is_equal = trace.draft_token == trace.target_token[:, None]
    if trace.header.sampling.rule != "ratio" and (trace.accept_prob != is_equal).any():
        rule = trace.header.sampling.rule
        raise ValueError(f"trace column accept_prob: under rule {rule!r} expected 1 where draft_token is target_token, else 0")


def distinct_ngram_frac(tokens: Sequence[int], size: int = 6) -> Frac:
    """Distinct n-grams over all of them: 1 when nothing repeats, or when the text is shorter than one."""
    grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


TRACE_FILE = ArraysFormat(
    record=Trace,
    header=FileFormat(record=TraceHeader, schema="s2d/acceptance-trace", made_with="s2d-profile acceptance"),
    dtypes=_COLUMN_DTYPES | {f"off_path_{name}": dtype for name, dtype in _OFF_PATH_DTYPES.items()},
)
