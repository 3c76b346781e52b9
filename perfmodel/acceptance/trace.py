"""Acceptance traces: what each exit predicts at each position of the target's text.

Positions are the tokens the target emitted. At each position, every exit predicts the next token from the true prefix. The
ladder of exits is exact, so no policy changes these predictions, and any policy can be replayed on them. Tokens drafted after
a rejected token have no true prefix; a second, small trace covers them (`perfmodel.acceptance.off_path_trace`).

Shapes: P positions (all prompts one after another), E exits (all exits of the draft), M prompts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from numbers import Integral
from typing import Any, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel.acceptance.off_path_trace import OffPath
from perfmodel.core.disk import PathLike
from perfmodel.core.errors import BadPolicy, BadValue, UserInputError, one_line
from perfmodel.core.files import ArraysFormat, FileFormat
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Frac, Tokens, format_frac
from perfmodel.models.geometry import DraftGeometry, DraftKind, ModelGeometry, check_exit_layers
from perfmodel.policies.policy import Confidence
from perfmodel.policies.sampling import GREEDY, Sampling

MAX_NEW_TOKENS = 2**24
"""Longer than any context, and small enough for 32-bit arithmetic."""
TARGET_TOKEN, OTHER_TOKEN, END_TOKEN = 0, 1, 2
"""Placeholder token ids of a trace without text: the target's token, any other token, the end of a text."""

