"""Write the generated pages, or check that they are current.

python -m docs.generate           write them
python -m docs.generate --check   exit with 1 and name every page that differs
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from docs.generate.benchmarks_page import with_benchmark_tables
from docs.generate.cli_page import cli_page
from docs.generate.engines_page import with_engine_tables
from docs.generate.hardware_page import with_hardware_tables
from docs.generate.links import broken_links
from docs.generate.models_page import with_model_tables
from docs.generate.readme import with_readme_parts
from docs.generate.tree import with_tree

ROOT = Path(__file__).resolve().parents[2]
PAGES: dict[str, Callable[[str], str]] = {
    "README.md": with_readme_parts,
    "docs/architecture.md": with_tree,
    "docs/benchmarks.md": with_benchmark_tables,
    "docs/reference/cli.md": lambda page: cli_page(),
    "docs/reference/engines.md": with_engine_tables,
    "docs/reference/hardware.md": with_hardware_tables,
    "docs/reference/models.md": with_model_tables,
}
"""How each page is made from its present text."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page differs")
    args = parser.parse_args(argv)
    stale = []
    for name, make in PAGES.items():
        path = ROOT / name
        page = path.read_text(encoding="utf-8")
        made = make(page)
        if made != page:
            stale.append(f"{name} is not current: run python -m docs.generate")
            if not args.check:
                path.write_text(made, encoding="utf-8")
    problems = [*(stale if args.check else []), *broken_links(ROOT)]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
