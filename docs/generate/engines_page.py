"""The tables of docs/reference/engines.md: what every engine executes, then all facts about each with their sources."""

from collections.abc import Sequence

from docs.generate.marks import with_part
from perfmodel.engines.engine import Engine, Source
from perfmodel.engines.engine_text import GENERATED_ONLY, default_length, executes, round_text
from perfmodel.engines.known_engines import ENGINES


def with_engine_tables(page: str) -> str:
    """The page with its two parts made anew between their marks."""
    page = with_part(page, "engine-table", overview())
    return with_part(page, "engine-facts", "\n\n".join(map(engine_section, ENGINES.values())))


def overview() -> str:
    headers = (
        "engine",
        "versions",
        "executes",
        "K if not given",
        "batch with a draft",
        "above temperature 0",
        "devices",
        "here",
    )
    rows = [
        (
            f"[{engine.name}](#{anchor(engine)})",
            engine.versions,
            executes(engine),
            "the plan's" if engine.runs_exits else default_length(engine),
            "any" if engine.max_batch is None else str(engine.max_batch),
            engine.sampling_rule,
            ", ".join(engine.devices),
            engine.run_here or GENERATED_ONLY,
        )
        for engine in ENGINES.values()
    ]
    return table(headers, rows)


def engine_section(engine: Engine) -> str:
    also = f" Also found as {', '.join(f'`{alias}`' for alias in engine.aliases)}." if engine.aliases else ""
    facts = (
        f"`--engine {engine.name}`. {engine.package}.{also} Loads {engine.checkpoint} files with weights "
        f"{', '.join(f'`{word}`' for word in engine.weights)}. A round: {round_text(engine)}."
    )
    options = [(o.role, f"`{o.name}`", o.default or "", o.note, source_text(o.source)) for o in engine.options]
    metrics = [(m.role, f"`{m.name}`", m.where, m.note, source_text(m.source)) for m in engine.metrics]
    constraints = [(c.check, c.text, source_text(c.source)) for c in engine.constraints]
    bad = [(k.when, k.effect, k.instead, source_text(k.source)) for k in engine.known_bad]
    parts = [
        table(("option for", "name", "default", "note", "source"), options),
        table(("metric", "name", "where", "counts", "source"), metrics),
        table(("check", "condition", "source"), constraints),
        table(("known bad", "effect", "instead", "source"), bad),
    ]
    return "\n\n".join([f"## {heading(engine)}", facts, *(part for part in parts if part)])


def heading(engine: Engine) -> str:
    """The title, from which the anchor is made as GitHub does."""
    return engine.title[:1].upper() + engine.title[1:] if engine.name == "s2d" else engine.title


def anchor(engine: Engine) -> str:
    return "".join(char for char in heading(engine).lower().replace(" ", "-") if char.isalnum() or char in "-_")


def source_text(source: Source) -> str:
    return f"{source.document}, {source.version}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; empty without rows."""
    if not rows:
        return ""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
