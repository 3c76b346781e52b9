"""An engine: a program that serves models, what it can execute of a plan, and its options, metrics and constraints.

Facts differ between versions of an engine. A row of the table holds for the versions it names, and every fact names its source.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.units import Tokens

CheckpointFormat = Literal["huggingface", "gguf", "openvino", "onnx", "mlx"]
"""The files that an engine loads. `huggingface` is a folder with config.json, safetensors and a tokenizer."""
SamplingRule = Literal["ratio", "target-sample-match", "target-probability", "unsound", "none"]
"""When a drafted token is accepted at a temperature above 0. `ratio`: with min(1, p/q), Leviathan et al. `target-sample-match`:
if it equals the token sampled from the target. `target-probability`: with the target's probability of the draft's argmax.
`unsound`: the output does not have the target's distribution. `none`: the engine refuses to sample with a draft."""
OptionRole = Literal[
    "draft-model",
    "method",
    "draft-tokens",
    "confidence-floor",
    "tokens-by-batch",
    "tree",
    "dtype",
    "context",
    "batch",
    "threads",
    "parallelism",
    "synthetic-acceptance",
    "acceptance-rule",
    "metrics",
]
MetricRole = Literal[
    "rounds", "drafted", "accepted", "accepted-by-position", "draft-seconds", "verify-seconds", "seconds", "tokens", "estimate"
]
ConstraintCheck = Literal[
    "same-vocabulary",
    "same-tokenizer",
    "draft-parallelism",
    "greedy-only",
    "single-sequence",
    "context",
    "dtype",
    "architecture",
]
FloorMeasure = Literal["max-prob", "top10-prob"]
"""The confidence that an engine compares with its floor: the largest probability of the whole vocabulary, or of a softmax over
the ten most probable tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a fact about an engine stands."""

    document: str
    """A file of the engine's repository, a documentation page, an issue, or our own measurement."""
    version: str
    """The version or date that the document describes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOption:
    """One option of an engine."""

    role: OptionRole
    name: str
    """As it is written: `--spec-draft-n-max`, `speculative_config.num_speculative_tokens`."""
    default: str | None
    """None: no default, or speculation is off without it."""
    note: str
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetric:
    """One number that an engine reports about speculation."""

    role: MetricRole
    name: str
    where: str
    """`Prometheus`, `the answer's timings`, `get_speculative_stats()`."""
    note: str
    """What the number counts, where it differs from other engines'."""
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A condition that a plan or its files must meet, checked before an export."""

    check: ConstraintCheck
    text: str
    """The condition in words."""
    source: Source
    allowed: tuple[str, ...] = ()
    """Values that meet an `architecture` or `dtype` condition; empty where the condition needs no list."""
    max_difference: int = 0
    """Tokens by which the two vocabularies may differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBad:
    """A combination that loads and then fails, or runs far slower than it should."""

    when: str
    effect: str
    instead: str
    """What to do."""
    source: Source
    weights: tuple[str, ...] = ()
    """Weights with which it happens whatever else is set; empty where it depends on something that a plan does not state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceFloorSupport:
    """How an engine stops drafting at a token of low confidence."""

    measure: FloorMeasure
    keeps_token: bool
    """Whether the token below the floor is still verified. If not, its pass is paid for all the same."""
    is_recommended: bool
    """False: the option does not work as documented, or has no limit of the draft length beside it; plans never use it, and
    `known_bad` has the finding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundShape:
    """The passes of one round of K drafted tokens, where they differ from K draft passes and one verification."""

    rereads_block: bool = False
    """The draft reads the block again in one pass of K + 1 rows after each verification (llama.cpp)."""
    catches_up_apart: bool = False
    """After a fully accepted block, the draft reads its last token in a pass of its own (ONNX Runtime GenAI). Otherwise the
    first draft pass of the next round has two rows."""
    starts_with_block: bool = False
    """The first of the K draft passes reads the verified block again together with the new token, in up to K + 2 rows (vLLM,
    SGLang). `rereads_block` is one pass more, this is a wider pass."""
    drafts_past_limit: bool = False
    """Every block has the full draft length, also the last one of a text, of which the length limit then takes a part (vLLM,
    SGLang). Other engines draft no more than the limit leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine(Printable):
    """A program that serves models: what it can execute of a plan, its options, metrics, constraints and known failures.

    `print(engine)` shows what it executes, `engine.explain()` every fact with its source.
    """

    name: str
    """As `--engine` takes it."""
    aliases: tuple[str, ...]
    title: str
    """As its authors write it."""
    package: str
    """Where it comes from: `PyPI: vllm`."""
    versions: str
    """The versions that this row holds for."""
    checkpoint: CheckpointFormat
    weights: tuple[str, ...]
    """Storage of weights that it loads: `f32`, `bf16`, `f16`, and its own words for quantised weights (`q8_0`, `int4`)."""
    devices: tuple[Literal["cpu", "cuda", "metal"], ...]
    min_draft_tokens: Tokens
    max_draft_tokens: Tokens | None
    """None: no limit is known."""
    default_draft_tokens: Tokens | None
    """Draft length if the user gives a draft and nothing else; None if the user must give one."""
    floor: ConfidenceFloorSupport | None
    """None: no confidence threshold."""
    default_floor: float | None
    """The threshold if the user gives none; None if it is off."""
    has_tokens_by_batch: bool
    """Whether it takes a draft length for each batch size."""
    has_trees: bool
    """Whether it verifies trees drafted by an ordinary draft model."""
    max_batch: int | None
    """Sequences decoded together with a draft; None: no limit but memory."""
    sampling_rule: SamplingRule
    mode: Literal["eager", "graph"]
    """How it launches kernels by default: used to price it where nothing was measured."""
    runs_exits: bool = False
    """Whether it executes every policy: several exits with thresholds, and every stop rule. Other engines serve one exit as an
    ordinary draft model."""
    round_shape: RoundShape = field(default_factory=RoundShape)
    options: tuple[EngineOption, ...] = ()
    metrics: tuple[EngineMetric, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    known_bad: tuple[KnownBad, ...] = ()
    run_here: str | None = None
    """Version with which this project has run it end to end, and where; None: commands are generated from documentation."""

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The engine as blocks of text."""
        from perfmodel.engines.engine_text import engine_blocks

        return engine_blocks(self, explain=explain)

    def option(self, role: OptionRole) -> EngineOption | None:
        """The option of a role; None if the engine has none."""
        return next((option for option in self.options if option.role == role), None)

    def metric(self, role: MetricRole) -> EngineMetric | None:
        """The metric of a role; None if the engine reports none."""
        return next((metric for metric in self.metrics if metric.role == role), None)


EngineTable = Mapping[str, Engine]
"""Engines by name."""
