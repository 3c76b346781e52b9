"""Imports run one way: between packages, between the rooms of a package, and between the modules of a room."""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = {
    "perfmodel": (
        "core",
        "models",
        "policies",
        "quantisation",
        "passes",
        "hardware",
        "latency",
        "acceptance",
        "replay",
        "engines",
        "results",
    ),
    "calibrate": ("inputs", "pricing", "search", "engines", "engine_metrics", "planning", "fit", "figures", "commands"),
    "s2d": (
        "model",
        "loading",
        "prompts",
        "prompt_files",
        "parallel",
        "decoding",
        "running",
        "training",
        "engines",
        "exporting",
        "commands",
    ),
    "profiler": ("machine", "acceptance", "latency", "engines", "profiling", "commands"),
}
"""The rooms of each package, lowest first: a room imports only from itself and from rooms before it."""
PACKAGES_BELOW = {"perfmodel": (), "calibrate": ("perfmodel",), "s2d": ("perfmodel",), "profiler": ("s2d", "perfmodel")}
"""Measuring (s2d, profiler) and deciding (calibrate) never import each other: they meet in files."""
FRONT_DOORS = ("s2d/__init__.py",)
"""Modules that hand out what other packages offer, and import them only when it is asked for."""
OPEN_DOORS = ("s2d",)
"""The public front door, through which a command of `calibrate` may call what it does not own: `s2d-plan export`."""
MOST_MODULES = 16
THIRD_PARTY_AT_IMPORT = {
    "perfmodel": set(),
    "calibrate": {"numpy"},
    "s2d": {"numpy", "torch", "transformers", "tokenizers", "safetensors"},
    "profiler": {"numpy", "torch", "pynvml"},
}
NUMPY_AT_IMPORT = ("perfmodel/acceptance/", "perfmodel/replay/")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in ROOMS
    for path in sorted((ROOT / package).rglob("*.py"))
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Dotted names that imports name; `from a import b` names `a`, and `a.b` where that is a module."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import on line {node.lineno}"
            dotted = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (dotted & MODULES.keys()) or {str(node.module)}
    return names


def nodes_run_at_all(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING`, which never run."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from nodes_run_at_all(child)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes_run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those inside functions and under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not is_type_checking(child):
            yield child
            yield from nodes_run_on_import(child)


def may_import(module: str, other: str) -> bool:
    package, room, *_ = (*module.split("."), "")
    other_package, other_room, *_ = (*other.split("."), "")
    if other in OPEN_DOORS and package == "calibrate" and room == "commands":
        return True
    if other_package != package:
        return other_package in PACKAGES_BELOW[package]
    rooms = ROOMS[package]
    return not other_room or (room in rooms and other_room in rooms and rooms.index(other_room) <= rooms.index(room))


def test_rooms_import_only_rooms_and_packages_below_them() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if name_of(path) not in FRONT_DOORS
        for other in imported(ast.walk(tree_of(path)))
        if other.partition(".")[0] in ROOMS and not may_import(module, other)
    ]
    assert not wrong


def test_the_table_of_rooms_is_the_tree() -> None:
    for package, rooms in ROOMS.items():
        folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert folders == set(rooms)


def test_no_folder_holds_more_modules_than_a_reader_can_survey() -> None:
    counts: dict[str, int] = {}
    for path in MODULES.values():
        folder = path.parent.relative_to(ROOT).as_posix()
        counts[folder] = counts.get(folder, 0) + (path.name != "__init__.py")
    assert not {folder: count for folder, count in counts.items() if count > MOST_MODULES}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module: imported(nodes_run_at_all(tree_of(path))) & MODULES.keys()
        for module, path in MODULES.items()
        if name_of(path) not in FRONT_DOORS
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as err:
        raise AssertionError(f"import circle: {' -> '.join(err.args[1])}") from None


def test_importing_a_module_loads_only_the_third_parties_of_its_package() -> None:
    wrong = []
    for path in MODULES.values():
        roots = {name.partition(".")[0] for name in imported(nodes_run_on_import(tree_of(path)))}
        allowed = THIRD_PARTY_AT_IMPORT[name_of(path).partition("/")[0]]
        allowed = allowed | {"numpy"} if name_of(path).startswith(NUMPY_AT_IMPORT) else allowed
        extra = roots - sys.stdlib_module_names - ROOMS.keys() - allowed
        wrong += [f"{name_of(path)} imports {name}" for name in sorted(extra)]
    assert not wrong


def test_a_package_init_is_a_docstring_and_nothing_else() -> None:
    inits = [path for path in MODULES.values() if path.name == "__init__.py" and name_of(path) not in FRONT_DOORS]
    assert not [name_of(path) for path in inits if not ast.get_docstring(tree_of(path)) or len(tree_of(path).body) != 1]


def test_an_import_inside_a_function_is_not_counted_as_run_on_import() -> None:
    tree = ast.parse("import json\ndef f():\n    import torch\nclass C:\n    import numpy\nif TYPE_CHECKING:\n    import scipy")
    assert imported(nodes_run_on_import(tree)) == {"json", "numpy"}
    assert imported(nodes_run_at_all(tree)) == {"json", "numpy", "torch"}
