"""Check what the documentation says of the code: `python tests/check_docs.py [--write]`.

The file tree in README.md names only what exists and leaves out no module; docs/cli.md is the commands' own help; the tables of
docs/hardware.md are those of `perfmodel.hardware.known_hardware`, those of docs/models.md those of `perfmodel.models.known_models`. With
--write, docs/cli.md and these tables are made anew.
"""

import argparse
import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perfmodel.hardware.hardware import Hardware

ROOT = Path(__file__).parent.parent
CLI_PAGE = ROOT / "docs" / "cli.md"
HARDWARE_PAGE = ROOT / "docs" / "hardware.md"
HARDWARE_TABLES = re.compile(r"(?<=<!-- hardware-tables -->\n).*?(?=<!-- /hardware-tables -->)", re.DOTALL)
PEAK_COLUMNS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
HELP_COLUMNS = "100"
TREE_BLOCK = re.compile(r"<!-- file-tree -->\s*```[a-z]*\n(.*?)```", re.DOTALL)
TREE_LINE = re.compile(r"^(?P<indent>(?:[│ ]   |[├└]── )*)(?P<name>[^\s#]+)")
INDENT_CHARS = 4
LISTED_IN_FULL = (
    "perfmodel",
    "perfmodel/replay/native",
    "calibrate",
    "s2d",
    "s2d/prompt_files",
    "profiler",
    "benchmarks",
    "notebooks",
    "docs",
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make docs/cli.md and the tables of the other pages anew")
    args = parser.parse_args(argv)
    from tests.models_page import MODELS_PAGE, models_problems, with_model_tables

    page = cli_page()
    if args.write:
        CLI_PAGE.parent.mkdir(exist_ok=True)
        CLI_PAGE.write_text(page, encoding="utf-8")
        HARDWARE_PAGE.write_text(with_hardware_tables(HARDWARE_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        MODELS_PAGE.write_text(with_model_tables(MODELS_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    problems = [*tree_problems((ROOT / "README.md").read_text(encoding="utf-8"), tracked_files()), *cli_problems(page)]
    problems += hardware_problems(HARDWARE_PAGE.read_text(encoding="utf-8"))
    problems += models_problems(MODELS_PAGE.read_text(encoding="utf-8"))
    for problem in problems:
        print(problem, file=sys.stderr)
    print("documentation and code disagree" if problems else "documentation and code agree")
    return 1 if problems else 0


def tracked_files() -> set[str]:
    """Files that git knows or would add; a file that was deleted but not yet committed is gone."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return {name for name in names if name and (ROOT / name).exists()}


def tree_problems(readme: str, files: set[str]) -> list[str]:
    """What the tree after `<!-- file-tree -->` names and is not there, and the files it should name and does not."""
    block = TREE_BLOCK.search(readme)
    if block is None:
        return ["README.md: no fenced block after <!-- file-tree -->"]
    named = list(tree_paths(block[1]))
    folders = {parent.as_posix() for name in files for parent in Path(name).parents} - {"."}
    gone = [f"README.md: the file tree names {name}, which does not exist" for name in named if name not in files | folders]
    missing = sorted(name for name in files if should_be_named(name) and name not in named)
    return gone + [f"README.md: the file tree leaves out {name}" for name in missing]


def should_be_named(name: str) -> bool:
    """Modules, pages and notebooks directly inside a folder of ours; not the `__init__.py` files, not data."""
    folder, _, file = name.rpartition("/")
    return folder in LISTED_IN_FULL and file != "__init__.py" and Path(file).suffix in (".py", ".c", ".h", ".md", ".ipynb")


def tree_paths(tree: str) -> Iterator[str]:
    """The paths of a drawn tree, or of one indented by four spaces; comments after a name are skipped."""
    parents: list[str] = []
    for line in tree.splitlines():
        match = TREE_LINE.match(line)
        if match is None:
            continue
        depth = len(match["indent"]) // INDENT_CHARS
        parents[depth:] = [match["name"].rstrip("/")]
        yield "/".join(parents)


def cli_page() -> str:
    """docs/cli.md: the help of every console command and of its subcommands."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    parts = ["# Commands\n\nMade from each command's `--help` by `python tests/check_docs.py --write`.\n"]
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
    """The choices of a positional `{a,b}` in the usage lines, and those with a line of their own, `s2d-plan design  …`."""
    usage = text.partition("\n\n")[0]
    found = re.search(r"(?<!\S)\{([a-z,-]+)\} \.\.\.", usage)
    return [*(found[1].split(",") if found else []), *re.findall(r"^s2d-[a-z]+ ([a-z]+)  ", text, re.MULTILINE)]


def help_text(entry: str, subcommand: tuple[str, ...]) -> str:
    """What the command prints for --help, run in this process at a fixed width and without colours."""
    module, _, function = entry.partition(":")
    printed = io.StringIO()
    os.environ.update(COLUMNS=HELP_COLUMNS, NO_COLOR="1")
    with contextlib.redirect_stdout(printed):
        code = getattr(importlib.import_module(module), function)([*subcommand, "--help"])
    assert code == 0, f"{entry} --help ended with {code}"
    return printed.getvalue()


def cli_problems(page: str) -> list[str]:
    if CLI_PAGE.exists() and CLI_PAGE.read_text(encoding="utf-8") == page:
        return []
    return ["docs/cli.md is not what the commands' --help says: run python tests/check_docs.py --write"]


def hardware_problems(page: str) -> list[str]:
    if with_hardware_tables(page) == page and HARDWARE_TABLES.search(page):
        return []
    return [
        "docs/hardware.md: its tables are not those of perfmodel.hardware.known_hardware: run python tests/check_docs.py --write"
    ]


def with_hardware_tables(page: str) -> str:
    """The page with its tables made anew between their two marks."""
    return HARDWARE_TABLES.sub(lambda _: hardware_tables(), page)


def hardware_tables() -> str:
    """Every known device: its figures, then its names and sources."""
    from perfmodel.hardware.known_hardware import KNOWN_HARDWARE

    peaks = " | ".join(PEAK_COLUMNS)
    figures = [f"| device | {peaks} | GB/s | GB | links, GB/s in one direction | kernel costs | error |"]
    figures += ["|---|" + "---:|" * (len(PEAK_COLUMNS) + 2) + "---|---|---:|"]
    figures += [figures_row(hardware) for hardware in KNOWN_HARDWARE]
    sources = ["| device | also found as | source |", "|---|---|---|"]
    sources += [f"| {one.name} | {', '.join(one.aliases)} | {one.spec_source} |" for one in KNOWN_HARDWARE]
    return "\n" + "\n".join([*figures, "", *sources]) + "\n\n"


def figures_row(hardware: "Hardware") -> str:
    peaks = [hardware.peak_flops_per_s.get(dtype) for dtype in PEAK_COLUMNS]
    links = ", ".join(f"{link.kind} {link.bytes_per_s / 1e9:g} ({link.max_devices})" for link in hardware.links)
    costs = "its own" if hardware.similarity == "itself" else f"{hardware.reference_device}, {hardware.similarity}"
    cells = [
        hardware.name,
        *("" if peak is None else f"{peak / 1e12:g}" for peak in peaks),
        f"{hardware.memory_bytes_per_s / 1e9:g}",
        f"{hardware.memory_bytes / 1e9:g}",
        links,
        costs,
        f"{100 * hardware.error_frac:.0f} %",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
