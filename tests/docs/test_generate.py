"""Generated pages are current, their links hold, and a page that differs is reported."""

import re
import tomllib
from pathlib import Path

import pytest

from docs.generate.__main__ import PAGES, ROOT, main
from docs.generate.benchmarks_page import value_text
from docs.generate.cli_page import subcommands
from docs.generate.links import anchors, missing_targets
from docs.generate.marks import with_part
from docs.generate.tree import WIDTH, line, tree_text
from perfmodel.hardware.hardware_file import decode_hardware
from perfmodel.hardware.known_hardware import KNOWN_HARDWARE
from perfmodel.models.known_models import KNOWN_MODELS

README_LINES = 150


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    assert PAGES[name](page) == page, "run python -m docs.generate"


def test_a_page_that_differs_is_named_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("docs.generate.__main__.PAGES", {"docs/benchmarks.md": lambda page: f"{page}\nnew"})
    before = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert main(["--check"]) == 1
    assert "docs/benchmarks.md is not current" in capsys.readouterr().err
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == before


def test_the_readme_fits_a_screen_or_two() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_a_part_is_replaced_between_its_marks_only() -> None:
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert with_part(page, "x", "new") == "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="expected <!-- y -->"):
        with_part(page, "y", "new")


def test_the_tree_names_every_module_once_and_keeps_its_width() -> None:
    tree = tree_text({"perfmodel/core/units.py", "perfmodel/core/__init__.py", "perfmodel/evidence/x.json", "s2d/family/y.npz"})
    assert [row.split()[0] for row in tree.splitlines()] == ["perfmodel/", "core/", "units.py"]
    assert tree.splitlines()[2].startswith("        units.py")
    assert len(line("name.py", 2, "word " * 40)) <= WIDTH


def test_links_to_missing_files_and_headings_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# A heading, with `code`\n", encoding="utf-8")
    text = "[a](other.md) [b](none.md) [c](other.md#a-heading-with-code) [d](other.md#none) [e](https://example.org/none)"
    assert list(missing_targets(page, text)) == ["none.md", "other.md#none"]
    assert anchors("# One two\n## Three\n") == {"one-two", "three"}


def test_subcommands_are_read_from_the_help() -> None:
    verbs = "verbs:\n  VERB\n    latency             measure\n                        only\n    law                 fit\n\nend"
    assert subcommands(verbs) == ["latency", "law"]
    assert subcommands("usage: s2d-plan [-h] [--rule {greedy,ratio}]\n\ntext") == []


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("median_abs_error_frac", 0.0213, "2.1 %"),
        ("plan_s", 0.27, "270 ms"),
        ("policies_per_s", 8257.4, "8,257"),
        ("num_cases", 2000, "2,000"),
        ("plan_over_plain", 1.4312, "1.43"),
        ("is_correct", True, "True"),
        ("peak_s", None, "not measured"),
        ("by_target.ref_s", 0.001, "1.00 ms"),
    ],
)
def test_a_value_is_written_in_the_unit_that_its_key_names(key: str, value: object, text: str) -> None:
    assert value_text(key, value) == text


def test_the_hardware_page_shows_every_device_twice() -> None:
    page = (ROOT / "docs" / "reference" / "hardware.md").read_text(encoding="utf-8")
    assert not [hardware.name for hardware in KNOWN_HARDWARE if page.count(f"\n| {hardware.name} |") != 2]


def test_the_models_page_shows_every_model_twice() -> None:
    page = (ROOT / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    assert not [model.name for model in KNOWN_MODELS if page.count(f"| {model.name} |") != 2]


def test_the_example_of_the_hardware_page_is_a_device() -> None:
    page = (ROOT / "docs" / "reference" / "hardware.md").read_text(encoding="utf-8")
    example = page.partition("```toml\n")[2].partition("```")[0]
    assert decode_hardware(tomllib.loads(example)).name == "NVIDIA RTX A6000"


def test_every_decision_is_in_the_index_once() -> None:
    page = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    index, _, _ = page.partition("\n## 1. ")
    listed = sorted(int(number) for number in re.findall(r"\[(\d+) [^\]]*\]\(#", index))
    assert listed == sorted(int(number) for number in re.findall(r"^## (\d+)\. ", page, re.MULTILINE))
