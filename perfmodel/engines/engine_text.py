"""An engine as text: what it executes, then its options, metrics, constraints and known-bad combinations with their sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from perfmodel.core.blocks import Block, Command, Facts, Table

if TYPE_CHECKING:
    from perfmodel.engines.engine import Engine, Source

GENERATED_ONLY = "no: commands are generated from documentation"
_RULES = {
    "ratio": "ratio test: min(1, p/q)",
    "target-sample-match": "a drafted token equals the token sampled from the target",
    "target-probability": "the target's probability of the draft's argmax",
    "unsound": "unsound: the output does not have the target's distribution",
    "none": "refused",
}


def executes(engine: Engine) -> str:
    """What of a policy an engine executes: `K, K by batch`."""
    if engine.runs_exits:
        return "any policy"
    parts = ["K"]
    if engine.max_draft_tokens is not None:
        parts = [f"K up to {engine.max_draft_tokens}"]
    if engine.has_tokens_by_batch:
        parts.append("K by batch")
    if engine.floor is not None and engine.floor.is_recommended:
        parts.append(f"floor of {engine.floor.measure}")
    if engine.has_trees:
        parts.append("trees")
    return ", ".join(parts)


def default_length(engine: Engine) -> str:
    """The draft length and floor that apply if the user gives only a draft."""
    length = "must be given" if engine.default_draft_tokens is None else str(engine.default_draft_tokens)
    return length if engine.default_floor is None else f"{length}, floor {engine.default_floor:g}"


def list_blocks(engines: Iterable[Engine]) -> Sequence[Block]:
    """All engines, one a line."""
    rows = [
        (
            engine.name,
            engine.versions,
            executes(engine),
            "the plan's" if engine.runs_exits else default_length(engine),
            ", ".join(engine.devices),
            "yes" if engine.run_here else "no",
        )
        for engine in engines
    ]
    headers = ("engine", "versions", "executes", "K if not given", "devices", "run by us")
    return (
        Table(rows, headers=headers, align="llllll"),
        Command("s2d-engines show llama.cpp", label="one engine, with its options and sources: "),
    )


def engine_blocks(engine: Engine, *, explain: bool) -> Sequence[Block]:
    """An engine as blocks: its facts, and with `explain` every option, metric, constraint and known-bad combination."""
    facts = Facts(_facts(engine))
    return (facts, *_details(engine)) if explain else (facts,)


def _facts(engine: Engine) -> list[tuple[str, str]]:
    floor = engine.floor
    floor_text = "none"
    if floor is not None:
        token = "keeps" if floor.keeps_token else "drops"
        use = "" if floor.is_recommended else "; never used by plans: it does not work as documented"
        floor_text = f"compares {floor.measure}, {token} the token below it{use}"
    batch = "any batch" if engine.max_batch is None else f"batch {engine.max_batch} with a draft"
    return [
        ("engine", f"{engine.title} (--engine {engine.name}{_also(engine)})"),
        ("package", engine.package),
        ("versions", engine.versions),
        ("executes", f"{executes(engine)}; {batch}"),
        ("K if not given", "the plan's" if engine.runs_exits else default_length(engine)),
        ("floor", floor_text),
        ("sampling", _RULES[engine.sampling_rule]),
        ("round", round_text(engine)),
        ("loads", f"{engine.checkpoint} files; weights {', '.join(engine.weights)}"),
        ("devices", ", ".join(engine.devices)),
        ("run by us", engine.run_here or GENERATED_ONLY),
    ]


def round_text(engine: Engine) -> str:
    """The passes of one round of K drafted tokens."""
    shape = engine.round_shape
    parts = ["K draft passes and one verification of K + 1 rows"]
    if shape.rereads_block:
        parts.append("then the draft reads the block again, K + 1 rows")
    if shape.starts_with_block:
        parts.append("the first draft pass reads the verified block again, up to K + 2 rows")
    if shape.catches_up_apart:
        parts.append("one more draft pass after a fully accepted block")
    if shape.drafts_past_limit:
        parts.append("the last block of a text has K tokens too")
    return "; ".join(parts)


def _also(engine: Engine) -> str:
    return f", also {', '.join(engine.aliases)}" if engine.aliases else ""


def _details(engine: Engine) -> list[Block]:
    """Tables of all facts, and the list of sources that their last column numbers."""
    sources: dict[Source, int] = {}

    def number(source: Source) -> str:
        return f"[{sources.setdefault(source, len(sources) + 1)}]"

    options = [(o.role, o.name, o.default or "-", o.note, number(o.source)) for o in engine.options]
    metrics = [(m.role, m.name, m.where, m.note, number(m.source)) for m in engine.metrics]
    constraints = [(c.check, c.text, number(c.source)) for c in engine.constraints]
    bad = [(k.when, k.effect, k.instead, number(k.source)) for k in engine.known_bad]
    tables = [
        _table("options", options, ("for", "option", "default", "note", "source")),
        _table("metrics", metrics, ("counts", "name", "where", "note", "source")),
        _table("constraints", constraints, ("check", "condition", "source")),
        _table("known bad", bad, ("when", "effect", "instead", "source")),
    ]
    listed = Facts([(f"[{index}]", f"{source.document} ({source.version})") for source, index in sources.items()])
    return [*(table for table in tables if table.rows), listed]


def _table(title: str, rows: Sequence[Sequence[str]], headers: Sequence[str]) -> Table:
    return Table(rows, headers=headers, align="l" * len(headers), title=title)