_COLUMN_DTYPES = {"confidence": "float32", "draft_token": "int32", "target_token": "int32", "accept_prob": "float32"}
_OFF_PATH_DTYPES = {"position": "int32", "exit": "int32", "confidence": "float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPrompt:
    """One prompt of a trace."""

    name: str
    category: str
    prompt_tokens: int
    num_positions: int
    """Tokens the target emitted after the prompt, an end-of-text token included."""
    distinct_6gram_frac: float | None
    """Distinct 6-grams over all 6-grams of the emitted text; None without a text. Below about 0.5 the text loops, which makes
    acceptance look better than it is."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.num_positions < 1:
            raise ValueError(f"prompt {self.name!r}: at least one token before and one emitted, got {self!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceHeader:
    """The models, settings and prompts of a trace. None is unknown; replay needs none of the optional parts."""

    draft_kind: DraftKind
    exit_layers: tuple[int, ...]
    """Layer counts of the draft's exits, rising."""
    draft_model: ModelGeometry | None
    draft_sha256: str | None
    """Hash of the draft's weights."""
    target_model: ModelGeometry | None
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
        check_exit_layers(self.exit_layers)
        if self.draft_model is not None:
            _ = self.draft  # which checks the exits

    @property
    def draft(self) -> DraftGeometry:
        """The draft's geometry.

        Raises:
            UserInputError: it is unknown.
        """
        model = _known(self.draft_model, "draft_model")
        return DraftGeometry(kind=self.draft_kind, model=model, exit_layers=self.exit_layers)

    @property
    def target(self) -> ModelGeometry:
        """The target's geometry.

        Raises:
            UserInputError: it is unknown.
        """
        return _known(self.target_model, "target_model")

    def with_draft(self, draft: DraftGeometry, sha256: str | None) -> TraceHeader:
        """The header of the same acceptance with another draft that has as many exits."""
        return replace(self, draft_kind=draft.kind, exit_layers=draft.exit_layers, draft_model=draft.model, draft_sha256=sha256)


def _known(model: ModelGeometry | None, name: str) -> ModelGeometry:
    if model is None:
        role = name.removesuffix("_model")
        raise UserInputError(
            f"the trace has no geometry of its {role}: expected one, which seconds and memory depend on. Give {role}= to "
            f"s2d.plan or {name}= to Trace.from_arrays, or record a trace with s2d-profile acceptance."
        )
    return model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Trace:
    """The predictions of every exit at every position of the target's own text.

    Example:
        >>> trace = s2d.Trace.from_arrays([[0.9, 0.8], [0.2, 0.7]], [[True, True], [False, True]], exits=(6, 12))
        >>> trace
        Trace(2 positions of 1 prompt, greedy, exits 6/12 agree 50.0 %/100.0 %)
        >>> trace.save("own.npz")
        >>> s2d.Trace.load("own.npz").header == trace.header
        True
    """

    header: TraceHeader
    confidence: NDArray[np.float32]  # [P, E]
    draft_token: NDArray[np.int32]  # [P, E]
    target_token: NDArray[np.int32]  # [P]
    accept_prob: NDArray[np.float32]  # [P, E]; sum(min(p, q)) under the ratio test, 0 or 1 under the exact rules
    off_path: OffPath

    def __post_init__(self) -> None:
        positions = sum(prompt.num_positions for prompt in self.header.prompts)
        by_exit = (positions, len(self.header.exit_layers))
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

    def __repr__(self) -> str:
        header = self.header
        prompts = f"{len(header.prompts)} prompt{'s' if len(header.prompts) != 1 else ''}"
        exits = ("exit " if len(header.exit_layers) == 1 else "exits ") + "/".join(map(str, header.exit_layers))
        agreement = "/".join(map(format_frac, self.accept_prob.mean(axis=0).tolist())) if len(self.target_token) else "none"
        return f"Trace({len(self.target_token)} positions of {prompts}, {header.sampling.label}, {exits} agree {agreement})"

    @staticmethod
    def load(path: PathLike) -> Trace:
        """Read a trace from a file by `save` or `s2d-profile`.

        Raises:
            BadFile: the file is not a complete trace.
        """
        return TRACE_FILE.read(path).record

    def save(self, path: PathLike) -> None:
        """Write the trace as a file (`.npz`), whole or not at all.

        Raises:
            UserInputError: the file cannot be written.
        """
        TRACE_FILE.write(path, self, make_provenance(argv=("Trace.save",)))

    @classmethod
    def from_arrays(
        cls,
        confidence: ArrayLike,
        agrees: ArrayLike,
        exits: Sequence[int],
        *,
        prompts: Sequence[int] | Sequence[str] | None = None,
        prompt_tokens: Tokens | Sequence[Tokens] = 1,
        max_new_tokens: Tokens | None = None,
        sampling: Sampling = GREEDY,
        confidence_measure: Confidence = "max-prob",
        draft_kind: DraftKind = "separate",
        draft_model: ModelGeometry | None = None,
        target_model: ModelGeometry | None = None,
    ) -> Self:
        """A trace from your own arrays, with a row for each token of the target's text and a column for each exit.

        A text shorter than `max_new_tokens` ends with an end-of-text token. Token ids are placeholders.

        Args:
            confidence: each exit's confidence in the next token, from the true prefix; 0 to 1. [P, E].
            agrees: whether the target accepts each exit's token. Under `sampling` by the ratio test, the probability that
                it does, sum(min(p, q)). [P, E].
            exits: layer counts of the exits, rising; one for each column.
            prompts: number of rows of each prompt; or the prompt's name in each row, where rows of one prompt follow each
                other. None is one prompt.
            prompt_tokens: tokens of each prompt. They count as cached tokens of passes, so they change seconds only.
            max_new_tokens: limit of each text; None is the length of the longest text.
            sampling: how the target chose its tokens.
            confidence_measure: how the confidence was computed.
            draft_kind: `self` for exits of the target itself, which share its layers.
            draft_model: the draft's geometry, to price its passes; None is unknown.
            target_model: the target's geometry, to price its passes; None is unknown.

        Raises:
            BadValue: shapes that do not fit each other, or a value outside its range.
            BadPolicy: the exits are not rising layer counts.

        Example:
            >>> trace = s2d.Trace.from_arrays([[0.9], [0.8], [0.7], [0.6]], [[1], [1], [0], [1]], exits=(6,))
            >>> s2d.replay(trace, s2d.Policy(exits=(6,), tokens=2)).tokens_per_round
            2.0
        """
        exits = _layers(exits)
        if confidence_measure not in get_args(Confidence):
            expected = ", ".join(map(repr, get_args(Confidence)))
            raise BadValue(f"confidence_measure is {confidence_measure!r}, expected one of {expected}")
        by_exit = _fractions("confidence", confidence, len(exits))
        accept_prob = _fractions("agrees", agrees, len(exits))
        if by_exit.shape != accept_prob.shape:
            raise BadValue(f"agrees has shape {accept_prob.shape}, expected {by_exit.shape}, the shape of confidence")
        if sampling.rule != "ratio" and not np.isin(accept_prob, (0, 1)).all():
            raise BadValue(
                f"agrees holds values between 0 and 1 under rule {sampling.rule!r}, expected 0 or 1. Acceptance probabilities "
                'need sampling=Sampling(rule="ratio", ...).'
            )
        runs = _prompt_runs(prompts, len(by_exit))
        lengths_given = [prompt_tokens] * len(runs) if isinstance(prompt_tokens, int | np.integer) else prompt_tokens
        known_tokens = [int(tokens) for tokens in lengths_given]
        if len(known_tokens) != len(runs):
            raise BadValue(f"prompt_tokens has {len(known_tokens)} entries, expected one for each of the {len(runs)} prompts")
        if min(known_tokens) < 1:
            raise BadValue(f"prompt_tokens holds {min(known_tokens)}, expected at least 1 token in each prompt")
        lengths = np.array([length for _, length in runs])
        limit = int(lengths.max()) if max_new_tokens is None else max_new_tokens
        if limit < lengths.max():
            raise BadValue(f"max_new_tokens is {limit}, expected at least {lengths.max()}, the length of the longest text")
        target_token = np.full(len(by_exit), TARGET_TOKEN, np.int32)
        target_token[(np.cumsum(lengths) - 1)[lengths < limit]] = END_TOKEN
        header = TraceHeader(
            draft_kind=draft_kind,
            exit_layers=exits,
            draft_model=draft_model,
            draft_sha256=None,
            target_model=target_model,
            target_sha256=None,
            tokenizer_sha256=None,
            sampling=sampling,
            confidence=confidence_measure,
            max_new_tokens=limit,
            eos_token_id=END_TOKEN if (lengths < limit).any() else None,
            prompts=tuple(
                TracedPrompt(name=name, category="", prompt_tokens=tokens, num_positions=length, distinct_6gram_frac=None)
                for (name, length), tokens in zip(runs, known_tokens, strict=True)
            ),
        )
        return cls(
            header=header,
            confidence=by_exit,
            draft_token=np.where(accept_prob == 1, target_token[:, None], OTHER_TOKEN).astype(np.int32),
            target_token=target_token,
            accept_prob=accept_prob,
            off_path=OffPath.empty(len(exits)),
        )

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
    def columns(self) -> dict[str, NDArray[Any]]:
        """All columns by their names in a file."""
        columns = {name: getattr(self, name) for name in _COLUMN_DTYPES}
        return columns | {f"off_path_{name}": getattr(self.off_path, name) for name in _OFF_PATH_DTYPES}

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

    def subset(self, prompts: Iterable[int]) -> Trace:
        """The trace with some of its prompts, by zero-based number, in the order given."""
        bounds, numbers = self._bounds, list(prompts)
        kept = [np.arange(bounds[number], bounds[number + 1]) for number in numbers]
        return self._with(replace(self.header, prompts=tuple(self.header.prompts[number] for number in numbers)), kept)

    def shortened(self, max_new_tokens: Tokens) -> Trace:
        """The trace as it would be with this limit of new tokens: later tokens do not change earlier ones."""
        kept = [np.arange(begin, min(begin + max_new_tokens, end)) for begin, end in pairwise(self._bounds.tolist())]
        prompts = tuple(
            prompt if prompt.num_positions == len(rows) else self._shortened_prompt(prompt, rows)
            for prompt, rows in zip(self.header.prompts, kept, strict=True)
        )
        limit = min(max_new_tokens, self.header.max_new_tokens)
        return self._with(replace(self.header, max_new_tokens=limit, prompts=prompts), kept)

    def without_first(self, num_tokens: Tokens) -> Trace:
        """The trace as it would be if the first tokens of every text belonged to its prompt.

        Args:
            num_tokens: fewer than the shortest text has.
        """
        kept = [np.arange(begin + num_tokens, end) for begin, end in pairwise(self._bounds.tolist())]
        prompts = tuple(
            replace(
                self._shortened_prompt(prompt, rows),
                prompt_tokens=prompt.prompt_tokens + num_tokens,
            )
            for prompt, rows in zip(self.header.prompts, kept, strict=True)
        )
        limit = self.header.max_new_tokens - num_tokens
        return self._with(replace(self.header, max_new_tokens=limit, prompts=prompts), kept)

    def _shortened_prompt(self, prompt: TracedPrompt, rows: NDArray[np.int64]) -> TracedPrompt:
        has_text = prompt.distinct_6gram_frac is not None
        distinct = distinct_ngram_frac(self.target_token[rows].tolist()) if has_text else None
        return replace(prompt, num_positions=len(rows), distinct_6gram_frac=distinct)

    @property
    def _bounds(self) -> NDArray[np.int64]:
        """First row of each prompt, and the number of rows. [M + 1]."""
        return np.cumsum([0, *(prompt.num_positions for prompt in self.header.prompts)])

    def _with(self, header: TraceHeader, kept: list[NDArray[np.int64]]) -> Trace:
        """The trace with another header and some rows of each prompt."""
        rows = np.concatenate(kept)
        return Trace(
            header=header,
            confidence=self.confidence[rows],
            draft_token=self.draft_token[rows],
            target_token=self.target_token[rows],
            accept_prob=self.accept_prob[rows],
            off_path=self.off_path.select(rows, len(self.target_token)),
        )


def _fractions(name: str, values: ArrayLike, num_exits: int) -> NDArray[np.float32]:
    """An array of [P, E] numbers from 0 to 1."""
    try:
        array = np.asarray(values, np.float32)
    except (TypeError, ValueError) as err:
        raise BadValue(f"{name} is not an array of numbers ({one_line(err)}), expected [P, {num_exits}]") from err
    if array.ndim != 2 or not len(array) or array.shape[1] != num_exits:
        raise BadValue(
            f"{name} has shape {array.shape}, expected (P, {num_exits}): a row for each position, a column for each exit"
        )
    if np.isnan(array).any():
        row, column = np.argwhere(np.isnan(array))[0].tolist()
        raise BadValue(f"{name} is NaN in row {row}, column {column}: expected numbers from 0 to 1")
    if array.min() < 0 or array.max() > 1:
        raise BadValue(f"{name} holds values from {array.min():g} to {array.max():g}, expected 0 to 1")
    return array


def _layers(exits: Sequence[int]) -> tuple[int, ...]:
    """The exits as integers."""
    layers = tuple(exits) if isinstance(exits, Iterable) else (exits,)
    if not all(isinstance(layer, Integral) for layer in layers):
        raise BadPolicy(f"exits {exits!r}", "rising layer counts")
    layers = tuple(map(int, layers))
    check_exit_layers(layers)
    return layers


def _prompt_runs(prompts: Sequence[int] | Sequence[str] | None, num_positions: int) -> list[tuple[str, int]]:
    """Name and number of rows of each prompt."""
    if prompts is None:
        return [("prompt-0", num_positions)]
    if all(isinstance(entry, str) for entry in prompts):
        runs = [(str(name), len(list(rows))) for name, rows in groupby(prompts)]
        if len(prompts) != num_positions:
            raise BadValue(f"prompts has {len(prompts)} names, expected one for each of the {num_positions} rows")
        if len({name for name, _ in runs}) != len(runs):
            repeated = next(name for number, (name, _) in enumerate(runs) if name in {other for other, _ in runs[:number]})
            raise BadValue(f"prompts: rows of {repeated!r} do not follow each other, expected each prompt's rows together")
        return runs
    if not all(isinstance(entry, Integral) for entry in prompts):
        raise BadValue(
            "prompts holds other values than integers, or strings only: expected the rows of each prompt or its names"
        )
    lengths = [int(length) for length in prompts]
    if min(lengths, default=0) < 1 or sum(lengths) != num_positions:
        raise BadValue(
            f"prompts has lengths that add up to {sum(lengths)}, the shortest {min(lengths, default=0)}: expected at least 1 "
            f"each, and {num_positions} in all, the rows of confidence"
        )
    return [(f"prompt-{number}", length) for number, length in enumerate(lengths)]


def _check_values(trace: Trace) -> None:
    """Check that fractions lie from 0 to 1, and that the exact rules accept a token if and only if it is the target's."""
    for name in ("confidence", "accept_prob", "off_path_confidence"):
        column = trace.columns[name]
        if ((column < 0) | (column > 1)).any():
            raise ValueError(f"trace column {name}: values from {column.min()} to {column.max()}, expected 0 to 1")
    limits = {"off_path_position": len(trace.target_token) - 1, "off_path_exit": trace.confidence.shape[1] - 1}
    for name, largest in limits.items():
        column = trace.columns[name]
        if ((column < 0) | (column > largest)).any():
            raise ValueError(f"trace column {name}: from {column.min()} to {column.max()}, expected 0 to {largest}")
    is_equal = trace.draft_token == trace.target_token[:, None]
    if trace.header.sampling.rule != "ratio" and (trace.accept_prob != is_equal).any():
        rule = trace.header.sampling.rule
        raise ValueError(f"trace column accept_prob: under rule {rule!r} expected 1 where draft_token is target_token, else 0")


def distinct_ngram_frac(tokens: Sequence[int], size: int = 6) -> Frac:
    """Distinct n-grams over all n-grams; 1 if none repeats, or if the text is shorter than `size` tokens."""
    grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


TRACE_FILE = ArraysFormat(
    record=Trace,
    header=FileFormat(record=TraceHeader, schema="s2d/acceptance-trace", made_with="s2d-profile acceptance"),
    dtypes=_COLUMN_DTYPES | {f"off_path_{name}": dtype for name, dtype in _OFF_PATH_DTYPES.items()},
)
