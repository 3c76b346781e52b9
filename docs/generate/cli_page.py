"""docs/reference/cli.md: the help of every command and subcommand."""

import contextlib
import importlib
import io
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HELP_COLUMNS = "100"


def cli_page() -> str:
    """docs/reference/cli.md: the help of every console command and of its subcommands."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    parts = ["# Commands\n\nMade from each command's `--help` by `python -m docs.generate`.\n"]
    for name, entry in scripts.items():
        parts.extend(help_sections(name, entry))
    return "\n".join(parts)


def help_sections(name: str, entry: str) -> Iterator[str]:
    text = help_text(entry, ())
    yield section(name, text)
    for subcommand in subcommands(text):
        yield section(f"{name} {subcommand}", help_text(entry, (subcommand,)))


def section(title: str, text: str) -> str:
    return f"## {title}\n\n```\n{text.rstrip()}\n```\n"


def subcommands(text: str) -> list[str]:
    """The verbs listed in the help."""
    return re.findall(r"^ {4}([a-z-]+)", text.partition("\n  VERB\n")[2].partition("\n\n")[0], re.MULTILINE)


def help_text(entry: str, subcommand: tuple[str, ...]) -> str:
    """What the command prints for --help, run in this process at a fixed width and without colours."""
    module, _, function = entry.partition(":")
    printed = io.StringIO()
    os.environ.update(COLUMNS=HELP_COLUMNS, NO_COLOR="1")
    with contextlib.redirect_stdout(printed):
        code = getattr(importlib.import_module(module), function)([*subcommand, "--help"])
    assert code == 0, f"{entry} --help ended with {code}"
    return printed.getvalue()
