import tomllib

from perfmodel.hardware.hardware_file import decode_hardware
from perfmodel.hardware.known_hardware import KNOWN_HARDWARE
from tests.check_docs import (
    HARDWARE_PAGE,
    hardware_problems,
    should_be_named,
    subcommands,
    tree_paths,
    tree_problems,
    with_hardware_tables,
)


def readme(tree: str) -> str:
    return f"text\n<!-- file-tree -->\n```text\n{tree}```\n"


def test_a_drawn_tree_is_read_as_paths() -> None:
    assert list(tree_paths("perfmodel/  nouns\n├── units.py  u\n│   └── x.py\n└── b/\n    └── c.json\nREADME.md\n")) == [
        "perfmodel",
        "perfmodel/core/units.py",
        "perfmodel/core/units.py/x.py",
        "perfmodel/b",
        "perfmodel/b/c.json",
        "README.md",
    ]


def test_a_tree_that_is_true_has_no_problem() -> None:
    tree = "perfmodel/\n├── units.py\nREADME.md\n"
    assert tree_problems(readme(tree), {"perfmodel/core/units.py", "perfmodel/__init__.py", "README.md", "LICENSE"}) == []


def test_a_tree_that_names_too_much_or_too_little_is_told() -> None:
    tree = "perfmodel/\n├── unit.py\n"
    assert tree_problems(readme(tree), {"perfmodel/core/units.py"}) == [
        "README.md: the file tree names perfmodel/unit.py, which does not exist",
        "README.md: the file tree leaves out perfmodel/core/units.py",
    ]
    assert tree_problems("no tree", set()) == ["README.md: no fenced block after <!-- file-tree -->"]


def test_only_modules_pages_and_notebooks_of_ours_must_be_named() -> None:
    named = [
        name for name in ("s2d/a.py", "s2d/__init__.py", "s2d/family/x.py", "docs/a.md", "tests/b.py") if should_be_named(name)
    ]
    assert named == ["s2d/a.py", "docs/a.md"]


def test_subcommands_are_read_from_the_usage() -> None:
    assert subcommands("usage: s2d-profile [-h] {latency,acceptance} ...\n\ntext {a,b} ...") == ["latency", "acceptance"]
    assert subcommands("usage: s2d-plan [-h] [--rule {greedy,ratio}]\n\ntext") == []
    assert subcommands("usage: s2d-plan [-h]\n\ntext\n\ns2d-plan validate  holds\ns2d-plan design    shapes\n") == [
        "validate",
        "design",
    ]


def test_the_hardware_page_shows_every_device_as_the_code_has_it() -> None:
    page = HARDWARE_PAGE.read_text(encoding="utf-8")
    assert hardware_problems(page) == []
    assert all(page.count(f"\n| {hardware.name} |") == 2 for hardware in KNOWN_HARDWARE)
    assert hardware_problems(page.replace("| 3350 |", "| 3000 |")) != []
    assert hardware_problems("a page without tables") != []
    assert with_hardware_tables(page.replace("| 3350 |", "| 3000 |")) == page


def test_the_example_of_the_hardware_page_is_a_device() -> None:
    example = HARDWARE_PAGE.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]
    assert decode_hardware(tomllib.loads(example)).name == "NVIDIA RTX A6000"
