"""The tables of docs/benchmarks.md: what the last full run of every script measured, and where."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.generate.marks import with_part
from perfmodel.core.units import format_frac, format_number, format_seconds

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MOST_ROWS = 24
"""Longer results are shown in part; the file has the rest."""


def with_benchmark_tables(page: str) -> str:
    """The page with one section per kept result."""
    sections = [section(path) for path in sorted(RESULTS.glob("*.json")) if not path.name.endswith(".quick.json")]
    return with_part(page, "benchmark-tables", "\n\n".join(sections))


def section(path: Path) -> str:
    """A result as a table, under the question that its script answers."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    provenance = kept["provenance"]
    rows = [f"| {key} | {value_text(key, value)} |" for key, value in flat(kept["result"])]
    if len(rows) > MOST_ROWS:
        rows = [*rows[:MOST_ROWS], f"| … | {len(rows) - MOST_ROWS} more in benchmarks/results/{path.name} |"]
    return "\n".join(
        [
            f"## {path.stem}",
            "",
            question(provenance["command"].split()[0]),
            "",
            f"`python benchmarks/{provenance['command']}`, {where_text(provenance, kept.get('waited_frac'))}",
            "",
            "| key | value |",
            "|---|---:|",
            *rows,
        ]
    )


def question(script: str) -> str:
    """The first line of the script's docstring."""
    docstring = ast.get_docstring(ast.parse((ROOT / "benchmarks" / script).read_text(encoding="utf-8"))) or ""
    return docstring.splitlines()[0]


def where_text(provenance: dict[str, Any], waited_frac: float | None) -> str:
    """Day, commit, machine, and the share of the time that other programs had the processors."""
    commit, _, dirty = (provenance["git_commit"] or "unknown").partition("-")
    parts = [provenance["utc_time"][:10], f"commit {commit[:7]}{'-dirty' if dirty else ''}"]
    parts.append(provenance["device"] or provenance["host"])
    if waited_frac is not None:
        parts.append(f"waited {format_frac(waited_frac)}")
    return ", ".join(parts)


def flat(result: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Numbers and words of a result; keys of nested tables joined by dots, lists left out."""
    for key, value in result.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            yield f"{prefix}{key}", value


def value_text(key: str, value: object) -> str:
    """A value in its unit, which the last part of its key names."""
    if value is None:
        return "not measured"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if "_frac" in key:
        return format_frac(value)
    if "_per_s" in key:
        return f"{value:,.0f}"
    if key.rpartition(".")[2].endswith("_s"):
        return format_seconds(value)
    return f"{value:,}" if isinstance(value, int) else format_number(value)
