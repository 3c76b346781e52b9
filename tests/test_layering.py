"""Imports run one way: perfmodel <- calibrate, and perfmodel <- s2d <- profiler; measuring and deciding meet in files."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT_OF_OURS = {
    "perfmodel": {"perfmodel"},
    "calibrate": {"calibrate", "perfmodel"},
    "s2d": {"s2d", "perfmodel"},
    "profiler": {"profiler", "s2d", "perfmodel"},
}
MAY_IMPORT_AT_THE_TOP = {
    "perfmodel": set(),
    "calibrate": {"numpy"},
    "s2d": {"numpy", "torch", "transformers", "tokenizers", "safetensors"},
    "profiler": {"numpy", "torch", "pynvml"},
}
REPLAYING = ("off_path", "trace", "tally", "tape", "courses", "replay", "calibration")
NUMPY_AT_THE_TOP = {f"perfmodel/{noun}.py" for noun in REPLAYING}
MODULES = [path for package in MAY_IMPORT_OF_OURS for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def roots_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"relative import on line {node.lineno}"
        yield (node.module or "").partition(".")[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes_run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those inside functions and under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not is_type_checking(child):
            yield child
            yield from nodes_run_on_import(child)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_package_imports_only_what_lies_below_it(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ours = {root for node in ast.walk(tree) for root in roots_of(node)} & MAY_IMPORT_OF_OURS.keys()
    assert ours <= MAY_IMPORT_OF_OURS[name_of(path).partition("/")[0]]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_importing_a_module_loads_only_the_third_parties_of_its_package(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    roots = {root for node in nodes_run_on_import(tree) for root in roots_of(node)}
    third_party = roots - sys.stdlib_module_names - MAY_IMPORT_OF_OURS.keys()
    allowed = MAY_IMPORT_AT_THE_TOP[name_of(path).partition("/")[0]]
    assert third_party <= allowed | ({"numpy"} if name_of(path) in NUMPY_AT_THE_TOP else set())


@pytest.mark.parametrize("package", MAY_IMPORT_OF_OURS)
def test_a_package_init_is_a_docstring_and_nothing_else(package: str) -> None:
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_an_import_inside_a_function_is_not_counted_as_run_on_import() -> None:
    tree = ast.parse("import json\ndef f():\n    import torch\nclass C:\n    import numpy\nif TYPE_CHECKING:\n    import scipy")
    assert {root for node in nodes_run_on_import(tree) for root in roots_of(node)} == {"json", "numpy"}
